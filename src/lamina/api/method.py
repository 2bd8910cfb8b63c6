"""The `method` of `lamina.train`: a name, settings, or a configuration of peft."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lamina.config import MethodConfig
from lamina.config.peft_objects import is_peft_config, method_config_from_lora, method_config_from_peft, plain
from lamina.errors import ConfigError, Problem


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
    if isinstance(method, type):
        message = f"{method.__name__} is a class, not a configuration"
        raise ConfigError(Problem("method", message, f"call it: {method.__name__}(...)"))
    if is_peft_config(method):
        return method_config_from_peft(method, _default_targets(str(plain(method.peft_type)), model_type))
    if isinstance(method, Mapping):
        return dict(method)
    if hasattr(method, "peft_type") and hasattr(method, "to_dict"):  # `lamina.compat.peft.LoraConfig`
        content: Any = method
        return method_config_from_lora(content.to_dict(), _default_targets("LORA", model_type))
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


def _default_targets(peft_type: str, model_type: str | None) -> list[str] | None:
    """What peft itself chooses for a kind of model; None where it names nothing, or no plain names."""
    if importlib.util.find_spec("peft") is None or model_type is None or peft_type == "IA3":
        return None  # IA3 needs to know more of each module than its name, which lamina's own defaults do
    from peft.utils import constants

    found = getattr(constants, f"TRANSFORMERS_MODELS_TO_{peft_type}_TARGET_MODULES_MAPPING", {}).get(model_type)
    return None if found is None or isinstance(found, str) else list(found)
