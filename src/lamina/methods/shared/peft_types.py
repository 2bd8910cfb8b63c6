"""What the installed HF peft offers: its methods, their fields, and which of them cannot be had through lamina's loop.

The one place where peft itself is imported, apart from the modules that handle its layers once it is there.
"""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import typing
from collections.abc import Callable, Collection, Mapping
from enum import Enum
from types import ModuleType
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from transformers import PreTrainedModel

from lamina.config import METHOD_CONFIGS
from lamina.config.methods.peft import PeftConfig
from lamina.errors import AdapterError, ConfigError, Problem, nearest

FIELD = "method.peft_type"

# Fields of every peft configuration that say where an adapter came from, or what it is used for.
SET_BY_LAMINA = frozenset(
    ("peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode")
)

# peft's name -> why its method cannot be trained in this loop. An adapter of it can be loaded.
_REFUSED_IN_TRAINING = {
    "ADALORA": "its budget, its penalty and its pruned ranks live in peft's model and not in its layers",
}

# peft's name -> why its method can neither be trained nor loaded, where lamina has none of the same name.
_REFUSED = {
    "ADAPTION_PROMPT": "it replaces whole attention modules, by code that does not know packed documents",
    "CARTRIDGE": "its prefix is distilled from a text corpus by a training loop of its own",
    "CPT": "its loss weighs tokens by a mask that comes with each example",
    "MULTITASK_PROMPT_TUNING": "it asks for a task number with each example",
    "POLY": "it asks for a task number with each example",
    "PREFIX_TUNING": "it puts tokens before the prompt, in peft's model and not in its layers",
    "PROMPT_TUNING": "it puts tokens before the prompt, in peft's model and not in its layers",
    "P_TUNING": "it puts tokens before the prompt, in peft's model and not in its layers",
    "SHADOW": "it runs a second network beside the model, in hooks around the whole of it",
    "XLORA": "it mixes LoRA adapters that were trained before",
}


@dataclasses.dataclass(frozen=True)
class _Setting:
    """A value that cannot be honoured.

    Attributes:
        key: The field.
        refused: Whether a value of it is meant.
        reason: Why it cannot be trained; empty where it can, which is found out on the model.
        types: Of which of peft's methods; empty for all.
        unloadable: Why an adapter that was trained with it cannot be loaded; empty where it can.
        fix: What to do with such an adapter.
    """

    key: str
    refused: Callable[[Any], bool]
    reason: str
    types: tuple[str, ...] = ()
    unloadable: str = ""
    fix: str = ""


# Beginnings of LoRA that leave no trace in what is saved.
PLAIN_INITS = (True, False, "gaussian", "orthogonal", "eva", "mica")

_PEFT = "use it with peft's own `PeftModel`"
_MERGE = "fold it in with peft (`merge_and_unload`, then `save_pretrained`) and use that folder as a model"

_SETTINGS = (
    _Setting(
        "bias",
        lambda v: v != "none",
        "peft trains the base's own biases in place, so the base would be lost",
    ),
    _Setting(
        "use_asa",
        bool,
        "its importance scores are kept by a callback of transformers' Trainer and not saved, so that no run could be "
        "resumed",
        ("ADAMSS",),
    ),
    _Setting(
        "init_lora_weights",
        lambda v: v in ("eva", "lora_ga", "corda"),
        "this initialisation reads data through functions of peft's own before training",
        ("LORA",),
    ),
    _Setting(
        "init_lora_weights",
        lambda v: v not in PLAIN_INITS,
        "",
        ("LORA",),
        "training began by moving a part of the base's weights into the adapter, and the file does not say which",
        "save it again where it was trained, by peft's `save_pretrained(..., path_initial_model_for_weight_conversion="
        "...)`, which makes a plain LoRA of it",
    ),
    _Setting(
        "alora_invocation_tokens",
        bool,
        "peft's model applies it, not its layers",
        ("LORA",),
        "it acts on the tokens after these alone, which peft's model sees to and not its layers",
        _PEFT,
    ),
    _Setting("layer_replication", bool, "it adds layers to the base", ("LORA",), "it adds layers to the base", _PEFT),
    _Setting(
        "kasa_config",
        bool,
        "",
        ("LORA",),
        "it cuts the smallest singular values off the base's own weights, so that the bare base would be lost",
        _MERGE,
    ),
    _Setting(
        "save_only_topk_weights",
        bool,
        "what is saved then are not the trained tensors, and no run goes on",
        ("VBLORA",),
        "what was saved are the largest of the trained numbers and not the trained tensors",
        _MERGE,
    ),
)


