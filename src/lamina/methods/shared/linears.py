"""What the methods on linear layers share: initial tensors, a rank that fits, and peft's common fields."""

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
from lamina.errors import AdapterError, ConfigError, Problem
from lamina.methods.shared.base import Injection
from lamina.methods.shared.peft_types import peft_fields as defaults_of
from lamina.methods.shared.peft_types import plain
from lamina.methods.shared.targets import width

Config = TypeVar("Config", bound=MethodConfig)

# Fields of every peft configuration that say where an adapter came from, or how training began, and change no result.
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
    """A float32 tensor, uniform in +-1/sqrt(shape[1]), which is Kaiming's with a = sqrt(5).

    On the CPU: the same generator gives the same tensor whatever the device.
    """
    bound = shape[1] ** -0.5
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)


def zeros(shape: tuple[int, ...], device: torch.device) -> nn.Parameter:
    """A float32 tensor of zeros."""
    return nn.Parameter(torch.zeros(shape, device=device))


def frozen_linears(model: PreTrainedModel, names: Iterable[str]) -> dict[str, FrozenLinear]:
    """The model's linear layers of these names, which `find_targets` gave; nothing is replaced."""
    frozen = {name: freeze_linear(model.get_submodule(name)) for name in names}
    return {name: linear for name, linear in frozen.items() if linear is not None}


def adapted_linears(injection: Injection) -> dict[str, FrozenLinear]:
    """The frozen layers under an adapter's layers, by name."""
    return {name: layer.frozen for name, layer in injection.layers.items() if isinstance(layer, AdapterLinear)}


def check_rank(field: str, config: MethodConfig, linears: Mapping[str, FrozenLinear]) -> None:
    """Checks that no layer is narrower than the rank that it gets. `all-linear` selects none such.

    Args:
        field: Where the rank is set.
        config: Of the method.
        linears: The layers that get an adapter, by name.

    Raises:
        ConfigError: Some are; the first is named, with what leaves them out.
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
    """The shortest end of a name that no layer has which is wide enough."""
    wide, parts = set(linears) - set(narrow), name.split(".")
    ends = [".".join(parts[-count:]) for count in range(1, len(parts) + 1)]
    return next(end for end in ends if not any(other.endswith(f".{end}") for other in wide))


def peft_fields(
    peft_type: str, configured: str | list[str] | None, target_modules: list[str], base_ref: str
) -> dict[str, Any]:
    """The fields that every peft configuration has.

    Args:
        peft_type: peft's name of the method.
        configured: The configuration's `target_modules`; a regular expression is written as it is.
        target_modules: Names that select the adapted modules.
        base_ref: Where peft finds the base.
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
    """A method's configuration from peft's, whose fields have the same names.

    Args:
        cls: The method's configuration.
        peft_config: As read from `adapter_config.json`.
        no_effect: Fields of peft's, beside those of every method, that change no result.

    Raises:
        AdapterError: A field is missing or wrong, or others are set, which would be lost; they are named.
    """
    fields = [name for name in cls.model_fields if name != "type"]
    refuse_unknown(cls.title, peft_config, {*fields, *no_effect, *_NO_EFFECT_FIELDS})
    complete = with_defaults(peft_config, fields)
    try:
        return cls.model_validate({name: complete[name] for name in fields})
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'it'}: {e['msg']}" for e in error.errors())
        raise AdapterError(f"its adapter_config.json does not fit lamina's {cls.title}: {wrong}.") from None


def refuse_unknown(title: str, peft_config: Mapping[str, Any], known: Collection[str]) -> None:
    """Checks that a peft configuration sets nothing beside `known`.

    Raises:
        AdapterError: It does; what would be lost is named.
    """
    unknown = sorted(key for key, value in peft_config.items() if key not in known and not _is_off(key, value))
    if unknown:
        settings = ", ".join(f"{key}={peft_config[key]!r}" for key in unknown)
        raise AdapterError(f"the adapter has settings of peft that lamina's {title} does not have: {settings}.")


def with_defaults(peft_config: Mapping[str, Any], fields: Iterable[str]) -> dict[str, Any]:
    """A peft configuration with the installed peft's defaults for those of the fields that it lacks, as peft reads it.

    Raises:
        AdapterError: It lacks some that peft does not know, or that peft is not there to tell.
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
