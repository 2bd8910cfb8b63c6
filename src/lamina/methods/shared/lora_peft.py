"""LoRA's settings in HF peft's `adapter_config.json`: written, and read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from lamina.config.methods.lora import LoraConfig
from lamina.errors import AdapterError
from lamina.methods.shared.linears import refuse_unknown, with_defaults
from lamina.methods.shared.peft_types import PLAIN_INITS

_READ_FIELDS = {
    "alpha_pattern",
    "bias",
    "ensure_weight_tying",
    "exclude_modules",
    "layers_pattern",
    "layers_to_transform",
    "lora_alpha",
    "lora_dropout",
    "modules_to_save",
    "r",
    "rank_pattern",
    "target_modules",
    "target_parameters",
    "trainable_token_indices",
    "use_dora",
    "use_rslora",
}

# Fields of peft's LoraConfig that describe an adapter's origin or its initialization, and do not change its output.
_NO_EFFECT_FIELDS = {
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",
    "eva_config",
    "fan_in_fan_out",
    "inference_mode",
    "loftq_config",
    "lora_ga_config",
    "megatron_core",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "task_type",
}

# Initializations whose part of W peft subtracts again when it loads an adapter. Those that are neither here nor in
# `PLAIN_INITS` change W in a way that the adapter's files do not record.
_SHIFTED_INITS = ("pissa", "olora")


def lora_peft_config(config: LoraConfig, target_modules: list[str], base_ref: str) -> dict[str, Any]:
    """Builds the content of the file.

    Args:
        config: The configuration as it is saved.
        target_modules: Names that select the adapted modules, for `all-linear`.
        base_ref: Where peft finds the base.
    """
    everywhere = config.target_modules == "all-linear"  # then `target_modules` already reflects all selections
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_ref,
        "r": config.r,
        "lora_alpha": config.lora_alpha,
        "lora_dropout": 0.0 if config.target_parameters else config.lora_dropout,  # peft has none on parameters
        "target_modules": target_modules if everywhere else config.target_modules,
        "target_parameters": config.target_parameters,
        "exclude_modules": None if everywhere else config.exclude_modules,
        "layers_to_transform": None if everywhere else config.layers_to_transform,
        "layers_pattern": None if everywhere else config.layers_pattern,
        "use_rslora": config.use_rslora,
        "use_dora": config.use_dora,
        "bias": config.bias,
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "modules_to_save": config.modules_to_save,
        "trainable_token_indices": config.trainable_token_indices,
        "ensure_weight_tying": config.ensure_weight_tying,
        "rank_pattern": config.rank_pattern,
        "alpha_pattern": config.alpha_pattern,
        "inference_mode": True,
    }


def lora_from_peft(peft_config: Mapping[str, Any]) -> LoraConfig:
    """Reads the settings.

    Raises:
        AdapterError: The file uses a feature of peft that would change the output and is not supported.
    """
    complete = with_defaults(peft_config, ["r", "lora_alpha", "target_modules"])
    init = peft_config.get("init_lora_weights", True)
    known = _READ_FIELDS | _NO_EFFECT_FIELDS
    if init in PLAIN_INITS or init in _SHIFTED_INITS:
        known = known | {"init_lora_weights"}
    refuse_unknown(LoraConfig.title, peft_config, known)
    if not complete["target_modules"] and not complete.get("target_parameters"):
        raise AdapterError("its adapter_config.json has no target_modules.")
    values = {key: complete[key] for key in _READ_FIELDS if complete.get(key) not in (None, {}, [], "")}
    values.setdefault("target_modules", [])
    values["init_lora_weights"] = init if init in _SHIFTED_INITS else True
    if values.get("lora_dropout", 0.0) >= 1.0:  # dropout only matters in training
        values["lora_dropout"] = 0.0
    try:
        return LoraConfig.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise AdapterError(f"the adapter's configuration: {where or 'fields'}: {first['msg']}.") from None
