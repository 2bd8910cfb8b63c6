"""From keyword arguments to a configuration: `learning_rate=1e-4` is `train: {learning_rate: 1.0e-4}`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel

from lamina.config import METHOD_CONFIGS, Config
from lamina.config.contradictions import merge_settings
from lamina.config.section import Section
from lamina.dialects.hints import hint_for
from lamina.errors import ConfigError, Problem, nearest

_DATA_ARGUMENTS = {"train": "data", "eval": "eval_data"}


def with_settings(values: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Puts keyword arguments into a configuration's values; they replace what they contradict.

    Args:
        values: What there is, as `load_config` takes it.
        settings: A section (`train={...}`), a setting of the top (`seed=1`), or one of any section by its own name
            (`max_steps=20`, `max_length=512`, `r=8`).

    Raises:
        ConfigError: No section has a setting of a name; all of them are listed.
    """
    method = values.get("method")
    named = method.get("type", "lora") if isinstance(method, Mapping) else "lora"
    places = _places(METHOD_CONFIGS.get(str(named)))
    problems, given = [], dict[tuple[str, ...], Any]()
    for name, value in settings.items():
        if name in Config.model_fields:
            given |= dict(_leaves(value, (name,)))
        elif name in places:
            given[places[name], name] = _plain(value)
        else:
            hint = hint_for(name, value) or nearest(name, [*places, *Config.model_fields])
            fix = hint or "see docs/reference/config.md for all settings"
            problems.append(Problem(name, "is no argument of lamina.train and no setting.", fix))
    if problems:
        raise ConfigError(problems)
    return merge_settings(values, given)


def plain_settings(value: Mapping[str, Any]) -> dict[str, Any]:
    """Returns settings as plain data: paths as text, sections as dictionaries."""
    return {str(key): _plain(item) for key, item in value.items()}


def _places(method: type[BaseModel] | None) -> dict[str, str]:
    """Setting -> the section that has it. The first section in this order wins."""
    found: dict[str, str] = {}
    sections: Iterable[tuple[str, type[BaseModel] | None]] = (
        ("train", _section("train")),
        ("data", _section("data")),
        ("method", method),
    )
    for section, cls in sections:
        for name in cls.model_fields if cls is not None else ():
            if not (section == "data" and name in _DATA_ARGUMENTS) and name not in ("type", "from_"):
                found.setdefault(name, section)
    return found


def _section(name: str) -> type[BaseModel] | None:
    annotation = Config.model_fields[name].annotation
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def _leaves(value: Any, path: tuple[str, ...]) -> Iterable[tuple[tuple[str, ...], Any]]:
    """Yields the settings within a section, so that a section that is given partly replaces no other setting."""
    if isinstance(value, Section):
        value = value.model_dump(mode="json", exclude_unset=True)
    if isinstance(value, Mapping) and len(path) == 1 and path[0] in ("train", "data"):
        for key, item in value.items():
            yield (*path, str(key)), _plain(item)
    else:
        yield path, _plain(value)


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return os.fspath(value)
    if isinstance(value, Section):
        return value.model_dump(mode="json", exclude_unset=True)
    if isinstance(value, Mapping):
        return plain_settings(value)
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    if isinstance(value, np.generic):  # such as a rate out of np.logspace
        return value.item()
    if isinstance(value, set | frozenset):
        return sorted(value)
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
