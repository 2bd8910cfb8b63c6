"""Helpers of the methods on linear layers: initial tensors, checks of the rank, and peft's common fields."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, TypeVar

import torch
from pydantic import ValidationError
from torch import nn
from transformers import PreTrainedModel

from lamina.compute.ops.adapter import AdapterLinear
from lamina.compute.weights import FrozenLinear, freeze_linear
from lamina.config import MethodConfig
from lamina.config.methods.base import FROM
from lamina.config.peft_objects import plain
from lamina.errors import AdapterError, ConfigError, Problem
from lamina.methods.shared.base import Injection
from lamina.methods.shared.peft_types import peft_fields as defaults_of
from lamina.methods.shared.targets import width

Config = TypeVar("Config", bound=MethodConfig)

# Fields of every peft configuration that describe an adapter's origin or initialization, and do not change its output.
_NO_EFFECT_FIELDS = {
    "auto_mapping",
    "base_model_name_or_path",
    "fan_in_fan_out",
    "inference_mode",
    "peft_type",
    "peft_version",
    "revision",
    "runtime_config",
    "task_type",
}


def uniform(shape: tuple[int, int], generator: torch.Generator) -> torch.Tensor:
    """Draws a float32 tensor, uniform in +-1/sqrt(shape[1]), which is Kaiming's with a = sqrt(5).

    It is drawn on the CPU, so that a seed gives the same tensor for every device.
    """
    bound = shape[1] ** -0.5
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)


def zeros(shape: tuple[int, ...], device: torch.device) -> nn.Parameter:
    """Makes a float32 parameter of zeros."""
    return nn.Parameter(torch.zeros(shape, device=device))


def frozen_linears(model: PreTrainedModel, names: Iterable[str]) -> dict[str, FrozenLinear]:
    """Wraps the model's linear layers with these names (from `find_targets`), without replacing them in the model."""
    frozen = {name: freeze_linear(model.get_submodule(name)) for name in names}
    return {name: linear for name, linear in frozen.items() if linear is not None}


def adapted_linears(injection: Injection) -> dict[str, FrozenLinear]:
    """Returns the frozen base layers of an adapter's linear layers, by name."""
    return {name: layer.frozen for name, layer in injection.layers.items() if isinstance(layer, AdapterLinear)}


def check_rank(field: str, config: MethodConfig, linears: Mapping[str, FrozenLinear]) -> None:
    """Checks that no layer is narrower than its rank. `all-linear` does not select such layers.

    Args:
        field: The field that sets the rank.
        config: The method's configuration.
        linears: The layers that get an adapter, by name.

    Raises:
        ConfigError: A layer is narrower; the message names the first one, and how to exclude such layers.
    """
    narrow = [name for name, linear in linears.items() if config.rank_of(name) > width(linear)]
    if not narrow:
        return
    first = narrow[0]
    ends = ", ".join(dict.fromkeys(_end_of(name, narrow, linears) for name in narrow))
    message = f"{config.rank_of(first)} is larger than the smaller side of {first} ({width(linears[first])})"
    message += f" and of {len(narrow) - 1} more." if len(narrow) > 1 else "."
    smallest = min(width(linears[name]) for name in narrow)
    if config.takes("exclude_modules"):
        fix = f"leave such layers out (add {ends} to the list method.exclude_modules), or use at most {smallest}"
    else:
        fix = f"name other layers, or all-linear, which leaves such ones out; or use at most {smallest}"
    raise ConfigError(Problem(field, message, fix))


def _end_of(name: str, narrow: Iterable[str], linears: Iterable[str]) -> str:
    """Finds the shortest suffix of a name that no sufficiently wide layer has."""
    wide, parts = set(linears) - set(narrow), name.split(".")
    ends = [".".join(parts[-count:]) for count in range(1, len(parts) + 1)]
    return next(end for end in ends if not any(other.endswith(f".{end}") for other in wide))


def peft_fields(
    peft_type: str, configured: str | list[str] | None, target_modules: list[str], base_ref: str
) -> dict[str, Any]:
    """Builds the fields that every peft configuration has.

    Args:
        peft_type: peft's name for the method.
        configured: The configuration's `target_modules`; a regular expression is saved unchanged.
        target_modules: Names that select the adapted modules.
        base_ref: Where peft finds the base model.
    """
    is_regex = isinstance(configured, str) and configured != "all-linear"
    return {
        "peft_type": peft_type,
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_ref,
        "target_modules": configured if is_regex else target_modules,
        "modules_to_save": None,
        "inference_mode": True,
    }


def read_peft_fields(cls: type[Config], peft_config: Mapping[str, Any], no_effect: Iterable[str] = ()) -> Config:
    """Builds a method's configuration from peft's, whose fields have the same names.

    Args:
        cls: The method's configuration class.
        peft_config: The content of `adapter_config.json`.
        no_effect: More of peft's fields that do not change the output.

    Raises:
        AdapterError: A field is missing or wrong, or an unsupported field is set; the message names it.
    """
    fields = [name for name in cls.model_fields if name not in ("type", FROM)]
    refuse_unknown(cls.title, peft_config, {*fields, *no_effect, *_NO_EFFECT_FIELDS})
    complete = with_defaults(peft_config, fields)
    try:
        return cls.model_validate({name: complete[name] for name in fields})
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'it'}: {e['msg']}" for e in error.errors())
        raise AdapterError(f"its adapter_config.json does not fit lamina's {cls.title}: {wrong}.") from None


def refuse_unknown(title: str, peft_config: Mapping[str, Any], known: Collection[str]) -> None:
    """Checks that a peft configuration sets no fields other than `known`.

    Raises:
        AdapterError: It does; the message names the unsupported settings.
    """
    unknown = sorted(key for key, value in peft_config.items() if key not in known and not _is_off(key, value))
    if unknown:
        settings = ", ".join(f"{key}={peft_config[key]!r}" for key in unknown)
        raise AdapterError(f"the adapter has settings of peft that lamina's {title} does not have: {settings}.")


def with_defaults(peft_config: Mapping[str, Any], fields: Iterable[str]) -> dict[str, Any]:
    """Completes a peft configuration with the installed peft's defaults for missing `fields`, as peft itself does.

    Raises:
        AdapterError: A missing field has no default in peft, or peft is not installed.
    """
    missing = [name for name in fields if name not in peft_config]
    try:
        defaults = defaults_of(str(peft_config.get("peft_type"))) if missing else {}
    except ConfigError:
        defaults = {}
    lacking = [name for name in missing if name not in defaults]
    if lacking:
        raise AdapterError(f"its adapter_config.json lacks {', '.join(lacking)}. Fix: copy the adapter again.")
    return {**{name: plain(defaults[name]) for name in missing}, **peft_config}


def _is_off(key: str, value: Any) -> bool:
    return value in (None, False, {}, []) or (key == "bias" and value == "none")
