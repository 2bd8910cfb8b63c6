"""The methods of the installed HF peft: their names, their fields, and which of them lamina does not support.

Only this file and the modules that handle peft's layers import peft.
"""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import typing
from collections.abc import Callable, Collection, Mapping
from types import ModuleType
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from transformers import PreTrainedModel

from lamina.config import METHOD_CONFIGS
from lamina.config.methods.peft import PeftConfig
from lamina.errors import AdapterError, ConfigError, Problem, nearest

FIELD = "method.peft_type"

# Fields of every peft configuration that describe an adapter's origin or use; lamina sets them.
SET_BY_LAMINA = frozenset(
    ("peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode")
)

# peft's name -> why the method cannot be trained in lamina's loop. Its adapters can be loaded.
_REFUSED_IN_TRAINING = {
    "ADALORA": "its budget, its penalty and its pruned ranks are in peft's model and not in its layers",
}

# peft's name -> why the method can neither be trained nor loaded through peft.
_REFUSED = {
    "ADAPTION_PROMPT": "it replaces whole attention modules by code that does not support packed documents",
    "CARTRIDGE": "its prefix is distilled from a text corpus by its own training loop",
    "CPT": "its loss weights tokens by a mask that comes with each example",
    "MULTITASK_PROMPT_TUNING": "it needs a task number with each example",
    "POLY": "it needs a task number with each example",
    "PREFIX_TUNING": "it puts tokens before the prompt, in peft's model and not in its layers",
    "PROMPT_TUNING": "it puts tokens before the prompt, in peft's model and not in its layers",
    "P_TUNING": "it puts tokens before the prompt, in peft's model and not in its layers",
    "SHADOW": "it runs a second network in parallel with the model, in hooks around the whole model",
    "XLORA": "it mixes LoRA adapters that were trained before",
}


@dataclasses.dataclass(frozen=True)
class _Setting:
    """Values of a field that are not supported.

    Attributes:
        key: The field.
        refused: Whether a value of the field is unsupported.
        reason: Why it cannot be trained; empty if it can, or if only the model shows whether it can.
        types: Names of peft's methods that this concerns; empty for all.
        unloadable: Why an adapter that was trained with it cannot be loaded; empty if it can.
        fix: What to do with such an adapter.
    """

    key: str
    refused: Callable[[Any], bool]
    reason: str
    types: tuple[str, ...] = ()
    unloadable: str = ""
    fix: str = ""


# Initializations of LoRA that leave the base unchanged, so that an adapter loads without knowing them.
PLAIN_INITS = (True, False, "gaussian", "orthogonal", "eva", "mica")

_PEFT = "use it with peft's own `PeftModel`"
_MERGE = "merge it with peft (`merge_and_unload`, then `save_pretrained`) and use that folder as a model"

_SETTINGS = (
    _Setting(
        "bias",
        lambda v: v != "none",
        "peft trains the base's own biases in place, so the base would be lost",
    ),
    _Setting(
        "use_asa",
        bool,
        "its importance scores are kept by a callback of transformers' Trainer and not saved, so a run could not be "
        "resumed",
        ("ADAMSS",),
    ),
    _Setting(
        "init_lora_weights",
        lambda v: v in ("eva", "lora_ga", "corda"),
        "this initialization reads data through peft's own functions before training",
        ("LORA",),
    ),
    _Setting(
        "init_lora_weights",
        lambda v: v not in PLAIN_INITS,
        "",
        ("LORA",),
        "its initialization moved a part of the base's weights into the adapter, and the file does not say which part",
        "save it again where it was trained, by peft's `save_pretrained(..., path_initial_model_for_weight_conversion="
        "...)`, which converts it to a plain LoRA",
    ),
    _Setting(
        "alora_invocation_tokens",
        bool,
        "peft applies it in its model, not in its layers",
        ("LORA",),
        "the adapter acts only on the tokens after these, which peft does in its model and not in its layers",
        _PEFT,
    ),
    _Setting("layer_replication", bool, "it adds layers to the base", ("LORA",), "it adds layers to the base", _PEFT),
    _Setting(
        "kasa_config",
        bool,
        "",
        ("LORA",),
        "it removes the smallest singular values from the base's own weights, so the original base would be lost",
        _MERGE,
    ),
    _Setting(
        "save_only_topk_weights",
        bool,
        "with it peft does not save the trained tensors, so a run could not be resumed",
        ("VBLORA",),
        "the file holds the largest of the trained values and not the trained tensors",
        _MERGE,
    ),
)


