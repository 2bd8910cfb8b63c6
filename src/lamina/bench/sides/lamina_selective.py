"""lamina with selective gradient checkpointing: gate and up are recomputed in the backward, for less memory."""

from __future__ import annotations

from typing import Any

from lamina.bench.job import Job
from lamina.bench.meter import Meter
from lamina.bench.sides.lamina import train

ABOUT = "lamina train with train.gradient_checkpointing=selective"
REQUIRES = ()
NEEDS_CUDA = False


def run(job: Job, meter: Meter) -> dict[str, Any]:
    """Trains with lamina's own hot path, gate and up recomputed."""
    return train(job, meter, gradient_checkpointing="selective")
