"""Loads a model folder with transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from lamina.errors import LaminaError, ModelError
from lamina.machine.quiet import quiet_transformers
from lamina.models.architecture import check_architecture, check_weights, not_a_language_model
from lamina.models.remote_code import is_allowed
from lamina.progress import Notify


def read_model(
    folder: Path, dtype: torch.dtype, notify: Notify = lambda message: None, **settings: Any
) -> PreTrainedModel:
    """Loads a causal language model from its folder.

    Args:
        folder: The folder with config.json and safetensors.
        dtype: The dtype of the weights in memory.
        notify: Called with notes on weights in the files that are not loaded.
        settings: More arguments for `from_pretrained`.

    Raises:
        ModelError: The model cannot be loaded, is not a causal language model, or its weights do not fit.
    """
    check_architecture(folder)
    try:
        with quiet_transformers():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=dtype,
                local_files_only=True,
                trust_remote_code=is_allowed(folder),
                use_safetensors=True,
                output_loading_info=True,
                **settings,
            )
    except LaminaError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        if str(error).startswith("Unrecognized configuration class"):
            raise ModelError(not_a_language_model(folder)) from error
        raise ModelError(f"{folder}: cannot be loaded as a causal language model: {error}") from error
    model, info = loaded
    for note in check_weights(folder, model, info["missing_keys"], info["unexpected_keys"]):
        notify(note)
    return model


def skeleton(folder: Path) -> PreTrainedModel:
    """Builds the model without its weights, on the meta device."""
    code = is_allowed(folder)
    with torch.device("meta"), quiet_transformers():
        return AutoModelForCausalLM.from_config(
            AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=code), trust_remote_code=code
        )
