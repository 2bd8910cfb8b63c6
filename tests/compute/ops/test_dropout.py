"""Dropout: how many stay, that none has a neighbour's fate, that the seed decides, and that a mask comes again."""

from __future__ import annotations

import pytest
import torch

from lamina.compute.kernels import available_backends, kernels_for, native, use_backend
from lamina.compute.kernels.plain import philox
from lamina.compute.ops.dropout import CounterDropout, MaskedDropout, draw_dropout


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ((0, 0, 0, 0), 0, "5f6fb709 0d893f64 4f121f81 4f730a48"),
        ((2**32 - 1,) * 4, 2**64 - 1, "5207ddc2 45165e59 4d8ee751 8c52f662"),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            0x299F31D0A4093822,
            "4dfccaba 190a87f0 c47362ba b6b5242a",
        ),
    ],
)
def test_philox_gives_the_known_answers(counter: tuple[int, ...], key: int, words: str) -> None:
    """Those of Philox4x32-7 in the known-answer file of Random123."""
    drawn = philox(tuple(torch.tensor(word) for word in counter), key)
    assert " ".join(f"{int(word):08x}" for word in drawn) == words


@pytest.mark.parametrize("p", [0.001, 0.05, 0.5, 0.9])
def test_share_of_what_stays(p: float) -> None:
    torch.manual_seed(0)
    x = torch.ones(1001, 999)
    stays = (draw_dropout(x, p).apply(x) != 0).double()
    spread = (p * (1 - p) / x.numel()) ** 0.5
    assert float(stays.mean()) == pytest.approx(1 - p, abs=5 * spread)
    # Neighbours must not go together: of one word, of one block, of both halves of a group, of two groups, of two rows.
    centred = stays.flatten() - stays.mean()
    for distance in (1, 2, 3, 4, 32, 64, 999):
        correlation = float((centred[:-distance] * centred[distance:]).mean() / centred.square().mean())
        assert abs(correlation) < 5 / x.numel() ** 0.5


@pytest.mark.parametrize("backend", available_backends(torch.device("cpu"), torch.float32))
def test_the_seed_decides_whatever_computes(backend: str) -> None:
    results = []
    x = torch.ones(7, 133)
    for seed, chosen in ((1, backend), (1, "plain"), (2, backend)):
        torch.manual_seed(seed)
        with use_backend(chosen):
            results.append(draw_dropout(x, 0.3).apply(x))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_every_draw_is_another() -> None:
    torch.manual_seed(0)
    x = torch.ones(50, 64)
    first, second = (draw_dropout(x, 0.5).apply(x) != 0 for _ in range(2))
    assert 0.45 < float((first == second).double().mean()) < 0.55


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (1, 65), (5, 7), (3, 128)])
def test_what_is_added_is_what_was_dropped(shape: tuple[int, int], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, total = torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)
    dropout = draw_dropout(x, 0.3)
    once = dropout.apply(x)
    # What is dropped is 0, whatever it was.
    dropped = once == 0.0
    assert torch.equal(dropout.apply(torch.where(dropped, float("inf"), x)), once)
    expected = total.double() + once.double()
    assert torch.equal(once, dropout.apply(x))
    assert once.dtype == dtype
    dropout.add_(total, x)
    rounding = torch.finfo(dtype).eps
    torch.testing.assert_close(total.double(), expected, rtol=rounding, atol=2 * rounding * float(x.abs().max()))


@pytest.mark.parametrize("p", [0.05, 0.25, 0.9, 1 - 1e-9])
def test_the_mean_stays(p: float) -> None:
    torch.manual_seed(0)
    x = torch.ones(1000, 1000)
    dropped = draw_dropout(x, p).apply(x)
    if p < 0.99:
        assert float(dropped.mean()) == pytest.approx(1.0, abs=5 * (p / (1 - p)) ** 0.5 / 1000)
    # As exact as the share of what stays: the factor is that of the probability after rounding.
    assert float(dropped.max()) == pytest.approx(65536 / (65536 - min(round(p * 65536), 65535)), rel=1e-6)


def test_no_mask_is_kept_where_the_kernels_can_draw() -> None:
    x = torch.ones(4, 64)
    counted = kernels_for(x) is native
    assert isinstance(draw_dropout(x, 0.5), CounterDropout if counted else MaskedDropout)
    with use_backend("plain"):
        assert isinstance(draw_dropout(x, 0.5), MaskedDropout)
