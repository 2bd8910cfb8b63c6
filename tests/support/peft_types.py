"""A configuration of each method of the installed peft."""

from __future__ import annotations

from typing import Any

from lamina.config.methods.peft import PeftConfig

QV: dict[str, Any] = {"target_modules": ["q_proj", "v_proj"]}

# Fields with which each method fits a model of width 48.
FIELDS: dict[str, dict[str, Any]] = {
    "BEFT": {},
    "BOFT": QV | {"boft_block_size": 4},
    "C3A": QV | {"block_size": 4},
    "DEFT": QV | {"r": 4},
    "DELORA": QV | {"r": 4},
    "FOURIERFT": QV | {"n_frequency": 50, "scaling": 1.0},
    "FROD": QV,
    "GLORA": QV | {"r": 4},
    "GRALORA": QV | {"r": 4, "gralora_k": 2, "alpha": 8},
    "HIRA": QV | {"r": 4},
    "HRA": QV | {"r": 4},
    "IA3": QV | {"feedforward_modules": []},
    "LILY": QV | {"r": 4},
    "LN_TUNING": {},
    "LOHA": QV | {"r": 4},
    "LOKR": QV | {"r": 4},
    "LORA": QV | {"r": 4, "lora_bias": True},
    "MISS": QV | {"r": 4},
    "OFT": QV | {"oft_block_size": 4},
    "OSF": QV,
    "PEANUT": QV | {"r": 4},
    "PSOFT": QV | {"r": 4},
    "PVERA": QV | {"r": 8},
    "RANDLORA": QV | {"r": 4},
    "ROAD": QV | {"group_size": 8},
    "SHIRA": QV | {"r": 2},
    "SUPERTUNING": QV,
    "TINYLORA": QV,
    "TRAINABLE_TOKENS": {"token_indices": [5, 9, 17]},
    "UNILORA": QV | {"r": 4, "theta_d_length": 64},
    "VBLORA": QV | {"r": 4, "num_vectors": 16, "vector_length": 4},
    "VERA": QV | {"r": 8},
    "WAVEFT": QV | {"n_frequency": 48},
}


def config_of(peft_type: str, **more: Any) -> PeftConfig:
    return PeftConfig.model_validate({"type": "peft", "peft_type": peft_type} | FIELDS.get(peft_type, {}) | more)
