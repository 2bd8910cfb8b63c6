"""The compiled kernels against plain torch in float64 or float32: odd shapes, strides, both dtypes."""

from __future__ import annotations

import platform
import shutil
import sys
from pathlib import Path

import pytest
import torch

from lamina.compute.kernels import (
    GELU_TANH,
    SILU,
    available_backends,
    kernels_for,
    native,
    plain,
    use_backend,
)
from lamina.compute.ops.attention import (
    AttentionSettings,
    attention_backward,
    attention_forward,
    packed_attention_forward,
)
from tests.compute.kernels.test_packed_weights import (
    test_products_of_a_few_rows,
    test_weights_are_those_of_bitsandbytes,
)
from tests.support.packed_weights import KINDS

# A few roundings of the dtype, relative to the largest value.
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 1.2e-2}

# Of a whole tensor, by its norm.
ATTENTION_ERROR = {torch.float32: 3e-6, torch.bfloat16: 6e-3}

needs_native = pytest.mark.skipif(native.unavailable() is not None, reason=f"no kernels: {native.unavailable()}")
pytestmark = needs_native

dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])


def rand(*shape: int, dtype: torch.dtype, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype)


def beside(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    """Columns of a wider matrix, so that rows lie apart; the rest is NaN, which must not be read."""
    wide = torch.full((shape[0], shape[1] + 5), float("nan"), dtype=dtype)
    return wide[:, : shape[1]]


def close(ours: torch.Tensor, theirs: torch.Tensor, dtype: torch.dtype) -> None:
    scale = float(theirs.float().abs().max())
    torch.testing.assert_close(ours.float(), theirs.float(), rtol=0.0, atol=TOLERANCE[dtype] * scale)


@dtypes
@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("width", [3, 37, 576])
def test_rms_norm(dtype: torch.dtype, offset: float, width: int) -> None:
    x, weight, grad = (
        rand(13, width, dtype=dtype),
        rand(width, dtype=dtype, seed=1),
        rand(13, width, dtype=dtype, seed=2),
    )
    ours, theirs = beside(13, width, dtype=dtype), torch.empty_like(x)
    scale = native.rms_norm(x, weight, 1e-5, offset, ours)
    torch.testing.assert_close(scale, plain.rms_norm(x, weight, 1e-5, offset, theirs))
    close(ours, theirs, dtype)
    wide, w = x.double().requires_grad_(), weight.double()
    reference = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-5) * (offset + w)
    close(ours, reference.detach(), dtype)
    (expected,) = torch.autograd.grad(reference, wide, grad.double())
    for kernels in (native, plain):
        for residual in (None, rand(13, width, dtype=dtype, seed=3)):
            out = beside(13, width, dtype=dtype)
            kernels.rms_norm_backward(grad, x, weight, scale, offset, residual, out)
            close(out, expected if residual is None else expected + residual.double(), dtype)


@dtypes
@pytest.mark.parametrize("width", [3, 256, 600])
def test_scale_columns(dtype: torch.dtype, width: int) -> None:
    y, grad = rand(29, width, dtype=dtype), rand(29, width, dtype=dtype, seed=1)
    scale = rand(width, dtype=torch.float32, seed=2)
    for kernels in (native, plain):
        scaled, through = beside(29, width, dtype=dtype), beside(29, width, dtype=dtype)
        scaled.copy_(y)
        kernels.scale_columns_(scaled, scale)
        close(scaled, y.double() * scale.double(), dtype)
        sums = kernels.scale_columns_backward(grad, y, scale, through)
        close(through, grad.double() * scale.double(), dtype)
        torch.testing.assert_close(sums.double(), (grad.double() * y.double()).sum(0), rtol=1e-5, atol=1e-5)


@dtypes
@pytest.mark.parametrize("width", [1, 37, 64, 600])
@pytest.mark.parametrize("key", [0, -1, 0x123456789ABCDEF])
def test_dropped(dtype: torch.dtype, width: int, key: int) -> None:
    """The same elements as plain torch drops, and what stays is the same number."""
    x, total = beside(13, width, dtype=dtype), rand(13, width, dtype=dtype, seed=1)
    x.copy_(rand(13, width, dtype=dtype))
    threshold, factor = -(2**14), 4 / 3
    ours, theirs = beside(13, width, dtype=dtype), torch.empty_like(x)
    native.dropped(x, key, threshold, factor, ours)
    plain.dropped(x, key, threshold, factor, theirs)
    assert torch.equal(ours, theirs)
    stays = plain.keep_mask(x.shape, key, threshold, x.device)
    close(ours, x.double() * stays * factor, dtype)
    for kernels in (native, plain):
        sums = beside(13, width, dtype=dtype).copy_(total)
        kernels.add_dropped_(sums, x, key, threshold, factor)
        close(sums, total.double() + x.double() * stays * factor, dtype)


