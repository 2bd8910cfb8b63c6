"""The one place where packages that only some executors need are imported."""

from __future__ import annotations

import importlib
from typing import Any

from lamina.errors import ConfigError, Problem


def cluster_package(name: str, executor: str) -> Any:
    """Imports a package of the extra that is named like the executor.

    Raises:
        ConfigError: It is not installed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != name.partition(".")[0]:
            raise
        message = f"{executor} needs the package {name.partition('.')[0]}, which is not installed."
        raise ConfigError(Problem("--on", message, f"pip install 'lamina[{executor}]'")) from None
