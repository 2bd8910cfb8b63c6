"""Tracks which settings were given and which were filled in, so that defaults follow when a configuration changes.

A default may depend on other settings: the default learning rate depends on the method and the optimizer. Therefore, a
configuration with defaults filled in, such as a run's config.yaml, also lists which settings were given (`given:`,
dotted names). When it is read with overrides, the other settings are filled in again, unless their values differ from
the defaults, as after an edit by hand or in another version.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from pydantic import BaseModel

from lamina.config.losses import DEFAULT_LOSS, LOSS_CONFIGS
from lamina.config.methods import DEFAULT_METHOD, METHOD_CONFIGS
from lamina.config.methods.lora import LoraConfig, default_alpha
from lamina.config.optimizers import OPTIMIZERS
from lamina.config.root import Config, default_learning_rate
from lamina.errors import ConfigError, Problem

GIVEN = "given"

_LEARNING_RATE = "train.learning_rate"
_ALPHA = "method.lora_alpha"


def resolved_values(config: Config) -> dict[str, Any]:
    """Returns the whole configuration as plain data, with the list of given settings; `load_config` reads it."""
    given = {*_given(config, ""), "output_dir"}
    return {**config.model_dump(mode="json"), GIVEN: sorted(given)}


def only_given(values: Mapping[str, Any]) -> dict[str, Any]:
    """Removes filled-in settings that would be filled in again. Without a list of given settings, keeps all.

    Raises:
        ConfigError: `given` is not a list of names.
    """
    if GIVEN not in values:
        return dict(values)
    given = values[GIVEN]
    if not isinstance(given, list) or not all(isinstance(name, str) for name in given):
        message = f"got {given!r}; must be the list of the settings that were given."
        raise ConfigError(Problem(GIVEN, message, "remove it, so that every setting counts as given"))
    return _kept(Config, {key: value for key, value in values.items() if key != GIVEN}, "", set(given), values)


def section_of(model: type[BaseModel], name: str) -> type[BaseModel] | None:
    """Returns the class of a field that is a section itself; for `method` and `loss`, also by their `type`."""
    field = model.model_fields.get(name)
    if field is None:
        return METHOD_CONFIGS.get(name) or LOSS_CONFIGS.get(
            name
        )  # for a union by `type`, pydantic puts the type's name into the location
    candidates = [field.annotation, *get_args(field.annotation)]
    return next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)


def _given(section: BaseModel, prefix: str) -> list[str]:
    """Returns the dotted names of the fields that were set, including those of nested sections."""
    names = []
    for name in section.model_fields_set:
        value = getattr(section, name)
        inner = _given(value, f"{prefix}{name}.") if isinstance(value, BaseModel) else []
        # An empty section has a meaning if the default is null, as with `quantization: {}`.
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
            if (
                inner or _default(cls, name, path, whole) is None
            ):  # an empty section has a meaning if the default is null
                kept[name] = inner
        elif path in given or (path in _TYPES and value != _TYPES[path]) or value != _default(cls, name, path, whole):
            kept[name] = value
    return kept


def _default(cls: type[BaseModel], name: str, path: str, whole: Mapping[str, Any]) -> Any:
    """Returns the default of a field, as plain data."""
    if path == _LEARNING_RATE:
        return _own_learning_rate(whole)
    if path == _ALPHA and issubclass(cls, LoraConfig):
        return _own_alpha(whole)
    field = cls.model_fields.get(name)
    if field is None or field.is_required():
        return _NOTHING
    default = field.get_default(call_default_factory=True)
    return default.model_dump(mode="json") if isinstance(default, BaseModel) else default


def _own_learning_rate(whole: Mapping[str, Any]) -> Any:
    method, train = _chosen_class("method", whole.get("method")), whole.get("train")
    loss = _chosen_class("loss", whole.get("loss", {}))
    if not isinstance(train, Mapping) or method is None or loss is None or train.get("optim") not in OPTIMIZERS:
        return _NOTHING
    own = whole.get("method")
    init = own.get("init_lora_weights") if isinstance(own, Mapping) else None
    return default_learning_rate(method, train["optim"], loss, init, train.get("loraplus_lr_ratio"))


def _own_alpha(whole: Mapping[str, Any]) -> Any:
    method = whole.get("method")
    r = method.get("r", LoraConfig.model_fields["r"].default) if isinstance(method, Mapping) else None
    return default_alpha(r, method.get("use_rslora") is True) if isinstance(r, int) and method is not None else _NOTHING


def _chosen_class(name: str, section: Any) -> Any:
    """Returns the class of a section that its `type` chooses."""
    classes, default = _CHOSEN[name]
    return classes.get(section.get("type", default)) if isinstance(section, Mapping) else None


# Sections that have one of several classes, chosen by their `type`.
_CHOSEN: dict[str, tuple[Mapping[str, type[BaseModel]], str]] = {
    "method": (METHOD_CONFIGS, DEFAULT_METHOD),
    "loss": (LOSS_CONFIGS, DEFAULT_LOSS),
}

# The `type` that is the default and need not be kept. A method's type is always kept, since other defaults depend on
# it.
_TYPES = {"method.type": None, "loss.type": DEFAULT_LOSS}

# A marker that equals no value.
_NOTHING = object()