@dtypes
@pytest.mark.parametrize("activation", [SILU, GELU_TANH])
def test_gated(dtype: torch.dtype, activation: int) -> None:
    gate_up, grad = rand(7, 2 * 45, dtype=dtype, scale=3.0), rand(7, 45, dtype=dtype, seed=1)
    wide = gate_up.double().requires_grad_()
    gate, up = wide.chunk(2, -1)
    function = torch.nn.functional
    value = function.silu(gate) if activation == SILU else function.gelu(gate, approximate="tanh")
    reference = value * up
    (expected,) = torch.autograd.grad(reference, wide, grad.double())
    for kernels in (native, plain):
        out, again, grads = beside(7, 45, dtype=dtype), beside(7, 45, dtype=dtype).copy_(grad), gate_up.clone()
        kernels.gated(*gate_up.chunk(2, -1), activation, out)
        kernels.gated_backward_(*grads.chunk(2, -1), activation, again)
        close(out, reference.detach(), dtype)
        assert torch.equal(out, again)
        close(grads, expected, dtype)


@dtypes
@pytest.mark.parametrize(("size", "rotated"), [(8, 8), (8, 4), (64, 64), (96, 80)])
def test_rotary(dtype: torch.dtype, size: int, rotated: int) -> None:
    """Against transformers' own formula; and turning back gives what was there."""
    x = rand(5, 3 * size + 4, dtype=dtype)[:, : 3 * size].unflatten(1, (3, size))
    angles = rand(5, rotated // 2, dtype=torch.float32, seed=1).repeat(1, 2)
    cosine, sine = angles.cos().to(dtype), angles.sin().to(dtype)
    turned, rest = x[..., :rotated].float(), x[..., rotated:].float()
    half = torch.cat([-turned[..., rotated // 2 :], turned[..., : rotated // 2]], -1)
    expected = torch.cat([turned * cosine[:, None].float() + half * sine[:, None].float(), rest], -1)
    before = x.clone()
    for kernels in (native, plain):
        ours = before.clone()
        kernels.rotary_(ours, cosine, sine, False)
        close(ours, expected, dtype)
        kernels.rotary_(ours, cosine, sine, True)
        close(ours, before, dtype)


@dtypes
@pytest.mark.parametrize(("multiplier", "softcap"), [(1.0, None), (0.3, None), (1.0, 4.0), (0.5, 4.0)])
def test_cross_entropy(dtype: torch.dtype, multiplier: float, softcap: float | None) -> None:
    product = rand(6, 1003, dtype=dtype, scale=4.0)
    targets = torch.tensor([0, 1002, 5, 5, 16, 999])
    wide = product.double().requires_grad_()
    logits = wide * multiplier
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    reference = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    (expected,) = torch.autograd.grad(reference.sum(), wide)
    for kernels in (native, plain):
        ours = product.clone()
        losses = kernels.cross_entropy_(ours, targets, multiplier, softcap, True)
        torch.testing.assert_close(losses.double(), reference.detach(), rtol=2e-6, atol=2e-6)
        close(ours, expected, dtype)


@dtypes
def test_what_is_not_finite_is_seen(dtype: torch.dtype) -> None:
    logits = rand(3, 50, dtype=dtype)
    logits[1, 7] = float("nan")
    logits[2, 7] = float("inf")
    losses = native.cross_entropy_(logits, torch.tensor([1, 2, 3]), 1.0, None, True)
    assert torch.isfinite(losses).tolist() == [True, False, False]
    x = rand(2, 40, dtype=dtype)
    x[1, 3] = float("nan")
    out = torch.empty_like(x)
    native.rms_norm(x, torch.ones(40, dtype=dtype), 1e-5, 0.0, out)
    assert torch.isfinite(out).all(-1).tolist() == [True, False]


def attention_errors(
    lengths: list[int],
    heads: int,
    key_heads: int,
    size: int,
    window: int | None,
    softcap: float | None,
    dtype: torch.dtype,
) -> list[float]:
    """Output and gradients against plain torch in float32: the relative L2 error of each."""
    widths = [heads * size, key_heads * size, key_heads * size]
    qkv, grad = rand(sum(lengths), sum(widths), dtype=dtype), rand(sum(lengths), heads, size, dtype=dtype, seed=1)
    settings = AttentionSettings(lengths, 1.5 * size**-0.5, window, softcap)

    def run(backend: str, dtype: torch.dtype) -> list[torch.Tensor]:
        q, k, v = (part.unflatten(1, (-1, size)) for part in qkv.to(dtype).split(widths, 1))
        out, grads = torch.empty(sum(lengths), heads, size, dtype=dtype), torch.empty(qkv.shape, dtype=dtype)
        parts = tuple(part.unflatten(1, (-1, size)) for part in grads.split(widths, 1))
        with use_backend(backend):
            state = attention_forward(q, k, v, settings, out)
            assert (state is not None) == (backend == "native")
            attention_backward(q, k, v, out, grad.to(dtype), settings, state, parts)
        return [out, *parts]

    both = zip(run("native", dtype), run("plain", torch.float32), strict=True)
    return [float((ours.float() - theirs).norm() / theirs.norm()) for ours, theirs in both]


@dtypes
@pytest.mark.parametrize(
    ("lengths", "heads", "key_heads", "size", "window", "softcap"),
    [
        ([1, 5, 32, 33, 64, 100], 6, 2, 64, None, None),
        ([70, 150], 4, 1, 256, None, None),
        ([70, 130], 4, 4, 32, 50, None),
        ([70, 130], 4, 2, 96, None, 2.0),
        ([40, 170], 4, 2, 64, 33, 3.0),
        ([40, 65], 2, 1, 32, 2, None),
    ],
)
def test_attention(
    lengths: list[int],
    heads: int,
    key_heads: int,
    size: int,
    window: int | None,
    softcap: float | None,
    dtype: torch.dtype,
) -> None:
    assert max(attention_errors(lengths, heads, key_heads, size, window, softcap, dtype)) < ATTENTION_ERROR[dtype]


@dtypes
@pytest.mark.parametrize("tasks", [0, 1 << 30], ids=["together", "one by one"])
def test_query_heads_together_or_one_by_one(dtype: torch.dtype, tasks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key head's query heads in one thread, or each in any: both right, and the same to the last bit."""
    q, k, v = (rand(133, heads, 64, dtype=dtype, seed=heads) for heads in (6, 2, 2))
    settings, grad, out = (
        AttentionSettings([100, 33], 0.1, None, None),
        rand(133, 6, 64, dtype=dtype),
        torch.empty_like(q),
    )
    state = attention_forward(q, k, v, settings, out)

    def gradients() -> list[torch.Tensor]:
        wide = torch.empty(133, 10 * 64, dtype=dtype)  # gradients of all heads beside each other
        results = [part.unflatten(1, (-1, 64)) for part in wide.split([6 * 64, 2 * 64, 2 * 64], 1)]
        attention_backward(q, k, v, out, grad, settings, state, tuple(results))
        return results

    usual = gradients()
    monkeypatch.setattr(native, "TASKS_A_THREAD", tasks)
    assert all(torch.equal(a, b) for a, b in zip(usual, gradients(), strict=True))


@dtypes
@pytest.mark.parametrize(("tokens", "rank", "width"), [(1, 1, 1), (33, 16, 64), (300, 5, 37), (1000, 48, 600)])
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_narrow_product(tokens: int, rank: int, width: int, threads: int, dtype: torch.dtype) -> None:
    narrow, wide = beside(tokens, rank, dtype=dtype), beside(tokens, width, dtype=dtype)
    narrow.copy_(rand(tokens, rank, dtype=dtype))
    wide.copy_(rand(tokens, width, dtype=dtype, seed=1))
    expected = -1.5 * (narrow.double().T @ wide.double())
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for kernels in (native, plain):
            rows, columns = torch.empty(rank, width), torch.empty(width, rank)
            kernels.narrow_product(narrow, wide, rows, -1.5)
            kernels.narrow_product(narrow, wide, columns.T, -1.5)
            for out in (rows, columns.T):
                close(out, expected, dtype)
    finally:
        torch.set_num_threads(before)


@dtypes
def test_narrow_product_of_columns_that_lie_apart(dtype: torch.dtype) -> None:
    """A layer's input may be turned."""
    narrow, wide = rand(16, 40, dtype=dtype).T, rand(70, 40, dtype=dtype, seed=1).T
    out = torch.empty(16, 70)
    native.narrow_product(narrow, wide, out, 1.0)
    close(out, narrow.double().T @ wide.double(), dtype)


@dtypes
def test_attention_of_keys_and_values_that_lie_differently(dtype: torch.dtype) -> None:
    """Normed heads are tensors of their own, while values still lie beside the other two."""
    qkv = rand(90, 8 * 64, dtype=dtype)
    q, k, v = (part.unflatten(1, (-1, 64)) for part in qkv.split([4 * 64, 2 * 64, 2 * 64], 1))
    settings, grad = AttentionSettings([60, 30], 0.1, None, None), rand(90, 4, 64, dtype=dtype, seed=1)
    found = []
    for heads in ((q, k, v), (q.contiguous(), k.contiguous(), v)):
        assert native.can_attend(*heads)
        out, results = torch.empty_like(q), [torch.empty_like(part) for part in (q, k, v)]
        with use_backend("native"):
            state = attention_forward(*heads, settings, out)
            attention_backward(*heads, out, grad, settings, state, tuple(results))
        found.append([out, *results])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@dtypes
def test_attention_of_a_gradient_in_any_layout(dtype: torch.dtype) -> None:
    """Summing an output gives it a gradient that is one number, seen everywhere."""
    q, k, v = (rand(1, 40, heads, 32, dtype=dtype, seed=heads).transpose(1, 2).requires_grad_() for heads in (4, 2, 2))
    found = []
    for weights in (None, torch.ones(1, 40, 4, 32, dtype=dtype)):
        out, _ = packed_attention_forward(torch.nn.Module(), q, k, v, None, document_lengths=[30, 10])
        found.append(torch.autograd.grad(out.sum() if weights is None else (out * weights).sum(), (q, k)))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_a_document_sees_nothing_of_others() -> None:
    """Not even in the last bit: other documents may hold NaN."""
    q, k, v = (rand(80, 2, 32, dtype=torch.bfloat16, seed=seed) for seed in range(3))
    settings = AttentionSettings([50, 30], 0.2, None, None)
    clean, dirty = torch.empty_like(q), torch.empty_like(q)
    attention_forward(q, k, v, settings, clean)
    for tensor in (q, k, v):
        tensor[50:] = float("nan")
    attention_forward(q, k, v, settings, dirty)
    assert torch.equal(clean[:50], dirty[:50])
    assert torch.isnan(dirty[50:]).all()


def test_without_a_compiler_plain_torch_takes_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAMINA_KERNELS", "plain")
    native.load_kernels.cache_clear()
    try:
        assert "LAMINA_KERNELS" in str(native.unavailable())
        assert kernels_for(torch.zeros(2, 2)) is plain
        assert available_backends(torch.device("cpu"), torch.float32) == ["plain"]
    finally:
        monkeypatch.undo()
        native.load_kernels.cache_clear()


@pytest.mark.parametrize("compiler", ["/nonexistent/g++", "false"])
def test_a_broken_compiler_is_a_reason_not_an_error(
    compiler: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CXX", compiler)
    monkeypatch.setenv("LAMINA_CACHE", str(tmp_path))
    native.load_kernels.cache_clear()
    try:
        assert compiler in str(native.unavailable())
        assert not list(tmp_path.rglob("*.so"))
    finally:
        monkeypatch.undo()
        native.load_kernels.cache_clear()


@pytest.mark.skipif(shutil.which("gcc") is None or sys.platform != "linux", reason="gcc on Linux only")
def test_a_compiler_of_c_that_cxx_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """gcc compiles the sources but does not link the C++ library by itself."""
    monkeypatch.setenv("CXX", "gcc -O0")
    monkeypatch.setenv("LAMINA_CACHE", str(tmp_path))
    native.load_kernels.cache_clear()
    try:
        assert native.unavailable() is None
    finally:
        monkeypatch.undo()
        native.load_kernels.cache_clear()


@pytest.mark.skipif(shutil.which("g++") is None or platform.machine() != "x86_64", reason="g++ on x86 only")
@pytest.mark.parametrize("without", ["amx-tile", "avx512bf16", "avx512f", "avx"])
def test_older_cpus(without: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The same sources compiled for a CPU that lacks something."""
    monkeypatch.setenv("CXX", f"g++ -mno-{without}")
    monkeypatch.setenv("LAMINA_CACHE", str(tmp_path))
    native.load_kernels.cache_clear()
    try:
        assert native.unavailable() is None
        (library,) = tmp_path.rglob("*.so")
        assert native.load_kernels().loaded._name == str(library)
        for lengths, heads, key_heads, size, window, softcap in (
            ([1, 33, 100], 4, 2, 64, None, None),
            ([70, 130], 4, 2, 96, 50, 2.0),
        ):
            errors = attention_errors(lengths, heads, key_heads, size, window, softcap, torch.bfloat16)
            assert max(errors) < ATTENTION_ERROR[torch.bfloat16]
        for dtype in TOLERANCE:
            test_rms_norm(dtype, 1.0, 37)
            test_scale_columns(dtype, 600)
            test_dropped(dtype, 600, -1)
            test_gated(dtype, SILU)
            test_gated(dtype, GELU_TANH)
            test_rotary(dtype, 96, 80)
            test_cross_entropy(dtype, 0.5, 3.0)
            test_narrow_product(300, 5, 37, 2, dtype)
            test_what_is_not_finite_is_seen(dtype)
            for kind in KINDS:
                test_weights_are_those_of_bitsandbytes(kind, (3, 64), dtype)
                test_products_of_a_few_rows(kind, 5, dtype)
    finally:
        monkeypatch.undo()
        native.load_kernels.cache_clear()
