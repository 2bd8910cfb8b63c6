"""Creates models of real shapes with random weights; the cost of a step does not depend on their values."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from filelock import FileLock
from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig, PreTrainedConfig

from lamina import files
from lamina.cache.folder import cache_folder, hold, writing_cache
from lamina.machine.quiet import quiet_transformers
from lamina.machine.seeding import seeded
from lamina.models.source import find_model
from lamina.progress import Notify

# The tokenizer for all shapes; token ids are taken modulo the shape's vocabulary size.
TOKENIZER = "smollm2-135m"

_VERSION = "1"
_TOKENIZER_FILES = ("tokenizer*", "special_tokens_map.json", "chat_template.jinja")


def _gemma_3_270m() -> PreTrainedConfig:
    full = "full_attention"
    return Gemma3TextConfig(
        vocab_size=262144,
        hidden_size=640,
        intermediate_size=2048,
        num_hidden_layers=18,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=256,
        query_pre_attn_scalar=256,
        sliding_window=512,
        layer_types=[full if (layer + 1) % 6 == 0 else "sliding_attention" for layer in range(18)],
        max_position_embeddings=32768,
        tie_word_embeddings=True,
    )


def _tinyllama() -> PreTrainedConfig:
    return LlamaConfig(
        vocab_size=32000,
        hidden_size=2048,
        intermediate_size=5632,
        num_hidden_layers=22,
        num_attention_heads=32,
        num_key_value_heads=4,
        max_position_embeddings=2048,
    )


def _tiny() -> PreTrainedConfig:
    return LlamaConfig(
        vocab_size=1024,
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
    )


# `tiny` runs in seconds, to try the command; its figures are meaningless.
SHAPES: dict[str, Callable[[], PreTrainedConfig]] = {
    "gemma-3-270m": _gemma_3_270m,
    "tinyllama-1.1b": _tinyllama,
    "tiny": _tiny,
}


def shape_folder(name: str, seed: int, notify: Notify) -> Path:
    """Returns the folder of a model of a shape in the user's cache; the model is created on first use.

    Args:
        name: One of `SHAPES`.
        seed: Seed of the weights.
        notify: Called with a message before anything that takes a while.
    """
    folder = cache_folder() / "shapes" / f"{name}-{seed}-v{_VERSION}"
    hold(folder)
    if folder.is_dir():
        return folder
    with writing_cache(folder, "writing"):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not folder.is_dir():
                notify(f"Making a {name} with random weights, once ...")
                write_model(folder, SHAPES[name](), seed)
    return folder


def write_model(folder: Path, config: PreTrainedConfig, seed: int) -> None:
    """Writes a model with random weights in bfloat16, and a tokenizer, atomically.

    Raises:
        StorageError: Nothing was written.
    """
    tokenizer = find_model(TOKENIZER).folder
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(config, name, None)
    with seeded(seed), quiet_transformers(), files.new_folder(folder) as aside:
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        model.save_pretrained(aside)
        for pattern in _TOKENIZER_FILES:
            for path in tokenizer.glob(pattern):
                shutil.copy(path, aside)