def build_peft_config(config: PeftConfig) -> Any:
    """Builds peft's own configuration object.

    Raises:
        ConfigError: The method or a field is unknown, peft refuses a value, or peft is not installed.
    """
    # A copy, because peft changes lists in its configuration in place.
    peft_type, given = config.peft_type, copy.deepcopy(config.fields)
    if peft_type in _REFUSED:
        raise ConfigError(Problem(FIELD, f"{peft_type} cannot be used here: {_REFUSED[peft_type]}."))
    known = peft_fields(peft_type).keys() - SET_BY_LAMINA
    problems = [_unknown(peft_type, key, given[key], known) for key in sorted(given.keys() - known)]
    if problems:
        raise ConfigError(problems)
    given = {key: _nested(peft_type, key, value) for key, value in given.items()}
    try:
        return _config_class(peft_type)(**given, task_type="CAUSAL_LM")
    except ImportError as error:
        raise ConfigError(Problem(FIELD, f"peft needs another package for {peft_type}: {error}")) from error
    except (ValueError, TypeError, AttributeError) as error:
        raise ConfigError(Problem("method", f"peft refuses these settings: {error}")) from error


def peft_fields(peft_type: str) -> dict[str, Any]:
    """Lists the fields of a method's configuration class in peft, with their defaults.

    Raises:
        ConfigError: There is no such method, or peft is not installed.
    """
    fields = {}
    for field in dataclasses.fields(_config_class(peft_type)):
        made = field.default_factory
        fields[field.name] = field.default if made is dataclasses.MISSING else made()
    return fields


def peft_types() -> list[str]:
    """Lists the names of all methods of the installed peft.

    Raises:
        ConfigError: peft is not installed.
    """
    return sorted(kind.value for kind in _peft().PEFT_TYPE_TO_CONFIG_MAPPING)


def has_layers(peft_type: str) -> bool:
    """Whether a method is implemented in peft's layers alone, so that its adapters can be loaded."""
    return peft_type not in _REFUSED


def check_trainable(config: PeftConfig) -> None:
    """Checks that a method can be trained with these fields, and that their values have peft's types.

    Raises:
        ConfigError: The method or a field is not supported, or a value has the wrong type.
    """
    peft_type, given = config.peft_type, config.fields
    reason = (_REFUSED | _REFUSED_IN_TRAINING).get(peft_type)
    if reason is not None:
        raise ConfigError(Problem(FIELD, f"{peft_type} cannot be trained here: {reason}.", _instead(peft_type, given)))
    for setting in _concerned(peft_type, given):
        if setting.reason:
            message = f"{given[setting.key]!r} cannot be trained through peft: {setting.reason}."
            raise ConfigError(Problem(f"method.{setting.key}", message, _without(peft_type, setting.key)))
    known = peft_fields(peft_type).keys() - SET_BY_LAMINA
    problems = [_mistyped(peft_type, key, given[key]) for key in sorted(given.keys() & known)]
    if any(problems):
        raise ConfigError([problem for problem in problems if problem is not None])


def check_loadable(peft_type: str, given: Mapping[str, Any]) -> None:
    """Checks that an adapter of a method with these fields can be loaded through peft.

    Raises:
        AdapterError: The method or a field is not supported.
    """
    if peft_type in _REFUSED:
        raise AdapterError(f"the adapter's peft_type {peft_type} cannot be loaded: {_REFUSED[peft_type]}.")
    for setting in _concerned(peft_type, given):
        if setting.unloadable:
            what = f"{setting.key}={given[setting.key]!r}"
            raise AdapterError(
                f"the adapter was trained with {what} and cannot be loaded: {setting.unloadable}. Fix: {setting.fix}."
            )


def _concerned(peft_type: str, given: Mapping[str, Any]) -> list[_Setting]:
    return [
        setting
        for setting in _SETTINGS
        if (not setting.types or peft_type in setting.types)
        and given.get(setting.key) is not None
        and setting.refused(given[setting.key])
    ]


