"""The `method` of `lamina.train`: a name, settings, or a configuration of peft."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lamina.config import MethodConfig
from lamina.config.methods.lora import LoraConfig
from lamina.config.peft_objects import is_peft_config, method_config_from_peft, plain
from lamina.errors import ConfigError, Problem

if TYPE_CHECKING:
    pass


# Fields of peft's LoraConfig that say where an adapter is from, not how it is trained.
_ORIGIN = ("auto_mapping", "base_model_name_or_path", "inference_mode", "peft_type", "peft_version", "revision")


def method_values(method: object, model_type: str | None) -> dict[str, Any]:
    """Returns a `method:` section as plain data.

    Args:
        method: A name such as `dora`, settings with a `type`, a `MethodConfig`, a configuration of peft such as
            `peft.LoraConfig`, or the folder of an adapter to start from.
        model_type: The `model_type` in the base model's config.json, for which peft knows default targets.

    Raises:
        ConfigError: It is none of these.
    """
    if isinstance(method, Path):
        return {"from": str(method)}
    if isinstance(method, str):
        return {"type": method}
    if isinstance(method, MethodConfig):
        return {**method.model_dump(mode="json", exclude_unset=True), "type": method.type}
    if is_peft_config(method):
        return method_config_from_peft(method, _default_targets(str(plain(method.peft_type)), model_type))
    if isinstance(method, Mapping):
        return dict(method)
    if hasattr(method, "peft_type") and hasattr(method, "to_dict"):  # `lamina.compat.peft.LoraConfig`
        return _of_lora({key: plain(value) for key, value in method.to_dict().items()}, model_type)
    fix = "give a name such as 'lora', a dictionary such as {'type': 'lora', 'r': 8}, or a peft.LoraConfig"
    raise ConfigError(Problem("method", f"a {type(method).__name__} is no method", fix))


def quantization_values(quantization: object) -> object:
    """Returns a `quantization:` section as plain data.

    Args:
        quantization: A section or settings, returned as they are, or a `BitsAndBytesConfig` of transformers.
    """
    if not hasattr(quantization, "load_in_4bit"):
        return quantization
    given: Any = quantization
    if given.load_in_8bit:
        return {"bits": 8}
    values = {"bits": 4, "quant_type": given.bnb_4bit_quant_type, "double_quant": given.bnb_4bit_use_double_quant}
    # float32 is what transformers takes where nothing was said.
    return {**values, "compute_dtype": "bfloat16"} if "bfloat16" in str(given.bnb_4bit_compute_dtype) else values


def _of_lora(content: dict[str, Any], model_type: str | None) -> dict[str, Any]:
    if not content.get("target_modules") and "target_modules" in content:
        content["target_modules"] = _default_targets("LORA", model_type) or "all-linear"
    kept = {key: value for key, value in content.items() if key not in _ORIGIN}
    off = {key: value for key, value in kept.items() if value not in (None, False, {}, [], "")}
    known = {key: value for key, value in kept.items() if key in LoraConfig.model_fields and key in off}
    known["init_lora_weights"] = content.get("init_lora_weights", True)
    others = {key: value for key, value in off.items() if key not in LoraConfig.model_fields and not _is_idle(key, off)}
    return {"type": "lora", **known, **others}


def _is_idle(key: str, content: Mapping[str, Any]) -> bool:
    """Whether a field of peft has no effect on this adapter: the settings of an initialization that it does not use."""
    if key in ("loftq_config", "eva_config", "corda_config", "lora_ga_config"):
        return content.get("init_lora_weights") != key.removesuffix("_config")
    return key in ("runtime_config", "megatron_core", "qalora_group_size", "fan_in_fan_out")


def _default_targets(peft_type: str, model_type: str | None) -> list[str] | None:
    """What peft itself chooses for a kind of model; None where it names nothing, or no plain names."""
    if importlib.util.find_spec("peft") is None or model_type is None or peft_type == "IA3":
        return None  # IA3 needs to know more of each module than its name, which lamina's own defaults do
    from peft.utils import constants

    found = getattr(constants, f"TRANSFORMERS_MODELS_TO_{peft_type}_TARGET_MODULES_MAPPING", {}).get(model_type)
    return None if found is None or isinstance(found, str) else list(found)
