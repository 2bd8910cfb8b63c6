"""The backward in blocks of queries, which CUDA takes for documents of any length that FlashAttention does not."""

from __future__ import annotations

import pytest
import torch

from lamina.compute.ops.attention import QUERY_BLOCK, AttentionSettings, _attend, _backward_in_blocks


@pytest.mark.parametrize("length", [1, QUERY_BLOCK, QUERY_BLOCK + 1, 3 * QUERY_BLOCK - 5])
@pytest.mark.parametrize("window", [None, 1, 33, QUERY_BLOCK + 7])
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_gradients_are_those_of_the_formula(length: int, window: int | None, softcap: float | None) -> None:
    generator = torch.Generator().manual_seed(length)
    q, grad = (torch.randn(4, length, 8, generator=generator) for _ in range(2))
    k, v = (torch.randn(2, length, 8, generator=generator) for _ in range(2))
    settings = AttentionSettings([length], 8**-0.5, window, softcap)
    leaves = [tensor.double().requires_grad_() for tensor in (q, k, v)]
    keys, values = (leaf.repeat_interleave(2, 0) for leaf in leaves[1:])
    scores = leaves[0] @ keys.transpose(1, 2) * settings.scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    distances = torch.arange(length)[:, None] - torch.arange(length)
    hidden = (distances < 0) | (distances >= (window or length))
    exact = scores.masked_fill(hidden, float("-inf")).softmax(-1) @ values
    expected = torch.autograd.grad(exact, leaves, grad.double())
    out = _attend(q[None], k[None], v[None], settings, dropout=0.0)[0]
    torch.testing.assert_close(out.double(), exact.detach(), rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(_backward_in_blocks(q, k, v, out, grad, settings), expected, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-5)