def converted_tensors(model: PreTrainedModel, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Converts an adapter's tensors to transformers' current layout of this model, if they have an earlier layout.

    This is peft's own conversion, which exists for LoRA only. Without peft, or without a known earlier layout, the
    tensors are returned unchanged.
    """
    if importlib.util.find_spec("peft") is None or not any(".lora_" in name for name in tensors):
        return dict(tensors)
    from peft.utils.transformers_weight_conversion import convert_peft_adapter_state_dict_for_transformers

    try:
        return convert_peft_adapter_state_dict_for_transformers(model, _config_class("LORA")(), dict(tensors))
    except (ValueError, KeyError, RuntimeError):  # not an earlier layout after all
        return dict(tensors)


def _unknown(peft_type: str, key: str, value: Any, known: Collection[str]) -> Problem:
    if key in SET_BY_LAMINA:
        return Problem(f"method.{key}", f"{value!r}: lamina sets this field itself.", "remove it")
    message = f"unknown key; the fields of {peft_type} in peft are: {', '.join(sorted(known))}."
    return Problem(f"method.{key}", message, nearest(key, known))


def _mistyped(peft_type: str, key: str, value: Any) -> Problem | None:
    """Checks a value's type, since peft checks no types and fails far from the cause."""
    hint = typing.get_type_hints(_config_class(peft_type))[key]
    try:
        TypeAdapter(hint).validate_python(_nested(peft_type, key, value), strict=True)
    except ValidationError as error:
        reasons = dict.fromkeys(detail["msg"].replace("Input should be", "must be") for detail in error.errors())
        return Problem(f"method.{key}", f"got {value!r}; {', or '.join(reasons)}.")
    return None


def _nested(peft_type: str, key: str, value: Any) -> Any:
    """Converts a mapping to the configuration object that peft expects in this field; other values are unchanged."""
    hint = typing.get_type_hints(_config_class(peft_type))[key]
    members = (hint, *typing.get_args(hint))
    kinds = [member for member in members if dataclasses.is_dataclass(member)]
    if not isinstance(value, Mapping) or dict in members or len(kinds) != 1:
        return value
    try:
        return typing.cast("type[Any]", kinds[0])(**value)
    except (TypeError, ValueError):
        return value  # `_mistyped` reports the error


def _instead(peft_type: str, given: Mapping[str, Any]) -> str:
    """Suggests a replacement for a method that cannot be trained through peft."""
    own = METHOD_CONFIGS.get(peft_type.lower())
    if own is not None:
        more = sorted(given.keys() - own.model_fields.keys() - SET_BY_LAMINA)
        without = f", which has no {', '.join(more)}" if more else ""
        return f"use lamina's own, `type: {peft_type.lower()}`{without}"
    prompts = [name for name in ("prompt_tuning", "prefix_tuning", "p_tuning") if name in METHOD_CONFIGS]
    if peft_type in ("CARTRIDGE", "CPT", "MULTITASK_PROMPT_TUNING", "PREFIX_TUNING", "PROMPT_TUNING", "P_TUNING"):
        return f"use one of lamina's own of that kind: {', '.join(prompts)}" if prompts else ""
    return ""


def _without(peft_type: str, key: str) -> str:
    own = METHOD_CONFIGS.get(peft_type.lower())
    if own is not None and key in own.model_fields:
        return f"use lamina's own, `type: {peft_type.lower()}`, which has {key}; or leave it out"
    return "leave it out"


def _config_class(peft_type: str) -> Any:
    classes = {kind.value: cls for kind, cls in _peft().PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    if peft_type not in classes:
        names = peft_types()
        hint = nearest(peft_type, names)
        raise ConfigError(Problem(FIELD, f"{peft_type!r} is not one of {', '.join(names)}.", hint))
    return classes[peft_type]


def _peft() -> ModuleType:
    try:
        import peft
    except ImportError:
        raise ConfigError(
            Problem(
                "method.type", "'peft' needs the package peft, which is not installed.", "pip install 'lamina[peft]'"
            )
        ) from None
    return peft
