"""Reads configuration files: `include`, `${NAME}` from the environment, and `-` for standard input.

include: ../base.yaml            # or a list; what this file sets itself wins
data: {train: "${DATA}/train.jsonl"}   # a relative path: from here, or else beside the file in which it is written
output_dir: ${OUT:-runs/mine}    # with a default; $${NAME} stays ${NAME}
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lamina.config.contradictions import without_contradicted
from lamina.config.places import find_near, map_paths
from lamina.config.yaml_text import parse_scalar, parse_yaml
from lamina.errors import ConfigError, Problem

INCLUDE = "include"
STDIN = "-"

_VARIABLE = re.compile(r"\$(?P<escaped>\$)?\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>[^}]*))?\}")


def read_yaml(path: Path, field: str = "config", begins: str = "data: {train: FILE}") -> dict[str, Any]:
    """Reads a YAML mapping. A duplicate key is an error, and `2e-4` is a number.

    Args:
        path: The file; `-` is standard input.
        field: What named it, for errors.
        begins: How a file of its kind may begin, for the error of one without settings.

    Raises:
        ConfigError: There is no such file, or it is no YAML mapping.
    """
    name = "standard input" if str(path) == STDIN else str(path)
    try:
        text = sys.stdin.read() if str(path) == STDIN else path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(Problem(field, f"{path} does not exist", "check the path")) from None
    except IsADirectoryError:
        raise ConfigError(Problem(field, f"{path} is a folder, not a YAML file", "give the path of a file")) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(Problem(field, f"{path} cannot be read ({error})", "save it as UTF-8 text")) from None
    value = parse_yaml(text, name)
    if not isinstance(value, dict):
        found = "is empty" if value is None else f"contains a {type(value).__name__}"
        raise ConfigError(Problem(field, f"{name} {found}; it must be a mapping of keys", f"start with `{begins}`"))
    return value


class _Unset(str):
    """A text with a variable that is not set: an error unless a file that includes this one sets something else."""

    __slots__ = ()


def read_config(path: Path) -> dict[str, Any]:
    """Reads a configuration file with what it includes, with variables of the environment in place, and with relative
    paths that exist beside the file in which they are written, but not here, as paths from here.

    Raises:
        ConfigError: A file cannot be read, files include each other in a circle, or a variable is not set.
    """
    values = _with_includes(path, ())
    _refuse_unset(values, "")
    return values


def _with_includes(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    resolved = path.resolve()
    if resolved in above:
        circle = " includes ".join(each.name for each in (*above[above.index(resolved) :], resolved))
        raise ConfigError(Problem(INCLUDE, circle, "remove one of these lines"), str(path))
    values = read_yaml(path, "config" if not above else INCLUDE)
    listed = values.pop(INCLUDE, [])
    folder = Path() if str(path) == STDIN else path.parent
    values = map_paths(
        _expanded(values), lambda field, named: named if isinstance(named, _Unset) else find_near(named, folder)
    )
    names = [listed] if isinstance(listed, str) else listed
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigError(Problem(INCLUDE, f"got {listed!r}", "give the path of a YAML file, or a list of them"))
    merged: dict[str, Any] = {}
    for name in names:
        _refuse_unset(_text(name), INCLUDE)
        included = folder / Path(str(_text(name))).expanduser()
        merged = merge_mappings(merged, _with_includes(included, (*above, resolved)))
    if not names:
        return values
    given = {(key, inner) for key, section in values.items() if isinstance(section, Mapping) for inner in section}
    return without_contradicted(merge_mappings(merged, values), given)


def merge_mappings(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Merges two mappings key by key; `over` wins, and lists and sections of another `type` are replaced as a whole."""
    merged = dict(under)
    for key, value in over.items():
        before = merged.get(key)
        if (
            isinstance(before, Mapping)
            and isinstance(value, Mapping)
            and value.get("type") in (None, before.get("type"))
        ):
            merged[key] = merge_mappings(before, value)
        else:
            merged[key] = value
    return merged


def _expanded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _expanded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_expanded(item) for item in value]
    return _text(value) if isinstance(value, str) else value


def _text(text: str) -> Any:
    """Puts variables into a text. If it is nothing but a variable, the value is read as YAML: `seed: ${SEED}`."""
    if next(_missing(text), None) is not None:
        return _Unset(text)
    whole = _VARIABLE.fullmatch(text)
    put = _VARIABLE.sub(_value, text)
    return parse_scalar(put) if whole is not None and not whole["escaped"] else put


def _refuse_unset(value: Any, field: str) -> None:
    """Refuses texts with variables that are not set.

    Raises:
        ConfigError: There is one.
    """
    if isinstance(value, Mapping):
        for key, item in value.items():
            _refuse_unset(item, f"{field}.{key}" if field else str(key))
    elif isinstance(value, list):
        for item in value:
            _refuse_unset(item, field)
    elif isinstance(value, _Unset):
        name = next(_missing(value))
        message = f"got {str(value)!r}, and the environment variable {name} is not set"
        raise ConfigError(Problem(field, message, f"set it, or give a default: ${{{name}:-VALUE}}"))


def _missing(text: str) -> Iterator[str]:
    for found in _VARIABLE.finditer(text):
        if not found["escaped"] and found["default"] is None and found["name"] not in os.environ:
            yield found["name"]


def _value(found: re.Match[str]) -> str:
    if found["escaped"]:
        return found[0][1:]
    value = os.environ.get(found["name"])
    return (found["default"] or "") if value is None or (not value and found["default"] is not None) else value
