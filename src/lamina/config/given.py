"""What of a configuration was given and what was filled in: the two stay apart when it is changed and read again.

A default may depend on the rest: the learning rate is the method's and the optimizer's own. So a configuration that was
filled in once, such as a run's config.yaml, says beside its values which of them were given (`given:`, dotted names).
If it is read with overrides, the others are filled in anew, unless they are no defaults (any more), as after an edit by
hand or in another version.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from pydantic import BaseModel

from lamina.config.losses import DEFAULT_LOSS, LOSS_CONFIGS
from lamina.config.methods import DEFAULT_METHOD, METHOD_CONFIGS
from lamina.config.optimizers import OPTIMIZERS
from lamina.config.root import Config, default_learning_rate
from lamina.errors import ConfigError, Problem

GIVEN = "given"

_LEARNING_RATE = "train.learning_rate"


def resolved_values(config: Config) -> dict[str, Any]:
    """The whole configuration as plain data, with what was given; `load_config` reads it."""
    given = {*_given(config, ""), "output_dir"}
    return {**config.model_dump(mode="json"), GIVEN: sorted(given)}


def only_given(values: Mapping[str, Any]) -> dict[str, Any]:
    """Without what was filled in and would be again, if the values say what was given; else all of them.

    Raises:
        ConfigError: `given` is no list of names.
    """
    if GIVEN not in values:
        return dict(values)
    given = values[GIVEN]
    if not isinstance(given, list) or not all(isinstance(name, str) for name in given):
        message = f"got {given!r}; it lists the names of the settings that were given."
        raise ConfigError(Problem(GIVEN, message, "remove it, and every setting counts as given"))
    return _kept(Config, {key: value for key, value in values.items() if key != GIVEN}, "", set(given), values)


def section_of(model: type[BaseModel], name: str) -> type[BaseModel] | None:
    """The class of a section's field that is a section itself; below `method` and `loss`, also by their `type`."""
    field = model.model_fields.get(name)
    if field is None:
        return METHOD_CONFIGS.get(name) or LOSS_CONFIGS.get(name)  # below a union by `type`, pydantic names the member
    candidates = [field.annotation, *get_args(field.annotation)]
    return next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)


def _given(section: BaseModel, prefix: str) -> list[str]:
    """Dotted names of the fields that were set, those of sections within too."""
    names = []
    for name in section.model_fields_set:
        value = getattr(section, name)
        inner = _given(value, f"{prefix}{name}.") if isinstance(value, BaseModel) else []
        # A section without anything set says something where there is none by default, as `quantization: {}` does.
        names += inner or [f"{prefix}{name}"]
    return names


def _kept(
    cls: type[BaseModel], values: Mapping[str, Any], prefix: str, given: set[str], whole: Mapping[str, Any]
) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for name, value in values.items():
        path = f"{prefix}{name}"
        section = _chosen_class(path, value) if path in _CHOSEN else section_of(cls, name)
        if isinstance(value, Mapping) and section is not None:
            inner = _kept(section, value, f"{path}.", given, whole)
            if inner or _default(cls, name, path, whole) is None:  # an empty one says something where there is none
                kept[name] = inner
        elif path in given or (path in _TYPES and value != _TYPES[path]) or value != _default(cls, name, path, whole):
            kept[name] = value
    return kept


def _default(cls: type[BaseModel], name: str, path: str, whole: Mapping[str, Any]) -> Any:
    """What a field would be filled in with, as plain data."""
    if path == _LEARNING_RATE:
        return _own_learning_rate(whole)
    field = cls.model_fields.get(name)
    if field is None or field.is_required():
        return _NOTHING
    default = field.get_default(call_default_factory=True)
    return default.model_dump(mode="json") if isinstance(default, BaseModel) else default


def _own_learning_rate(whole: Mapping[str, Any]) -> Any:
    method, train = _chosen_class("method", whole.get("method")), whole.get("train")
    optim = train.get("optim") if isinstance(train, Mapping) else None
    return _NOTHING if method is None or optim not in OPTIMIZERS else default_learning_rate(method, optim)


def _chosen_class(name: str, section: Any) -> Any:
    """The class of a section that its `type` chooses."""
    classes, default = _CHOSEN[name]
    return classes.get(section.get("type", default)) if isinstance(section, Mapping) else None


# Sections that are of one of several classes, by their `type`.
_CHOSEN: dict[str, tuple[Mapping[str, type[BaseModel]], str]] = {
    "method": (METHOD_CONFIGS, DEFAULT_METHOD),
    "loss": (LOSS_CONFIGS, DEFAULT_LOSS),
}

# What chooses a section's class, and the choice that says nothing; a method's decides other defaults, so it stays.
_TYPES = {"method.type": None, "loss.type": DEFAULT_LOSS}

# What no value is equal to.
_NOTHING = object()
