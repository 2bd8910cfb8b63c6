"""Kernels in C++ against plain torch, on shapes and strides by chance: rows any number of elements apart, at any place.

Around each tensor lies what no number can be: reading it spoils a result, and writing it is seen.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from lamina.compute.kernels import native, plain, use_backend
from lamina.compute.ops.attention import AttentionSettings, attention_backward, attention_forward

pytestmark = pytest.mark.skipif(native.unavailable() is not None, reason=f"no kernels: {native.unavailable()}")

# By the norm of a whole tensor: roundings of what is stored, and of the sums in between.
ERROR = {torch.float32: 3e-6, torch.bfloat16: 6e-3}


class Around:
    """Makes tensors that lie in larger ones, by a seed, and can tell whether only they were written."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        self.numbers = torch.Generator().manual_seed(seed)
        self.dtype = self.draw.choice([torch.float32, torch.bfloat16])
        self._made: list[tuple[torch.Tensor, torch.Tensor, bool]] = []

    def size(self, most: int) -> int:
        """From 1 on: as often few as many."""
        return self.draw.randint(1, self.draw.choice([3, most]))

    def rows(self, *shape: int, written: bool = False, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Normal numbers; its rows lie apart, and it begins anywhere."""
        width = torch.Size(shape[1:]).numel()
        gap, before, after = (self.draw.choice([0, 1, 2, 3, 5, 16]) for _ in range(3))
        whole = torch.full((before + shape[0] * (width + gap) + after,), float("nan"), dtype=dtype or self.dtype)
        own = whole[before : before + shape[0] * (width + gap)].view(shape[0], width + gap)[:, :width]
        own.copy_(torch.randn(own.shape, generator=self.numbers))
        self._made.append((whole, own, written))
        return own.view(shape) if len(shape) < 3 else own.unflatten(1, shape[1:])

    def normal(self, *shape: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Normal numbers that lie close together."""
        return torch.randn(*shape, generator=self.numbers).to(dtype or self.dtype)

    @contextlib.contextmanager
    def only_the_written_change(self) -> Iterator[None]:
        """Inside this block: of the tensors, those made to be written; of what lies around them, nothing."""
        before = [own.clone() for _, own, _ in self._made]
        yield
        for (whole, own, written), was in zip(self._made, before, strict=True):
            assert written or torch.equal(own, was)
            now = own.clone()
            own.fill_(float("nan"))
            assert torch.isnan(whole).all()
            own.copy_(now)


def off(ours: torch.Tensor, exact: torch.Tensor) -> float:
    """Relative to the norm; infinite where something is not finite."""
    error = float((ours.double() - exact.double()).norm() / exact.double().norm().clamp_min(1e-20))
    return error if error == error else float("inf")


# Each draws its tensors and gives what to run on the kernels or on plain torch, and the results of it.
Run = Callable[[Any], list[torch.Tensor]]


def rms_norm(around: Around) -> tuple[Run, list[torch.Tensor]]:
    rows, width, offset = around.size(40), around.size(200), around.draw.choice([0.0, 1.0])
    x, weight = around.rows(rows, width), around.normal(width)
    out = around.rows(rows, width, written=True)
    return lambda kernels: [kernels.rms_norm(x, weight, 1e-5, offset, out)], [out]


def rms_norm_backward(around: Around) -> tuple[Run, list[torch.Tensor]]:
    rows, width, offset = around.size(40), around.size(200), around.draw.choice([0.0, 1.0])
    grad, x, residual = (around.rows(rows, width) for _ in range(3))
    weight, scale = around.normal(width), around.normal(rows, dtype=torch.float32)
    added, out = around.draw.choice([None, residual]), around.rows(rows, width, written=True)
    return lambda kernels: [kernels.rms_norm_backward(grad, x, weight, scale, offset, added, out)], [out]


def gated(around: Around) -> tuple[Run, list[torch.Tensor]]:
    rows, width, activation = around.size(40), around.size(200), around.draw.choice([0, 1])
    gate, up, out = around.rows(rows, width), around.rows(rows, width), around.rows(rows, width, written=True)
    return lambda kernels: [kernels.gated(gate, up, activation, out)], [out]


def gated_backward(around: Around) -> tuple[Run, list[torch.Tensor]]:
    rows, width, activation = around.size(40), around.size(200), around.draw.choice([0, 1])
    tensors = [around.rows(rows, width, written=True) for _ in range(3)]
    gate, up, grad = tensors
    return lambda kernels: [kernels.gated_backward_(gate, up, activation, grad)], tensors


def rotary(around: Around) -> tuple[Run, list[torch.Tensor]]:
    rows, heads, size = around.size(40), around.size(5), around.size(100)
    rotated = 2 * around.draw.randint(0, size // 2) or 2
    x = around.rows(rows, heads, max(size, 2), written=True)
    cosine, sine, inverse = around.rows(rows, rotated), around.rows(rows, rotated), around.draw.random() < 0.5
    for angles in (cosine, sine):  # both halves are the same
        angles[:, rotated // 2 :] = angles[:, : rotated // 2].clone()
    return lambda kernels: [kernels.rotary_(x, cosine, sine, inverse)], [x]


def scale_columns(around: Around) -> tuple[Run, list[torch.Tensor]]:
    rows, width = around.size(40), around.size(600)
    y, scale = around.rows(rows, width, written=True), around.normal(width, dtype=torch.float32)
    return lambda kernels: [kernels.scale_columns_(y, scale)], [y]


def scale_columns_backward(around: Around) -> tuple[Run, list[torch.Tensor]]:
    rows, width = around.size(40), around.size(600)
    grad, y, out = around.rows(rows, width), around.rows(rows, width), around.rows(rows, width, written=True)
    scale = around.normal(width, dtype=torch.float32)
    return lambda kernels: [kernels.scale_columns_backward(grad, y, scale, out)], [out]


def dropped(around: Around) -> tuple[Run, list[torch.Tensor]]:
    rows, width = around.size(40), around.size(200)
    x, out = around.rows(rows, width), around.rows(rows, width, written=True)
    key, threshold = around.draw.randint(-(2**63), 2**63 - 1), around.draw.randint(-(2**15), 2**15)
    return lambda kernels: [kernels.dropped(x, key, threshold, 1.5, out)], [out]


def add_dropped(around: Around) -> tuple[Run, list[torch.Tensor]]:
    rows, width = around.size(40), around.size(200)
    x, total = around.rows(rows, width), around.rows(rows, width, written=True)
    key, threshold = around.draw.randint(-(2**63), 2**63 - 1), around.draw.randint(-(2**15), 2**15)
    return lambda kernels: [kernels.add_dropped_(total, x, key, threshold, 1.5)], [total]


def narrow_product(around: Around) -> tuple[Run, list[torch.Tensor]]:
    rows, rank, width = around.size(400), around.size(40), around.size(600)
    narrow, wide = around.rows(rows, rank), around.rows(rows, width)
    if around.draw.random() < 0.5:
        out = around.rows(rank, width, written=True, dtype=torch.float32)
    else:
        out = around.rows(width, rank, written=True, dtype=torch.float32).T
    return lambda kernels: [kernels.narrow_product(narrow, wide, out, -0.5)], [out]


def cross_entropy(around: Around) -> tuple[Run, list[torch.Tensor]]:
    rows, width = around.size(20), around.size(600)
    logits, targets = around.rows(rows, width, written=True), torch.randint(width, (rows,), generator=around.numbers)
    softcap, multiplier = around.draw.choice([None, 3.0]), around.draw.choice([1.0, 0.7])
    return lambda kernels: [kernels.cross_entropy_(logits, targets, multiplier, softcap, True)], [logits]


KERNELS = (
    rms_norm,
    rms_norm_backward,
    gated,
    gated_backward,
    rotary,
    scale_columns,
    scale_columns_backward,
    dropped,
    add_dropped,
    narrow_product,
    cross_entropy,
)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.__name__)
def test_any_shape_and_strides(kernel: Callable[[Around], tuple[Run, list[torch.Tensor]]], seed: int) -> None:
    found = []
    for kernels in (native, plain):
        around = Around(seed)
        run, results = kernel(around)
        with around.only_the_written_change():
            returned = [tensor for tensor in run(kernels) if tensor is not None]
        found.append([*results, *returned])
    for ours, theirs in zip(*found, strict=True):
        assert off(ours, theirs) < 2 * ERROR[around.dtype]


@pytest.mark.parametrize("seed", range(100))
def test_attention_of_any_shape_and_strides(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against plain torch in float32, with every tensor's rows apart by a number of its own."""
    around = Around(seed)
    draw = around.draw
    key_heads, size = draw.choice([1, 2, 3]), draw.choice([32, 64, 96, 128, 256])
    heads = key_heads * draw.choice([1, 2, 3])
    lengths = [draw.choice([1, 31, 32, 33, 64, 65, 100]) for _ in range(draw.randint(1, 3))]
    window, softcap = draw.choice([None, None, 1, 20, 40]), draw.choice([None, None, 2.0])
    settings, tokens = AttentionSettings(lengths, 1.5 * size**-0.5, window, softcap), sum(lengths)
    monkeypatch.setattr(native, "TASKS_A_THREAD", draw.choice([0, 1 << 30]))

    q, k, v = (around.rows(tokens, count, size) for count in (heads, key_heads, key_heads))
    grad, out = around.rows(tokens, heads, size), around.rows(tokens, heads, size, written=True)
    results = tuple(around.rows(tokens, count, size, written=True) for count in (heads, key_heads, key_heads))
    with use_backend("native"), around.only_the_written_change():
        state = attention_forward(q, k, v, settings, out)
        assert isinstance(state, torch.Tensor)
        attention_backward(q, k, v, out, grad, settings, state, results)

    wide = [tensor.float() for tensor in (q, k, v, grad)]
    exact = [torch.empty_like(tensor) for tensor in (wide[0], *wide[:3])]
    with use_backend("plain"):
        assert attention_forward(*wide[:3], settings, exact[0]) is None
        attention_backward(*wide[:3], exact[0], wide[3], settings, None, tuple(exact[1:]))
    for ours, theirs in zip((out, *results), exact, strict=True):
        # Where a token sees itself alone, the gradient of its query is a difference of equal numbers.
        assert off(ours, theirs) < ERROR[around.dtype] or float(theirs.norm()) < 1e-5 * float(exact[3].norm())
