"""Choosing tokens: the kernel and plain torch choose alike, and draw what they should."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lamina.compute.decoding import choose
from lamina.compute.decoding.choose import choose_tokens, log_normalizers


def settings(rows: int, **changes: float) -> list[torch.Tensor]:
    """Temperatures, top_k, top_p, min_p and random bits of rows that are alike but for the last."""
    values = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0} | changes
    bits = np.random.default_rng(0).integers(0, 2**53, rows)
    kinds = (torch.float32, torch.int64, torch.float32, torch.float32)
    return [
        *(torch.full((rows,), v, dtype=k) for v, k in zip(values.values(), kinds, strict=True)),
        torch.from_numpy(bits),
    ]


@pytest.mark.parametrize("width", [1, 5, 16, 33, 259])
@pytest.mark.parametrize(
    "changes",
    [
        {"temperature": 0.0},
        {},
        {"temperature": 1e-30},
        {"temperature": float("inf")},
        {"top_k": 3},
        {"top_p": 0.7},
        {"top_p": 1e-9},
        {"min_p": 0.2},
        {"temperature": 2.5, "top_k": 7, "top_p": 0.9, "min_p": 0.05},
    ],
)
@pytest.mark.parametrize("masked", [False, True])
def test_the_kernel_chooses_as_plain_torch_does(
    width: int, changes: dict[str, float], masked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = 40
    generator = torch.Generator().manual_seed(width)
    logits = torch.randn(rows, width, generator=generator) * 3
    logits[3, width // 2 :] = -torch.inf
    logits[4] = 1.0  # all alike: the first ones are kept
    mask = torch.randint(-(2**31), 2**31, (rows, -(-width // 32)), generator=generator).int() if masked else None
    given = settings(rows, **changes)
    found = choose_tokens(logits, *given, mask)
    monkeypatch.setattr(choose.native, "unavailable", lambda: "a test")
    plain = choose_tokens(logits, *given, mask)
    # Sums in another order may move a draw that falls on the border of two tokens.
    assert int((found != plain).sum()) <= (0 if changes.get("temperature") == 0.0 else 1)


def test_no_token_is_chosen_where_none_is_allowed() -> None:
    logits = torch.tensor([[-torch.inf] * 40, [0.0] * 40, [float("nan")] * 40])
    mask = torch.tensor([[-1, -1], [0, 0], [-1, -1]], dtype=torch.int32)
    assert choose_tokens(logits, *settings(3), mask).tolist() == [-1, -1, -1]


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_draws_are_those_of_the_softmax(temperature: float) -> None:
    scores = torch.tensor([2.0, 1.0, 0.0, -1.0, float("-inf")])
    draws = 40_000
    drawn = choose_tokens(scores.repeat(draws, 1), *settings(draws, temperature=temperature))
    share = torch.bincount(drawn, minlength=5) / draws
    torch.testing.assert_close(share, (scores / temperature).softmax(-1), rtol=0, atol=4 * 0.5 / draws**0.5)
    assert share[-1] == 0


def test_the_nucleus_is_the_fewest_tokens_that_reach_its_share() -> None:
    probabilities = torch.tensor([0.05, 0.4, 0.25, 0.2, 0.1])
    draws = 4000
    for top_p, kept in ((0.4, {1}), (0.41, {1, 2}), (0.65, {1, 2}), (0.7, {1, 2, 3}), (0.999, {0, 1, 2, 3, 4})):
        drawn = choose_tokens(probabilities.log().repeat(draws, 1), *settings(draws, top_p=top_p))
        assert set(drawn.tolist()) == kept, top_p


@pytest.mark.parametrize("width", [1, 7, 16, 1000])
def test_normalizers_are_those_of_torch_and_alike_in_any_batch(width: int) -> None:
    logits = torch.randn(9, width, generator=torch.Generator().manual_seed(0)) * 10
    found = log_normalizers(logits)
    torch.testing.assert_close(found, logits.logsumexp(-1), rtol=1e-5, atol=1e-5)
    assert torch.equal(found, torch.cat([log_normalizers(row[None]) for row in logits]))
