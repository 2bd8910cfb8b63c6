"""Puts settings over others, which they replace: those of the same name, and those that they contradict.

`train.max_steps=20` over a file with `num_train_epochs` means 20 steps, and `method.type=ia3` over a LoRA section
leaves `r` behind. Two settings that contradict each other and come together stay, so that the error names both.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from pydantic import BaseModel

from lamina.config.losses import LOSS_CONFIGS
from lamina.config.methods import METHOD_CONFIGS
from lamina.config.optimizers import OPTIMIZERS, SPECIAL_SETTINGS

Key = tuple[str, ...]

_SPLITS = (("data", "stratify_by"), ("data", "group_by"))
_WARMUPS = (("train", "warmup_ratio"), ("train", "warmup_steps"))
_NEED_EVALUATION = tuple(
    ("train", name) for name in ("eval_steps", "early_stopping_patience", "early_stopping_threshold")
)


def _is_given(value: Any) -> bool:
    return value is not None


# A setting, the values of it that count, and the settings that have no place beside these.
_RIVALS: tuple[tuple[Key, Callable[[Any], bool], tuple[Key, ...]], ...] = (
    (("train", "max_steps"), _is_given, (("train", "num_train_epochs"),)),
    (("train", "num_train_epochs"), _is_given, (("train", "max_steps"),)),
    (("train", "warmup_ratio"), bool, (("train", "warmup_steps"),)),
    (("train", "warmup_steps"), bool, (("train", "warmup_ratio"),)),
    (("train", "lr_scheduler_type"), lambda value: value == "constant", _WARMUPS),
    (("data", "eval"), lambda value: value is None, (*_NEED_EVALUATION, *_SPLITS)),
    (("data", "eval"), lambda value: isinstance(value, str | Mapping), _SPLITS),
    (("data", "packing"), lambda value: value is False, (("data", "packing_strategy"),)),
    (("data", "packing"), lambda value: value is True, (("data", "group_by_length"),)),
)

_TYPED: dict[str, Mapping[str, type[BaseModel]]] = {"method": METHOD_CONFIGS, "loss": LOSS_CONFIGS}


def merge_settings(values: Mapping[str, Any], given: Mapping[Key, Any]) -> dict[str, Any]:
    """Returns a copy of a configuration's values with settings put over them.

    Args:
        values: The configuration, as `load_config` takes it.
        given: Settings by the parts of their names; sections between are made.
    """
    merged = _copy(values)
    for path, value in given.items():
        node = merged
        for part in path[:-1]:
            child = node.get(part)
            node[part] = child if isinstance(child, dict) else {}
            node = node[part]
        node[path[-1]] = value
    return without_contradicted(merged, given)


def without_contradicted(merged: dict[str, Any], given: Collection[Key]) -> dict[str, Any]:
    """Removes from `merged` what the settings in `given`, which are in it already, contradict. Returns it.

    Args:
        merged: The values of a configuration; changed in place.
        given: The names of the settings that were put over others.
    """
    for path, counts, rivals in _RIVALS:
        if path in given and counts(_at(merged, path)):
            for rival in rivals:
                if rival not in given:
                    _remove(merged, rival)
    for section, classes in _TYPED.items():
        cls = classes.get(str(_at(merged, (section, "type")))) if (section, "type") in given else None
        if cls is not None:
            for name in [name for name in merged[section] if not _has(cls, name) and (section, name) not in given]:
                del merged[section][name]
    optim = _at(merged, ("train", "optim"))
    if ("train", "optim") in given and optim in OPTIMIZERS:
        for name in SPECIAL_SETTINGS:
            if name not in OPTIMIZERS[optim].reads and ("train", name) not in given:
                _remove(merged, ("train", name))
    return merged


def _has(cls: type[BaseModel], name: str) -> bool:
    takes: Callable[[str], bool] | None = getattr(cls, "takes", None)
    return name == "type" or name in cls.model_fields or (takes is not None and takes(name))


def _at(values: Mapping[str, Any], path: Key) -> Any:
    node: Any = values
    for part in path:
        node = node.get(part) if isinstance(node, Mapping) else None
    return node


def _remove(values: dict[str, Any], path: Key) -> None:
    section = _at(values, path[:-1])
    if isinstance(section, dict):
        section.pop(path[-1], None)


def _copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copy(item) for key, item in value.items()}
    return [_copy(item) for item in value] if isinstance(value, list) else value
