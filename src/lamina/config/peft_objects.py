"""From a configuration object of HF peft, as scripts make it, to the settings of lamina's `method:` section.

    peft.LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj"])
    becomes {"type": "lora", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj"], ...}

lamina's own method is taken where it has every setting that is in force, and otherwise `type: peft`, which has them
all. The object's values are taken as they are, peft's defaults included. What it leaves open (`target_modules=None`) is
lamina's default.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from enum import Enum
from typing import TYPE_CHECKING, Any, TypeGuard

from pydantic import ValidationError

from lamina.config.methods import METHOD_CONFIGS, MethodConfig
from lamina.errors import ConfigError, Problem

if TYPE_CHECKING:
    from peft import PeftConfig

# Fields about an adapter's origin, its use or how peft runs it, which say nothing about what is trained.
ABOUT = frozenset(
    (
        "peft_type",
        "task_type",
        "auto_mapping",
        "peft_version",
        "base_model_name_or_path",
        "revision",
        "inference_mode",
        "runtime_config",
    )
)

# What peft fills in itself when it sees the model.
_OF_THE_MODEL = ("token_dim", "num_transformer_submodules", "num_attention_heads", "num_layers")

# peft's defaults for `LoraConfig`, of the fields that lamina's own LoRA has or whose default is more than "off".
_LORA_DEFAULTS: dict[str, Any] = {
    "r": 8,
    "lora_alpha": 8,
    "lora_dropout": 0.0,
    "bias": "none",
    "init_lora_weights": True,
    "use_rslora": False,
    "use_dora": False,
    "ensure_weight_tying": False,
    "target_modules": None,
    "megatron_core": "megatron.core",
    "qalora_group_size": 16,
}

# lamina quantizes with the settings of its own `quantization:` section.
_LOFTQ_BITS = ("loftq_config", "loftq_bits", 4)


def is_peft_config(value: object) -> TypeGuard[PeftConfig]:
    """Whether a value is a configuration of peft's. It is found without importing peft, which made it if it is one."""
    peft = sys.modules.get("peft")
    return peft is not None and isinstance(value, peft.PeftConfig)


def method_config_from_peft(config: PeftConfig, default_targets: str | list[str] | None = None) -> dict[str, Any]:
    """Converts a configuration of peft's to the settings of a `method:` section.

    Args:
        config: Any of peft's configurations, such as `peft.LoraConfig`.
        default_targets: What `target_modules` are where the object leaves them open; None is lamina's default.

    Returns:
        Plain data, `type` first. `load_config` checks it, like any other section.

    Raises:
        ConfigError: It is for another task than causal language modeling.
    """
    return _settings(config.peft_type, config.task_type, _values(config), _defaults(config), default_targets)


def method_config_from_lora(
    content: Mapping[str, Any], default_targets: str | list[str] | None = None
) -> dict[str, Any]:
    """Converts the fields of peft's `LoraConfig`, where the object itself is not at hand: peft may not be installed.

    Args:
        content: Its fields, all or those that were set; others have peft's defaults.
        default_targets: As for `method_config_from_peft`.

    Returns:
        The same as for the object.

    Raises:
        ConfigError: It is for another task than causal language modeling.
    """
    given = {key: plain(value) for key, value in content.items() if key not in ABOUT}
    given = {**_LORA_DEFAULTS, **given}
    defaults = {**{key: value for key, value in given.items() if _is_off(value)}, **_LORA_DEFAULTS}
    return _settings("LORA", content.get("task_type"), given, defaults, default_targets)


def _settings(
    peft_type: object,
    task: object,
    given: dict[str, Any],
    defaults: Mapping[str, Any],
    default_targets: str | list[str] | None,
) -> dict[str, Any]:
    peft_type, task = str(plain(peft_type)), plain(task)
    if task not in (None, "CAUSAL_LM", "SEQ_CLS"):
        message = f"{task!r}: lamina trains causal language models, and heads on them (SEQ_CLS)."
        raise ConfigError(Problem("method.task_type", message, "use CAUSAL_LM"))
    if given.get("target_modules", ()) is None:
        given["target_modules"] = default_targets
    changed = {key: value for key, value in given.items() if value is not None and value != defaults.get(key)}
    own = METHOD_CONFIGS.get(peft_type.lower())
    settings: dict[str, Any] = {"type": "peft", "peft_type": peft_type, **changed}
    if own is not None:
        of_own = _own_settings(own, peft_type.lower(), given, changed)
        settings = of_own if _accepts(own, of_own) else settings
    return {**settings, "task_type": task} if task == "SEQ_CLS" else settings


def plain(value: Any) -> Any:
    """Converts a value of peft's configuration to its JSON form."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, set | frozenset):
        return sorted(value)
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return value


def _values(config: PeftConfig) -> dict[str, Any]:
    values = {}
    for field in dataclasses.fields(config):
        if field.name in ABOUT or field.name in _OF_THE_MODEL:
            continue
        value = getattr(config, field.name)
        values[field.name] = _without_defaults(value) if dataclasses.is_dataclass(value) else plain(value)
    return values


def _is_off(value: object) -> bool:
    """Whether a value asks for nothing. 0 may ask for something: it is a layer, or a rank that is refused."""
    return value is None or value is False or (isinstance(value, dict | list | str) and not value)


def _without_defaults(config: Any) -> dict[str, Any]:
    """A nested configuration, such as EVA's, as what was set in it."""
    defaults = _defaults(config)
    values = {field.name: plain(getattr(config, field.name)) for field in dataclasses.fields(config)}
    return {key: value for key, value in values.items() if value != defaults.get(key)}


def _defaults(config: Any) -> dict[str, Any]:
    defaults = {}
    for field in dataclasses.fields(config):
        made = field.default_factory
        default = field.default if made is dataclasses.MISSING else made()
        defaults[field.name] = None if default is dataclasses.MISSING else plain(default)
    return defaults


def _own_settings(
    own: type[MethodConfig], name: str, given: Mapping[str, Any], changed: Mapping[str, Any]
) -> dict[str, Any]:
    """All of the object's values for fields of lamina's own method, and those of other fields that were changed."""
    settings: dict[str, Any] = {"type": name}
    for key, value in given.items():
        if key in own.model_fields:
            is_open = value is None or (key not in changed and value in ({}, []))
            if not is_open:
                settings[key] = value
        elif key in changed:
            settings[key] = value
    field, part, default = _LOFTQ_BITS
    loftq = settings.get(field)
    if isinstance(loftq, dict) and loftq.get(part) == default:
        settings[field] = {key: value for key, value in loftq.items() if key != part}
    return settings


def _accepts(own: type[MethodConfig], settings: Mapping[str, Any]) -> bool:
    try:
        own.model_validate(settings)
    except ValidationError:
        return False
    return True