def build_peft_config(config: PeftConfig) -> Any:
    """peft's own configuration object.

    Raises:
        ConfigError: The method or a field is unknown, peft refuses a value, or peft is not installed.
    """
    # A copy, because peft changes lists of its configuration in place.
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
    """The fields of a method's configuration class in peft, with their defaults.

    Raises:
        ConfigError: There is no such method, or peft is not installed.
    """
    fields = {}
    for field in dataclasses.fields(_config_class(peft_type)):
        made = field.default_factory
        fields[field.name] = field.default if made is dataclasses.MISSING else made()
    return fields


def peft_types() -> list[str]:
    """The names of all methods of the installed peft.

    Raises:
        ConfigError: peft is not installed.
    """
    return sorted(kind.value for kind in _peft().PEFT_TYPE_TO_CONFIG_MAPPING)


def has_layers(peft_type: str) -> bool:
    """Whether a method is all in peft's layers, or in such as can be loaded through lamina."""
    return peft_type not in _REFUSED


def check_trainable(config: PeftConfig) -> None:
    """Checks that a method can be trained with these fields, and that these are of peft's types.

    Raises:
        ConfigError: It cannot, or they are not.
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
        AdapterError: It cannot.
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
    """An adapter's tensors as transformers lays out this model now, if it was trained on an earlier layout.

    So does peft, for LoRA alone. Without peft, or where nothing is known of an earlier layout, they stay as they are.
    """
    if importlib.util.find_spec("peft") is None or not any(".lora_" in name for name in tensors):
        return dict(tensors)
    from peft.utils.transformers_weight_conversion import convert_peft_adapter_state_dict_for_transformers

    try:
        return convert_peft_adapter_state_dict_for_transformers(model, _config_class("LORA")(), dict(tensors))
    except (ValueError, KeyError, RuntimeError):  # no such layout after all
        return dict(tensors)


def plain(value: Any) -> Any:
    """A value of peft's configuration as JSON holds it."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, set | frozenset):
        return sorted(value)
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return value


def _unknown(peft_type: str, key: str, value: Any, known: Collection[str]) -> Problem:
    if key in SET_BY_LAMINA:
        return Problem(f"method.{key}", f"{value!r} is not for you to choose.", "remove it")
    message = f"unknown key; {peft_type} has in peft: {', '.join(sorted(known))}."
    return Problem(f"method.{key}", message, nearest(key, known))


def _mistyped(peft_type: str, key: str, value: Any) -> Problem | None:
    """What is wrong with a value's type: peft checks no types, and fails far from the cause."""
    hint = typing.get_type_hints(_config_class(peft_type))[key]
    try:
        TypeAdapter(hint).validate_python(_nested(peft_type, key, value), strict=True)
    except ValidationError as error:
        reasons = dict.fromkeys(detail["msg"].replace("Input should be", "must be") for detail in error.errors())
        return Problem(f"method.{key}", f"got {value!r}; {', or '.join(reasons)}.")
    return None


def _nested(peft_type: str, key: str, value: Any) -> Any:
    """A field's value, with a mapping made the configuration object that peft wants there."""
    hint = typing.get_type_hints(_config_class(peft_type))[key]
    members = (hint, *typing.get_args(hint))
    kinds = [member for member in members if dataclasses.is_dataclass(member)]
    if not isinstance(value, Mapping) or dict in members or len(kinds) != 1:
        return value
    try:
        return typing.cast("type[Any]", kinds[0])(**value)
    except (TypeError, ValueError):
        return value  # what is wrong with it is said by the check of its type


def _instead(peft_type: str, given: Mapping[str, Any]) -> str:
    """What to do in the place of a method that cannot be trained through peft; lamina's own only where it has all."""
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
