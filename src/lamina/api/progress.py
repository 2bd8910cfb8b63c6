"""Chooses how progress is shown: as HTML in a notebook, as a bar in a terminal, as lines elsewhere."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Protocol

from lamina.api.notebook import NotebookView
from lamina.api.terminal import TrainingView
from lamina.runs.events import Event


class View(Protocol):
    """Displays events until its block ends."""

    def __enter__(self) -> View: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def __call__(self, event: Event) -> None: ...


def choose_view() -> View:
    """Returns the view for where this process runs."""
    return NotebookView() if in_notebook() else TrainingView()


def in_notebook() -> bool:
    """Returns whether this process is the kernel of a notebook. Imports nothing."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "kernel", None) is not None
