"""Imports packages that only some settings need, each of which is in one of lamina's extras."""

from __future__ import annotations

import importlib
from typing import Any

from lamina.errors import ConfigError, Problem


def needed_package(name: str, user: str, field: str, extra: str) -> Any:
    """Imports a package, or a module of one.

    Args:
        name: The module.
        user: What needs it, for the error.
        field: The setting or the option that asked for it, for the error.
        extra: lamina's extra that has it.

    Raises:
        ConfigError: It is not installed.
    """
    package = name.partition(".")[0]
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != package:
            raise  # it is installed, and something that it needs is not
        message = f"{user} needs the package {package.replace('_', '-')}, which is not installed."
        raise ConfigError(Problem(field, message, f"pip install 'lamina[{extra}]'")) from None
