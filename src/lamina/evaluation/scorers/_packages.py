"""The one place where packages that only some scorers need are imported."""

from __future__ import annotations

import importlib
from typing import Any

from lamina.errors import ConfigError, Problem


def metrics_package(name: str, scorer: str) -> Any:
    """Imports a package of the extra `metrics`.

    Raises:
        ConfigError: It is not installed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != name.partition(".")[0]:
            raise
        message = f"{scorer} needs the package {name.partition('.')[0].replace('_', '-')}, which is not installed."
        raise ConfigError(Problem("type", message, "pip install 'lamina[metrics]'")) from None
