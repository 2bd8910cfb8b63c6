"""The mask: how many stay, that none has a neighbour's fate, and that the seed decides."""

from __future__ import annotations

import pytest
import torch

from lamina.ops.dropout import drop, keep_mask


@pytest.mark.parametrize("dropout", [0.001, 0.05, 0.5, 0.9])
def test_share_of_what_stays(dropout: float) -> None:
    torch.manual_seed(0)
    x = torch.ones(1001, 999)
    stays = keep_mask(x, dropout).double()
    spread = (dropout * (1 - dropout) / x.numel()) ** 0.5
    assert float(stays.mean()) == pytest.approx(1 - dropout, abs=5 * spread)
    # Sixteen bits of one draw lie beside each other: neighbours must not go together.
    centred = stays.flatten() - stays.mean()
    for distance in (1, 2, 3, 4, 999):
        correlation = float((centred[:-distance] * centred[distance:]).mean() / centred.square().mean())
        assert abs(correlation) < 5 / x.numel() ** 0.5


def test_the_seed_decides() -> None:
    masks = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        masks.append(keep_mask(torch.empty(7, 33), 0.3))
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])


@pytest.mark.parametrize("shape", [(1,), (3,), (5, 7), (2, 3, 4)])
def test_any_shape(shape: tuple[int, ...]) -> None:
    mask = keep_mask(torch.empty(shape), 0.5)
    assert mask.shape == shape
    assert mask.dtype == torch.bool


def test_the_mean_stays() -> None:
    torch.manual_seed(0)
    x = torch.ones(1000, 1000)
    assert float(drop(x, keep_mask(x, 0.25), 0.25).mean()) == pytest.approx(1.0, abs=3e-3)
    assert float(keep_mask(x, 1 - 1e-9).double().mean()) < 1e-4
