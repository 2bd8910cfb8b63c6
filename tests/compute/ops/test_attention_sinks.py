"""Attention sinks against the formula written out, where the kernels run and where plain torch does."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lamina.compute.ops.attention import Unsupported, packed_attention_forward


def formula(q, k, v, sinks, lengths, window):
    """(1, H, T, D): softmax over the visible scores and the sink, whose share goes nowhere."""
    parts, repeats = [], q.shape[1] // k.shape[1]
    for q1, k1, v1 in zip(q.split(lengths, 2), k.split(lengths, 2), v.split(lengths, 2), strict=True):
        k1, v1 = k1.repeat_interleave(repeats, 1), v1.repeat_interleave(repeats, 1)
        length = q1.shape[2]
        seen = torch.ones(length, length).tril().triu(1 - (window or length)).bool()
        scores = (q1 @ k1.transpose(2, 3) * q1.shape[-1] ** -0.5).masked_fill(~seen, float("-inf"))
        sink = sinks[None, :, None, None].expand(1, -1, length, 1)
        parts.append(torch.cat([scores, sink], -1).softmax(-1)[..., :-1] @ v1)
    return torch.cat(parts, 2)


@pytest.mark.parametrize("window", [None, 12])
@pytest.mark.parametrize("head_size", [24, 32, 64])  # the kernels take multiples of 32
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_and_gradients(dtype: torch.dtype, head_size: int, window: int | None) -> None:
    torch.manual_seed(0)
    lengths, heads, key_heads = [70, 1, 33], 6, 2
    q, k, v = (torch.randn(1, n, sum(lengths), head_size) for n in (heads, key_heads, key_heads))
    sinks = torch.linspace(-2.0, 4.0, heads)
    ours = [t.to(dtype, copy=True).requires_grad_() for t in (q, k, v, sinks)]
    exact = [t.detach().double().requires_grad_() for t in ours]
    out, _ = packed_attention_forward(
        nn.Identity(), *ours[:3], None, sliding_window=window, s_aux=ours[3], document_lengths=lengths
    )
    expected = formula(*exact, lengths, window).transpose(1, 2)
    grad = torch.randn(out.shape)
    found = [out, *torch.autograd.grad(out, ours, grad.to(dtype))]
    wanted = [expected, *torch.autograd.grad(expected, exact, grad.to(dtype).double())]
    for mine, theirs in zip(found, wanted, strict=True):
        assert float((mine.double() - theirs).norm() / theirs.norm()) < (1e-5 if dtype == torch.float32 else 2e-2)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"position_bias": torch.zeros(1)}, "position_bias"),
        ({"is_causal": False}, "not causal"),
        ({"document_lengths": [3, 4]}, "8 tokens"),
    ],
)
def test_what_is_not_implemented_is_refused(asked: dict[str, object], said: str) -> None:
    heads = torch.randn(1, 2, 8, 16)
    with pytest.raises(Unsupported, match=said):
        packed_attention_forward(nn.Identity(), heads, heads, heads, None, **asked)  # pyright: ignore[reportArgumentType]
    with pytest.raises(Unsupported, match="mask"):
        packed_attention_forward(nn.Identity(), heads, heads, heads, torch.ones(1, 1, 8, 8))
