"""The check that several processes train the same adapter as one."""

from __future__ import annotations

import os
from pathlib import Path

import yaml

from lamina import files
from lamina.config import Config, resolved_values
from lamina.config.optimizers import OPTIMIZERS
from lamina.distributed.launch import launch
from lamina.errors import TrainingError
from lamina.verification.artefacts import checkpoints_differ, in_folder
from lamina.verification.report import Measure, Skipped

# Lines of the output of processes that failed that the report shows.
_LINES = 3


def many_is_one(config: Config, folder: Path, nproc: int) -> list[Measure]:
    """Trains in one process and in several, each with as many threads; the last checkpoints must be identical.

    Args:
        config: A short run.
        folder: Where to train.
        nproc: Number of processes.

    Raises:
        Skipped: The optimizer works in one process only.
        TrainingError: A process failed.
    """
    if OPTIMIZERS[config.train.optim].layerwise:
        raise Skipped(f"{config.train.optim} works in one process only")
    threads = max(1, len(os.sched_getaffinity(0)) // nproc)
    for count in (1, nproc):
        run = in_folder(config, folder / f"processes-{count}")
        path = folder / f"processes-{count}.yaml"
        files.write_text(path, yaml.safe_dump(dict(resolved_values(run)), sort_keys=False))
        logs = folder / f"processes-{count}-logs"
        if code := launch(["train", str(path)], count, threads=threads, logs=logs):
            said = [line for log in sorted(logs.rglob("stderr.log")) for line in log.read_text().splitlines()]
            raise TrainingError(f"{count} processes ended with exit code {code}: {' '.join(said[-_LINES:])}")
    one, many = (in_folder(config, folder / f"processes-{count}") for count in (1, nproc))
    return checkpoints_differ(many, one, "0, because sums over micro-batches do not depend on who computed them")
