"""Packed weights against bitsandbytes' own numbers and against dense weights in plain torch."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lamina.compute.weights import PackedFrozen, PackedLinear, freeze_linear
from lamina.compute.weights.packed import EightBitLinear, FourBitLinear

functional = pytest.importorskip("bitsandbytes.functional")

PACKS: dict[str, Callable[[nn.Linear], PackedLinear]] = {
    "nf4": lambda linear: FourBitLinear.pack(linear, "nf4", double_quant=False),
    "nf4 double": lambda linear: FourBitLinear.pack(linear, "nf4", double_quant=True),
    "fp4 double": lambda linear: FourBitLinear.pack(linear, "fp4", double_quant=True),
    "nf4 blocks of 256": lambda linear: FourBitLinear.pack(linear, "nf4", blocksize=256),
    "int8": EightBitLinear.pack,
}
every_kind = pytest.mark.parametrize("kind", PACKS)


def linear(dtype: torch.dtype = torch.float32, bias: bool = True, size: tuple[int, int] = (128, 192)) -> nn.Linear:
    torch.manual_seed(0)
    module = nn.Linear(*size, bias=bias)
    with torch.no_grad():
        module.weight.mul_(torch.rand(size[1], 1) * 3)
    return module.to(dtype).requires_grad_(False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
def test_four_bits_are_those_of_bitsandbytes(quant_type: str, double: bool, dtype: torch.dtype) -> None:
    module = linear(dtype)
    packed, state = functional.quantize_4bit(module.weight, compress_statistics=double, quant_type=quant_type)
    ours = FourBitLinear.pack(module, quant_type, double)
    assert torch.equal(ours.packed, packed)
    assert torch.equal(ours.dense(), functional.dequantize_4bit(packed, state))
    assert ours.dense().dtype == dtype


@pytest.mark.parametrize("size", [(48, 32), (48, 80), (96, 100), (128, 192), (576, 64), (50, 34)])
@pytest.mark.parametrize("blocksize", [32, 64, 128, 256, 2048])
@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
def test_every_weight_is_its_number_times_its_block_s_scale(
    quant_type: str, blocksize: int, size: tuple[int, int]
) -> None:
    """By the definition, also where rows are no whole number of blocks, as bitsandbytes' kernel for CPUs assumes."""
    module = linear(size=size)
    packed = FourBitLinear.pack(module, quant_type, double_quant=False, blocksize=blocksize)
    places = torch.stack([packed.packed.view(-1) >> 4, packed.packed.view(-1) & 15], dim=1).view(-1).long()
    scales = packed.absmax.repeat_interleave(blocksize)[: len(places)]
    assert torch.equal(packed.dense(), (packed.code[places] * scales).view(size[1], size[0]))
    if blocksize <= 64:
        assert float((packed.dense() - module.weight).norm() / module.weight.norm()) < 0.15


def test_eight_bits_are_those_of_bitsandbytes() -> None:
    module = linear(torch.bfloat16)
    packed, scales, _ = functional.int8_vectorwise_quant(module.weight.half())
    ours = EightBitLinear.pack(module)
    assert torch.equal(ours.packed, packed)
    assert torch.equal(ours.dense(torch.float32), functional.int8_vectorwise_dequant(packed, scales))


@pytest.mark.parametrize(
    ("kind", "bits", "error"), [("nf4 double", 4.127, 0.1), ("nf4", 4.5, 0.1), ("int8", 8.008, 0.01)]
)
def test_size_and_error(kind: str, bits: float, error: float) -> None:
    """Normally distributed weights, as the papers assume; the tables of numbers aside, which do not grow."""
    torch.manual_seed(0)
    module = nn.Linear(4096, 1024, bias=False).requires_grad_(False)
    nn.init.normal_(module.weight)
    packed = PACKS[kind](module)
    tables = sum(t.nbytes for name, t in packed.named_buffers() if name in ("code", "nested_code", "nested_offset"))
    assert 8 * (packed.packed_bytes() - tables) / module.weight.numel() == pytest.approx(bits, abs=2e-3)
    assert float((packed.dense() - module.weight).norm() / module.weight.norm()) < error


@every_kind
def test_forward_and_gradient_are_those_of_the_dense_weight(kind: str) -> None:
    packed = PACKS[kind](linear())
    x, g = torch.randn(2, 5, 128), torch.randn(2, 5, 192)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, expected = packed(ours), F.linear(theirs, packed.dense(), packed.bias)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    (grad,) = torch.autograd.grad(y, ours, g)
    (wanted,) = torch.autograd.grad(expected, theirs, g)
    torch.testing.assert_close(grad, wanted, rtol=1e-5, atol=1e-5)


@every_kind
def test_evaluating_between_training_steps_changes_nothing(kind: str) -> None:
    packed = PACKS[kind](linear(torch.bfloat16))
    before = {name: buffer.clone() for name, buffer in packed.named_buffers()}
    x = torch.randn(4, 128, dtype=torch.bfloat16)
    expected = packed.train()(x)
    for _ in range(3):
        with torch.no_grad():
            assert torch.equal(packed.eval()(x), expected)
        y = packed.train()(x.clone().requires_grad_())
        y.sum().backward()
        assert torch.equal(y, expected)
    assert all(torch.equal(buffer, before[name]) for name, buffer in packed.named_buffers())


@every_kind
def test_several_threads_at_once(kind: str) -> None:
    packed = PACKS[kind](linear())
    x = torch.randn(16, 128)
    expected, found = packed(x), []
    threads = [threading.Thread(target=lambda: found.append(packed(x))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert all(torch.equal(y, expected) for y in found)


@every_kind
def test_moving_to_another_dtype_keeps_the_stored_numbers(kind: str) -> None:
    packed = PACKS[kind](linear())
    stored = {name: buffer.clone() for name, buffer in packed.named_buffers()}
    dense = packed.dense(torch.float32)
    moved = packed.to(torch.bfloat16)
    assert (moved.dtype, moved.weight.dtype, moved.bias.dtype) == (torch.bfloat16,) * 3
    assert moved(torch.randn(2, 128, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert all(torch.equal(buffer, stored[name]) for name, buffer in moved.named_buffers())
    assert torch.equal(moved.dense(torch.float32), dense)


@every_kind
def test_reloading_the_state(kind: str) -> None:
    first, other = PACKS[kind](linear()), linear()
    nn.init.normal_(other.weight)
    second = PACKS[kind](other)
    assert not torch.equal(first.dense(), second.dense())
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.dense(), second.dense())


@every_kind
def test_as_a_frozen_linear(kind: str) -> None:
    packed = PACKS[kind](linear())
    frozen = freeze_linear(packed)
    assert isinstance(frozen, PackedFrozen)
    dense, x = packed.dense(), torch.randn(3, 128)
    torch.testing.assert_close(frozen.matmul(x), F.linear(x, dense, packed.bias))
    torch.testing.assert_close(frozen.matmul(x, with_bias=False), F.linear(x, dense))
    torch.testing.assert_close(frozen.matmul_t(torch.ones(3, 192)), torch.ones(3, 192) @ dense)
    assert torch.equal(frozen.weight(torch.float32), dense)
    frozen.set_weight(dense + 1.0)
    frozen.set_bias(torch.zeros(192))
    assert type(frozen.base) is nn.Linear
    assert torch.equal(frozen.base.weight, dense + 1.0)
    torch.testing.assert_close(frozen.matmul(x), F.linear(x, dense + 1.0))
