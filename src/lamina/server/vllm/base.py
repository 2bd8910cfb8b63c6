"""The base as the front needs it: config, tokenizer, template and digests, but no weights, which are vLLM's."""

from __future__ import annotations

import torch
from transformers import GenerationConfig

from lamina.errors import ConfigError, Problem
from lamina.models.architecture import check_architecture
from lamina.models.fingerprint import weight_files
from lamina.models.load import Base, load_tokenizer
from lamina.models.read import skeleton
from lamina.models.source import find_model
from lamina.progress import Notify

# Those that vLLM computes in and that the certificate has a tolerance for.
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def read_base(ref: str, dtype: str, notify: Notify = lambda message: None) -> Base:
    """Reads all of a base but its weights: its model has shapes alone, on the meta device.

    Args:
        ref: An alias, a folder, a `.gguf` file, or a hub id.
        dtype: What vLLM's servers hold it in; one of `DTYPES`.
        notify: Called with a message before anything that takes a while.

    Raises:
        ConfigError: No model can have that name, or the dtype is none of them.
        ModelError: It cannot be read.
    """
    if dtype not in DTYPES:
        raise ConfigError(
            Problem("dtype", f"{dtype!r} is not one of {', '.join(DTYPES)}", "name what vLLM computes in")
        )
    source = find_model(ref, notify)
    tokenizer = load_tokenizer(source)
    weight_files(source.folder)
    check_architecture(source.folder)
    model = skeleton(source.folder).eval().requires_grad_(False)
    if (source.folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(source.folder, local_files_only=True)
    return Base(model, tokenizer, source, DTYPES[dtype])
