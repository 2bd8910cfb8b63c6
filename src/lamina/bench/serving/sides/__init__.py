"""The contestants of serving, one file each: `lamina`, `transformers`, `vllm` and `llama.cpp`; discovery finds them.

A side's file defines:

    ABOUT       one line: what is measured
    takes       AdapterFacts -> bool: whether it can serve such an adapter
    refuses     Job -> str | None: why it cannot run here, or not this job; called in lamina's own process
    interpreter () -> str | None: the Python to run it with; None for lamina's own
    open        Job -> a context of (Target, settings): loads everything, and takes requests until it is left

Every answer has `job.max_new_tokens` tokens, past what would end it, so that all sides do the same work. No module of
these imports its library at the top: a side is asked whether it can run where the library may be missing.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol, cast

from lamina.bench.serving.job import AdapterFacts, Job
from lamina.bench.serving.load import Target

OWN = "lamina"


class Side(Protocol):
    """What a side's file defines."""

    ABOUT: str
    takes: Callable[[AdapterFacts], bool]
    refuses: Callable[[Job], str | None]
    interpreter: Callable[[], str | None]
    open: Callable[[Job], AbstractContextManager[tuple[Target, dict[str, Any]]]]


def side_names() -> list[str]:
    """Every side, lamina first."""
    names = {module.name.replace("_", ".") for module in pkgutil.iter_modules(__path__)}
    return [OWN, *sorted(names - {OWN})]


def find_side(name: str) -> Side:
    """The side of that name (one of `side_names`)."""
    return cast(Side, importlib.import_module(f"{__name__}.{name.replace('.', '_')}"))
