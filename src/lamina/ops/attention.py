"""Exact attention over documents laid end to end, through transformers' attention interface.

Registered as `lamina_packed`. Each document attends to itself alone, causally, within a sliding window where the layer
has one; nothing is padded and no mask of the whole sequence exists. A model is switched to it for training by
`packed_attention(model)`, and back to its own implementation afterwards.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AttentionInterface, PreTrainedModel

from lamina.errors import ModelError

NAME = "lamina_packed"


@contextlib.contextmanager
def packed_attention(model: PreTrainedModel) -> Iterator[None]:
    """Switches `model` to packed attention inside the block.

    Raises:
        ModelError: The model does not go through transformers' attention interface.
    """
    AttentionInterface.register(NAME, packed_attention_forward)
    own = model.config._attn_implementation
    model.set_attn_implementation(NAME)
    if model.config._attn_implementation != NAME:
        raise ModelError(
            f"{type(model).__name__} does not use transformers' attention interface, so documents cannot be packed "
            "exactly. Fix: choose a model whose class supports it (_supports_attention_backend)."
        )
    try:
        yield
    finally:
        model.set_attn_implementation(own or "eager")


def packed_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    document_lengths: list[int] | None = None,
    **unused: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each document.

    Args:
        module: The attention layer (only for the interface).
        query: (1, query heads, T, head size).
        key: (1, key heads, T, head size); query heads are a multiple of key heads.
        value: Like `key`.
        attention_mask: Must be None; packed sequences have none.
        dropout: Probability for the attention weights.
        scaling: Factor on query key^T; by default 1 / sqrt(head size).
        sliding_window: A token sees so many tokens, itself included; None for all.
        softcap: Attention scores become softcap * tanh(scores / softcap) (Gemma 2).
        document_lengths: Tokens of each document; by default one document of T.
        unused: What other implementations of the interface take.

    Returns:
        (1, T, query heads, head size), and None for the weights.
    """
    assert attention_mask is None, "packed attention takes no mask"
    lengths = document_lengths or [query.shape[2]]
    outputs = [
        _attend(q, k, v, dropout, scaling, sliding_window, softcap)
        for q, k, v in zip(query.split(lengths, 2), key.split(lengths, 2), value.split(lengths, 2), strict=True)
    ]
    joined = torch.cat(outputs, dim=2) if len(outputs) > 1 else outputs[0]
    return joined.transpose(1, 2).contiguous(), None


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    dropout: float,
    scaling: float | None,
    sliding_window: int | None,
    softcap: float | None,
) -> torch.Tensor:
    length = query.shape[2]
    window = length if sliding_window is None else min(sliding_window, length)
    grouped = query.shape[1] != key.shape[1]
    if softcap is None and window == length:
        return F.scaled_dot_product_attention(
            query, key, value, dropout_p=dropout, is_causal=True, scale=scaling, enable_gqa=grouped
        )
    visible = torch.ones(length, length, dtype=torch.bool, device=query.device).tril()
    if window < length:
        visible = visible.triu(1 - window)
    if softcap is None:
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=visible, dropout_p=dropout, scale=scaling, enable_gqa=grouped
        )
    if grouped:
        repeats = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    scores = softcap * torch.tanh(scores / softcap)
    weights = scores.masked_fill(~visible, float("-inf")).softmax(-1, dtype=torch.float32).to(query.dtype)
    return F.dropout(weights, dropout) @ value
