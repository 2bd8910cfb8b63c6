"""What the installed HF peft offers: its methods, their fields, and which of them cannot be had through lamina's loop.

The one place where peft itself is imported, apart from the modules that handle its layers once it is there.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Mapping
from enum import Enum
from types import ModuleType
from typing import Any

from pydantic import TypeAdapter, ValidationError

from lamina.config import METHOD_CONFIGS
from lamina.config.methods.peft import PeftConfig
from lamina.errors import ConfigError, Problem, nearest

FIELD = "method.peft_type"

# Fields of every peft configuration that say where an adapter came from, or what it is used for.
SET_BY_LAMINA = frozenset(
    ("peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode")
)

# peft's name -> why its method cannot run in this loop, where lamina has none of the same name.
_REFUSED = {
    "ADALORA": "its budget, its penalty and its pruned ranks live in peft's model and not in its layers",
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
        reason: Why.
        types: Of which of peft's methods; empty for all.
    """

    key: str
    refused: Callable[[Any], bool]
    reason: str
    types: tuple[str, ...] = ()


_SETTINGS = (
    _Setting("bias", lambda v: v != "none", "peft trains the base's own biases in place, so the base would be lost"),
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
    _Setting("alora_invocation_tokens", bool, "peft's model applies it, not its layers", ("LORA",)),
    _Setting("layer_replication", bool, "it adds layers to the base", ("LORA",)),
    _Setting(
        "save_only_topk_weights",
        bool,
        "what is saved then are not the trained tensors, and no run goes on",
        ("VBLORA",),
    ),
)


def build_peft_config(config: PeftConfig) -> Any:
    """peft's own configuration object, with every field checked.

    Raises:
        ConfigError: The method or a field is unknown, a value cannot be honoured, or peft is not installed.
    """
    peft_type, given = config.peft_type, config.fields
    known = peft_fields(peft_type)
    _point_to_own(peft_type, given)
    reason = refusal(peft_type, given)
    if reason is not None:
        raise ConfigError(Problem(FIELD, f"{peft_type} cannot be trained here: {reason}.", _instead(peft_type)))
    problems = [problem for key in sorted(given) if (problem := _check(peft_type, key, given[key], known)) is not None]
    if problems:
        raise ConfigError(problems)
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


def refusal(peft_type: str, given: Mapping[str, Any]) -> str | None:
    """Why a method, or a method with these fields, cannot be had through lamina; None if it can."""
    if peft_type in _REFUSED:
        return _REFUSED[peft_type]
    for setting in _SETTINGS:
        concerned = not setting.types or peft_type in setting.types
        if (
            concerned
            and setting.key in given
            and given[setting.key] is not None
            and setting.refused(given[setting.key])
        ):
            return f"{setting.key}={given[setting.key]!r}: {setting.reason}"
    return None


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


def _check(peft_type: str, key: str, value: Any, known: Mapping[str, Any]) -> Problem | None:
    field = f"method.{key}"
    if key in SET_BY_LAMINA:
        return Problem(field, f"{value!r} is not for you to choose.", "remove it")
    if key not in known:
        allowed = sorted(known.keys() - SET_BY_LAMINA)
        return Problem(field, f"unknown key; {peft_type} has in peft: {', '.join(allowed)}.", nearest(key, allowed))
    try:
        # peft checks no types, and fails far from the cause.
        TypeAdapter(typing.get_type_hints(_config_class(peft_type))[key]).validate_python(value, strict=True)
    except ValidationError as error:
        reasons = dict.fromkeys(detail["msg"].replace("Input should be", "must be") for detail in error.errors())
        return Problem(field, f"got {value!r}; {', or '.join(reasons)}.")
    return None


def _point_to_own(peft_type: str, given: Mapping[str, Any]) -> None:
    """lamina's own method is the better one, unless a field is asked for that it does not have."""
    own = METHOD_CONFIGS.get(peft_type.lower())
    if own is not None and not given.keys() - own.model_fields.keys() - SET_BY_LAMINA:
        raise ConfigError(
            Problem(
                FIELD, f"lamina has {own.title} itself, faster than through peft.", f"write `type: {peft_type.lower()}`"
            )
        )


def _instead(peft_type: str) -> str:
    own = peft_type.lower()
    prompts = [name for name in ("prompt_tuning", "prefix_tuning", "p_tuning") if name in METHOD_CONFIGS]
    if own in METHOD_CONFIGS:
        return f"use lamina's own, `type: {own}`"
    if peft_type in ("CARTRIDGE", "CPT", "MULTITASK_PROMPT_TUNING", "PREFIX_TUNING", "PROMPT_TUNING", "P_TUNING"):
        return f"use one of lamina's own of that kind: {', '.join(prompts)}" if prompts else ""
    return ""


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
