"""The kernels on packed weights: the weights that bitsandbytes turns back, and products with them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from lamina.compute.kernels import native, packed
from lamina.compute.weights.packed import quantize_4bit
from tests.support.packed_weights import KINDS, by_bitsandbytes, weight

functional = pytest.importorskip("bitsandbytes.functional")
pytestmark = pytest.mark.skipif(native.unavailable() is not None, reason=f"no kernels: {native.unavailable()}")

every_kind = pytest.mark.parametrize("kind", KINDS)
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])


@dtypes
@pytest.mark.parametrize("size", [(3, 64), (40, 96), (7, 32), (64, 576)])
@every_kind
def test_weights_are_those_of_bitsandbytes(kind: str, size: tuple[int, int], dtype: torch.dtype) -> None:
    linear = weight(kind, size, dtype)
    assert packed.can_read(linear, dtype)
    expected = by_bitsandbytes(linear, dtype)
    assert torch.equal(linear.dense(), expected)
    wide = torch.full((size[0], size[1] + 5), 7.0, dtype=dtype)
    linear.dequantize_into(wide[:, : size[1]])
    assert torch.equal(wide[:, : size[1]], expected)
    assert bool((wide[:, size[1] :] == 7.0).all())  # nothing beside it is touched


@dtypes
@pytest.mark.parametrize("blocksize", [32, 64, 256])
@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
def test_packing_is_that_of_bitsandbytes(quant_type: str, blocksize: int, dtype: torch.dtype) -> None:
    dense = torch.randn(64, 160, generator=torch.Generator().manual_seed(1))
    dense[3] = 0.0  # whole blocks of zeros
    dense[5, ::2] *= 1e-30
    dense[7] = torch.linspace(-1.0, 1.0, 160)
    dense[8, 40:90] = 0.25  # and weights on the bounds' own numbers
    dense = dense.to(dtype)
    for double in (False, True):
        ours, state = quantize_4bit(dense, quant_type, double, blocksize)
        theirs, expected = functional.quantize_4bit(
            dense, blocksize=blocksize, compress_statistics=double, quant_type=quant_type
        )
        assert torch.equal(ours, theirs)
        assert torch.equal(state.absmax, expected.absmax)
        assert (state.shape, state.dtype, state.quant_type) == (expected.shape, expected.dtype, expected.quant_type)
        assert torch.equal(state.code, expected.code)
        if double:
            assert torch.equal(state.state2.absmax, expected.state2.absmax)
            assert torch.equal(state.offset, expected.offset)
    for broken in (float("nan"), float("inf")):
        dense[0, 5] = broken
        assert not bool(quantize_4bit(dense, quant_type, False, blocksize)[1].absmax[0].isfinite())


@dtypes
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 6, 7, 8])
@every_kind
def test_products_of_a_few_rows(kind: str, rows: int, dtype: torch.dtype) -> None:
    linear = weight(kind, (40, 96), dtype)
    x = torch.randn(rows, 96, generator=torch.Generator().manual_seed(2)).to(dtype)
    expected = x.double() @ linear.dense().double().T
    tolerance = 1e-5 if dtype == torch.float32 else 8e-3
    torch.testing.assert_close(linear.product(x).double(), expected, rtol=tolerance, atol=tolerance)
    # Each weight by itself, in its own place.
    one_hot = torch.eye(96, dtype=dtype)[:rows]
    assert torch.equal(linear.product(one_hot), linear.dense().T[:rows])


@every_kind
def test_what_the_kernels_do_not_take(kind: str) -> None:
    odd = weight(kind, (16, 48) if kind == "int8" else (256, 48), torch.bfloat16)
    assert not packed.can_read(odd, torch.bfloat16)
    x = torch.randn(3, 48).bfloat16()
    assert torch.equal(odd.product(x), F.linear(x, by_bitsandbytes(odd, torch.bfloat16)))
    half = weight(kind, (40, 96), torch.bfloat16)
    assert not packed.can_read(half, torch.float16)
    assert half.dense(torch.float16).dtype == torch.float16


def test_many_rows_are_multiplied_with_dense_weights() -> None:
    linear = weight("nf4", (40, 96), torch.bfloat16)
    x = torch.randn(packed.MOST_ROWS + 1, 96).bfloat16()
    assert torch.equal(linear.product(x), F.linear(x, linear.dense()))
