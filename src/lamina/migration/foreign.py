"""Whether a file is of another library, without the tables of what its settings mean."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lamina.config.load import read_yaml
from lamina.dialects.recognize import recognize
from lamina.errors import ConfigError, Problem

# Files that hold settings by name.
SUFFIXES = (".yaml", ".yml", ".json")

# A larger file is data, not a configuration.
_LARGEST = 2**20


def is_foreign(path: Path) -> bool:
    """Returns whether a file is a configuration of another library, or a script that starts one."""
    if path.suffix in (".sh", ".bash"):
        return True
    if path.suffix not in SUFFIXES or not path.is_file() or path.stat().st_size > _LARGEST:
        return False
    try:
        return recognize(read_mapping(path)) is not None
    except ConfigError:
        return False  # what is wrong with it is reported by what reads it


def read_mapping(path: Path) -> dict[str, Any]:
    """Reads a YAML or JSON file with settings by name.

    Raises:
        ConfigError: It cannot be read, or is something else.
    """
    if path.suffix != ".json":
        return read_yaml(path, "FILE", "base_model: NAME")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(Problem("FILE", f"{path} cannot be read ({error})", "give a JSON or YAML file")) from None
    if not isinstance(value, dict):
        raise ConfigError(Problem("FILE", f"{path} is no object", "give a file with settings by name"))
    return value
