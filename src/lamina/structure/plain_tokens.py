"""Ordinary tokens to run a model on, in order to observe what it does."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel


def plain_tokens(model: PreTrainedModel, count: int, seed: int = 0) -> torch.Tensor:
    """Draws token ids (1, count) on the model's device from a seed, without special tokens.

    Special tokens are those that the configuration names: they end a text, pad it, or stand for an image.
    """
    text = model.config.get_text_config()
    special = {*_named(model.config.to_dict()), *_named(text.to_dict())}
    plain = [token for token in range(text.vocab_size) if token not in special] or [0]
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randint(len(plain), (count,), generator=generator)
    return torch.tensor(plain)[chosen][None].to(model.device)


def _named(config: dict[str, Any]) -> set[int]:
    ids: set[int] = set()
    for key, value in config.items():
        if key.endswith(("_token_id", "_token_index")):
            ids.update(value if isinstance(value, list) else [value])
    return ids
