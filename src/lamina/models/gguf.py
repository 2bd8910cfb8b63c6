"""Converts a GGUF file to a transformers folder, dequantised to bfloat16, through transformers' own reader."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from lamina.errors import ModelError
from lamina.models.quiet import quiet_transformers


def convert_gguf(gguf: Path, folder: Path) -> None:
    """Writes config, safetensors and tokenizer of `gguf` into `folder`.

    The weights are stored in bfloat16 on every machine, so that the base's digest is the same everywhere.

    Raises:
        ModelError: transformers cannot read the file.
    """
    try:
        # The GGUF reader draws a bar of its own that no setting switches off.
        with quiet_transformers(), contextlib.redirect_stderr(io.StringIO()):
            model = AutoModelForCausalLM.from_pretrained(
                gguf.parent,
                gguf_file=gguf.name,
                quantization_config=GgufConfig(dequantize=True),
                dtype=torch.bfloat16,
                local_files_only=True,
            )
            tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, local_files_only=True)
    except (OSError, ValueError, KeyError, NotImplementedError) as error:
        raise ModelError(f"{gguf}: transformers cannot read this GGUF file: {error}") from error
    # The plain model that is written is no longer a GGUF one, and no longer quantized.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config  # pyright: ignore[reportAttributeAccessIssue]
    model.config._name_or_path = ""
    with quiet_transformers():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
