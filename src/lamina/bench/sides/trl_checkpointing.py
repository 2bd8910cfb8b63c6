"""TRL's SFTTrainer with gradient checkpointing, which is its default: layers are recomputed in the backward."""

from __future__ import annotations

from typing import Any

from lamina.bench.job import Job
from lamina.bench.meter import Meter
from lamina.bench.sides import trl

ABOUT = f"{trl.ABOUT}, gradient_checkpointing=True"
REQUIRES = trl.REQUIRES
NEEDS_CUDA = False


def run(job: Job, meter: Meter) -> dict[str, Any]:
    """Trains with SFTTrainer, layers recomputed."""
    return trl.train(job, meter, gradient_checkpointing=True)
