"""Runs one side in a separate process: `python -m lamina.bench.worker` reads a job from stdin and prints a JSON object.

The output of libraries goes to stderr. The process is separate because peak memory is measured per process, because
some peers patch their libraries permanently, and because a peer may need another environment.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading

import torch

from lamina.bench.flops import model_use
from lamina.bench.job import Job, SideRun
from lamina.bench.meter import Meter
from lamina.bench.process import leave_with_parent
from lamina.bench.sides import find_side
from lamina.config.methods.lora import LoraConfig
from lamina.errors import LaminaError
from lamina.machine.hardware import default_device


def run_job(job: Job) -> SideRun:
    """Runs one side in this process."""
    use = model_use(job.model, LoraConfig(r=job.rank, lora_alpha=job.alpha))
    meter = Meter(job, use, default_device())
    torch.manual_seed(job.seed)
    settings = find_side(job.side).run(job, meter)
    return meter.result(settings)


def main() -> None:
    """Runs the job on stdin. A failure is a message on stderr and exit code 1."""
    threading.Thread(target=leave_with_parent, args=(os.getppid(),), daemon=True).start()
    with contextlib.redirect_stdout(sys.stderr):
        try:
            result = run_job(Job(**json.load(sys.stdin)))
        except LaminaError as error:
            sys.exit(str(error))
    sys.stdout.write(json.dumps(result.as_json()) + "\n")


if __name__ == "__main__":
    main()
