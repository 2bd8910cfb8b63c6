"""Reads a model folder through transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from lamina.errors import LaminaError, ModelError
from lamina.models.quiet import quiet_transformers


def read_model(folder: Path, dtype: torch.dtype, **settings: Any) -> PreTrainedModel:
    """A causal language model from its folder.

    Args:
        folder: With config.json and safetensors.
        dtype: What its weights are held in.
        settings: More for `from_pretrained`.

    Raises:
        ModelError: It cannot be read, is no causal language model, or lacks weights.
    """
    try:
        with quiet_transformers():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder, dtype=dtype, local_files_only=True, use_safetensors=True, output_loading_info=True, **settings
            )
    except LaminaError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"{folder}: cannot be loaded as a causal language model: {error}") from error
    model, info = loaded
    missing = sorted(info["missing_keys"])
    if missing:
        raise ModelError(
            f"{folder}: {len(missing)} weights are missing from its files (first: {missing[0]}). "
            "Fix: fetch the model again; it is incomplete."
        )
    return model


def skeleton(folder: Path) -> PreTrainedModel:
    """The model without its weights, on the meta device."""
    with torch.device("meta"), quiet_transformers():
        return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder, local_files_only=True))
