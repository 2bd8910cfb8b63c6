"""Loads a base model and its tokenizer from a folder, frozen, in the dtype that suits the machine."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from lamina.errors import ModelError
from lamina.models.fingerprint import BaseFingerprint, fingerprint_base, weight_files
from lamina.models.machine import choose_dtype, default_device
from lamina.models.quiet import quiet_transformers
from lamina.models.source import ModelSource, Notify, find_model


@dataclass(frozen=True)
class Base:
    """A frozen base model.

    Attributes:
        model: A transformers causal language model in evaluation mode; no parameter asks for a gradient.
        tokenizer: Its tokenizer.
        source: Where it came from.
        dtype: What its weights are held in.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    source: ModelSource
    dtype: torch.dtype

    @cached_property
    def fingerprint(self) -> BaseFingerprint:
        """Digests of its tensors and config, as they lie on disk."""
        return fingerprint_base(self.source.folder)


def load_base(
    ref: str,
    dtype: str = "auto",
    device: torch.device | None = None,
    notify: Notify = lambda message: None,
) -> Base:
    """Loads a base model.

    Args:
        ref: An alias, a folder, a `.gguf` file, or a hub id.
        dtype: `auto`, `bfloat16` or `float32`.
        device: Where to put it; by default CUDA if there is one.
        notify: Called with a sentence before anything that takes a while.

    Raises:
        ConfigError: Nothing of that name can exist.
        ModelError: It cannot be fetched or read, or it is no causal language model.
    """
    source = find_model(ref, notify)
    device = device or default_device()
    chosen = choose_dtype(dtype, device)
    tokenizer = load_tokenizer(source)
    weight_files(source.folder)
    try:
        with quiet_transformers():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                source.folder,
                dtype=chosen,
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
            )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"{source.folder}: cannot be loaded as a causal language model: {error}") from error
    model, info = loaded
    missing = sorted(info["missing_keys"])
    if missing:
        raise ModelError(
            f"{source.folder}: {len(missing)} weights are missing from its files (first: {missing[0]}). "
            "Fix: fetch the model again; it is incomplete."
        )
    model.requires_grad_(False)
    return Base(model.to(device).eval(), tokenizer, source, chosen)


def load_tokenizer(source: ModelSource) -> PreTrainedTokenizerBase:
    """Loads a model's tokenizer alone, which takes no time.

    Raises:
        ModelError: There is none, or it cannot be read.
    """
    try:
        AutoConfig.from_pretrained(source.folder, local_files_only=True)
        with quiet_transformers():
            return AutoTokenizer.from_pretrained(source.folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{source.folder}: its config or tokenizer cannot be loaded: {error}") from error
