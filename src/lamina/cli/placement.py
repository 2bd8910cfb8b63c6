"""The options of `lamina fleet` and `lamina compare` that say where runs are trained, and where files go."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lamina.errors import ConfigError, Problem

if TYPE_CHECKING:
    from lamina.fleet.executor import Placement

On = Annotated[str, typer.Option("--on", help="Where runs are trained: local, ray, slurm, or a plug-in's.")]
Jobs = Annotated[
    int | None,
    typer.Option(min=1, help="Number of runs at once; by default 1 on this machine, and all of them elsewhere."),
]
Cpus = Annotated[
    int | None,
    typer.Option(min=1, help="CPUs and threads of a run; by default the machine's cores or the cluster's, by --jobs."),
]
Gpus = Annotated[int | None, typer.Option(min=0, help="GPUs of a run.")]
Retries = Annotated[
    int, typer.Option(min=0, help="How often a run is resumed that lost its machine, or was killed or preempted.")
]
Option = Annotated[
    list[str] | None,
    typer.Option("--option", help="KEY=VALUE for the executor, such as partition=gpu on slurm; may be repeated."),
]


def checked_placement(
    on: str, jobs: int | None, cpus: int | None, gpus: int | None, retries: int, options: list[str] | None
) -> Placement:
    """Returns what the options say, before anything is started.

    Raises:
        ConfigError: There is no such executor, or it has no such option.
    """
    from lamina.fleet.executor import Placement, check_placement

    placement = Placement(on, jobs, cpus, gpus, retries, tuple(options or []))
    check_placement(placement)
    return placement


def output_folder(given: Path | None, default: str) -> Path:
    """Returns the folder for all files: `--out`, or runs/DEFAULT.

    Raises:
        ConfigError: It is a file.
    """
    folder = given or Path("runs") / default
    if folder.exists() and not folder.is_dir():
        raise ConfigError(Problem("--out", f"{folder} is a file", "give a folder"))
    return folder
