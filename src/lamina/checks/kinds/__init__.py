"""The checks, one file each, found by discovery: to add a check, add a file.

A check's file defines `Check`, a subclass of `BaseCheck` in `_base.py`.
"""

from __future__ import annotations

import importlib
import pkgutil

from lamina.checks.kinds._base import BaseCheck

CHECKS: dict[str, type[BaseCheck]] = {
    module.name: importlib.import_module(f"{__name__}.{module.name}").Check
    for module in sorted(pkgutil.iter_modules(__path__), key=lambda module: module.name)
    if not module.name.startswith("_")
}
