"""The contestants, one file each; the file's name is the side's name (with `-` for `_`), and discovery finds it.

A side's file defines:

    ABOUT      one line: what is measured
    REQUIRES   packages that must be installed
    NEEDS_CUDA whether it runs on NVIDIA GPUs only
    run        (Job, Meter) -> settings: trains on `job.batches`, an optimizer step each, with the meter around each

It does the same training as lamina (LoRA on every linear layer but the head, adapter masters in float32, AdamW,
gradients clipped, a constant learning rate, loss averaged over a step's supervised tokens), in the way that is fastest
for it.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from typing import Any, Protocol, cast

from lamina.bench.job import Job
from lamina.bench.meter import Meter

OWN = "lamina"


class Side(Protocol):
    """The contents of a side's file."""

    ABOUT: str
    REQUIRES: tuple[str, ...]
    NEEDS_CUDA: bool
    run: Callable[[Job, Meter], dict[str, Any]]


def side_names() -> list[str]:
    """Returns the names of all sides, lamina first."""
    names = [module.name.replace("_", "-") for module in pkgutil.iter_modules(__path__) if module.name[0] != "_"]
    return [OWN, *sorted(set(names) - {OWN})]


def find_side(name: str) -> Side:
    """Returns a side by its name (one of `side_names`)."""
    return cast(Side, importlib.import_module(f"{__name__}.{name.replace('-', '_')}"))
