"""What the plots of both benchmarks share: a check of where a plot goes, and matplotlib without a display."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lamina.bench.optional import is_installed, optional
from lamina.errors import ConfigError, Problem

PLOT_SUFFIXES = (".png", ".svg", ".pdf")


def check_plot(path: Path) -> None:
    """Checks, before anything is measured, that a plot can be written.

    Raises:
        BenchError: matplotlib is not installed.
        ConfigError: The file's folder does not exist, or its suffix is not a format.
    """
    if not is_installed("matplotlib"):
        optional("matplotlib")
    if path.suffix not in PLOT_SUFFIXES:
        raise ConfigError(Problem("--plot", f"{path.name!r} does not end in {', '.join(PLOT_SUFFIXES)}", "rename it"))
    if not path.resolve().parent.is_dir():
        raise ConfigError(Problem("--plot", f"the folder of {path} does not exist", "make it first"))


def new_plot(rows: int = 1, columns: int = 1, *, size: tuple[float, float]) -> tuple[Any, Any]:
    """Creates a matplotlib figure of `size` inches, and its axes: one, or an array (rows, columns).

    Raises:
        BenchError: matplotlib is not installed.
    """
    optional("matplotlib").use("Agg")
    return optional("matplotlib.pyplot").subplots(rows, columns, figsize=size, layout="constrained")
