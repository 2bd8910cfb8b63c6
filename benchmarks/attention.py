"""Attention of packed documents on the CPU: lamina's kernels beside torch's, forward with backward, one layer.

python benchmarks/attention.py [--json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table

from lamina.compute.kernels import use_backend
from lamina.compute.ops.attention import AttentionSettings, attention_backward, attention_forward

HEADS, KEY_HEADS, SIZE = 9, 3, 64
DOCUMENTS = ((16, 128), (13, 160), (8, 256), (4, 512), (2, 1024), (1, 2048))
ROUNDS = 9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    rows = [
        measure(dtype, [length] * count) for dtype in (torch.bfloat16, torch.float32) for count, length in DOCUMENTS
    ]
    if args.json:
        print(json.dumps(rows))
        return
    table = Table("dtype", "documents x tokens", "lamina ms", "torch ms", "ratio")
    for row in rows:
        documents = f"{len(row['lengths'])} x {row['lengths'][0]}"
        table.add_row(
            row["dtype"], documents, f"{row['lamina_ms']:.1f}", f"{row['torch_ms']:.1f}", f"{row['ratio']:.2f}x"
        )
    Console().print(table)


def measure(dtype: torch.dtype, lengths: list[int]) -> dict[str, Any]:
    """Medians, and the median of the ratios of rounds taken side by side."""
    tokens = sum(lengths)
    widths = [HEADS * SIZE, KEY_HEADS * SIZE, KEY_HEADS * SIZE]
    torch.manual_seed(0)
    qkv, grad = torch.randn(tokens, sum(widths)).to(dtype), torch.randn(tokens, HEADS, SIZE).to(dtype)
    settings = AttentionSettings(lengths, SIZE**-0.5, None, None)

    def lamina() -> None:
        q, k, v = (part.unflatten(1, (-1, SIZE)) for part in qkv.split(widths, 1))
        out, grads = torch.empty_like(q), torch.empty_like(qkv)
        parts = tuple(part.unflatten(1, (-1, SIZE)) for part in grads.split(widths, 1))
        with use_backend("native"):
            attention_backward(q, k, v, out, grad, settings, attention_forward(q, k, v, settings, out), parts)

    def sdpa() -> None:
        leaf = qkv.detach().requires_grad_()
        q, k, v = (part.unflatten(1, (-1, SIZE)).transpose(0, 1)[None] for part in leaf.split(widths, 1))
        outs = [
            F.scaled_dot_product_attention(qi, ki, vi, is_causal=True, enable_gqa=True)
            for qi, ki, vi in zip(q.split(lengths, 2), k.split(lengths, 2), v.split(lengths, 2), strict=True)
        ]
        torch.cat(outs, 2)[0].transpose(0, 1).backward(grad)

    times = [(timed(lamina), timed(sdpa)) for _ in range(ROUNDS + 1)][1:]
    return {
        "dtype": str(dtype).removeprefix("torch."),
        "lengths": lengths,
        "lamina_ms": statistics.median(ours for ours, _ in times),
        "torch_ms": statistics.median(theirs for _, theirs in times),
        "ratio": statistics.median(theirs / ours for ours, theirs in times),
    }


def timed(function: Callable[[], None]) -> float:
    began = time.perf_counter()
    function()
    return 1e3 * (time.perf_counter() - began)


if __name__ == "__main__":
    main()
