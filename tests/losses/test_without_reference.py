"""ORPO, SimPO, CPO and reward models: against TRL on the same numbers, and closed forms."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from lamina.config.losses.cpo import CpoConfig
from lamina.data.batch import PACKED
from lamina.distributed.world import ALONE
from lamina.losses.cpo import Cpo
from lamina.losses.orpo import Orpo, log1mexp
from lamina.losses.pairs import PairLoss
from lamina.losses.reward import Reward
from lamina.losses.simpo import Simpo
from tests.support.preferences import example_of, pairs_of

LENGTHS = [(3, 5), (1, 1), (9, 2), (4, 4), (7, 10)]
CHOSEN = [-10.2, -2.6, -28.0, -0.02, -24.0]
REJECTED = [-15.0, -0.7, -9.0, -9.2, -30.0]


def answers(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor(CHOSEN, dtype=dtype).requires_grad_(), torch.tensor(REJECTED, dtype=dtype).requires_grad_()


def averages(chosen: torch.Tensor, rejected: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    lengths = torch.tensor(LENGTHS, dtype=chosen.dtype)
    return chosen / lengths[:, 0], rejected / lengths[:, 1]


def ours(loss: PairLoss, chosen: torch.Tensor, rejected: torch.Tensor) -> torch.Tensor:
    pairs = pairs_of(chosen, rejected, LENGTHS)
    (examples,) = loss.over_step(None, None, [pairs.examples], PACKED, ALONE)  # pyright: ignore[reportArgumentType]
    pairs = replace(pairs, examples=examples)
    return loss.losses(pairs).losses.sum() / loss.count(examples)


def assert_same(
    got: torch.Tensor,
    theirs: torch.Tensor,
    of: tuple[torch.Tensor, ...],
    rtol: float = 1e-10,
    atol: float = 1e-12,
) -> None:
    torch.testing.assert_close(got, theirs.to(got.dtype), rtol=rtol, atol=atol)
    pairs = zip(
        torch.autograd.grad(got, of, retain_graph=True),
        torch.autograd.grad(theirs, of, retain_graph=True),
        strict=True,
    )
    for gradient, expected in pairs:
        torch.testing.assert_close(gradient, expected, rtol=rtol, atol=atol)


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_orpo_as_in_trl(beta: float) -> None:
    """Its likelihood is an average per pair; TRL's is one per token of the prompts and answers of a micro-batch."""
    pytest.importorskip("trl")
    from tests.support.trl_oracle import orpo_ratio

    sides = answers(torch.float32)
    chosen, rejected = averages(*sides)
    theirs = -chosen.mean() - orpo_ratio(chosen, rejected, beta)[0].mean()
    assert_same(ours(Orpo(beta), *sides), theirs, sides, rtol=1e-5, atol=1e-5)


def test_orpo_as_in_the_paper() -> None:
    sides = answers()
    chosen, rejected = (average.exp() for average in averages(*sides))
    odds = (chosen / (1 - chosen)) / (rejected / (1 - rejected))
    expected = -chosen.log().mean() - 0.3 * (odds / (1 + odds)).log().mean()
    assert_same(ours(Orpo(0.3), *sides), expected, sides, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_log1mexp_near_0_and_far_from_it(dtype: torch.dtype) -> None:
    x = torch.tensor([-1e-12, -1e-6, -0.1, -0.6931, -0.6932, -5.0, -80.0], dtype=dtype).requires_grad_()
    exact = [math.log(-math.expm1(value)) for value in x.tolist()]
    torch.testing.assert_close(log1mexp(x), torch.tensor(exact, dtype=dtype), rtol=2e-6, atol=1e-7)
    log1mexp(x).sum().backward()
    assert x.grad is not None and torch.isfinite(x.grad).all()
    assert torch.isfinite(log1mexp(torch.zeros(1, dtype=dtype))).all(), "a certain answer"


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize(("beta", "gamma"), [(2.0, 1.0), (2.5, 0.0), (0.5, 1.4)])
def test_simpo_as_in_trl(beta: float, gamma: float, smoothing: float) -> None:
    pytest.importorskip("trl")
    from tests.support.trl_oracle import cpo_losses

    sides = answers()
    theirs = cpo_losses(*averages(*sides), loss_type="simpo", beta=beta, simpo_gamma=gamma, label_smoothing=smoothing)[
        0
    ].mean()
    assert_same(ours(Simpo(beta, gamma, smoothing), *sides), theirs, sides)


def test_closed_form_of_simpo() -> None:
    sides = answers()
    chosen, rejected = averages(*sides)
    weight = -2.0 * torch.sigmoid(1.0 - 2.0 * (chosen - rejected)) / len(LENGTHS)
    of_chosen, of_rejected = torch.autograd.grad(ours(Simpo(2.0, 1.0, 0.0), *sides), sides)
    lengths = torch.tensor(LENGTHS, dtype=torch.float64)
    torch.testing.assert_close(of_chosen, weight / lengths[:, 0], rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(of_rejected, -weight / lengths[:, 1], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("alpha", [0.0, 1.0, 0.3])
@pytest.mark.parametrize(
    "settings", [{}, {"label_smoothing": 0.1}, {"loss_type": "hinge"}, {"loss_type": "ipo"}, {"beta": 1.0}]
)
def test_cpo_as_in_trl(settings: dict[str, Any], alpha: float) -> None:
    pytest.importorskip("trl")
    from tests.support.trl_oracle import cpo_losses

    sides = answers()
    given = averages(*sides) if settings.get("loss_type") == "ipo" else sides
    tokens = sum(length for length, _ in LENGTHS)
    theirs = cpo_losses(*given, **settings)[0].mean() - alpha * sides[0].sum() / tokens
    assert_same(ours(Cpo(CpoConfig(cpo_alpha=alpha, **settings)), *sides), theirs, sides)


@pytest.mark.parametrize("loss", [Orpo(0.1), Simpo(2.0, 1.0, 0.1), Cpo(CpoConfig()), Cpo(CpoConfig(loss_type="hinge"))])
def test_gradients_by_finite_differences(loss: PairLoss) -> None:
    assert torch.autograd.gradcheck(lambda c, r: ours(loss, c, r), answers(), eps=1e-6, atol=1e-6)


@pytest.mark.parametrize("center", [None, 0.01, 0.5])
def test_reward_as_in_trl(center: float | None) -> None:
    pytest.importorskip("trl")
    from tests.support.trl_oracle import reward_loss

    margins = [0.0, 1.0, 0.5, 0.0, 2.0]
    chosen, rejected = (
        torch.tensor(side, dtype=torch.float64).requires_grad_()
        for side in ([2.0, -1.0, 0.3, 0.0, 5.0], [1.0, 0.5, 0.3, -3.0, 4.0])
    )
    theirs, metrics = reward_loss(chosen, rejected, torch.tensor(margins, dtype=torch.float64), center)
    examples = [example_of([(2, 3), (2, 4)], row=row, values={"margin": margin}) for row, margin in enumerate(margins)]
    loss = Reward(center)
    scores = torch.stack([chosen, rejected], dim=1).flatten()
    assert_same(loss.losses(scores, examples).sum() / loss.count(examples), theirs, (chosen, rejected))
    found = {name: float(each.total) / each.count for name, each in loss._metrics(scores.detach()).items()}
    assert found["rewards/accuracies"] == pytest.approx(metrics["accuracy"])
    assert found["rewards/margins"] == pytest.approx(metrics["margin"])
    assert found["mean_reward"] == pytest.approx(metrics["mean_reward"])


def test_reward_at_equal_scores_is_log_2() -> None:
    examples = [example_of([(2, 3), (2, 4)], values={"margin": 0.0})]
    assert float(Reward(None).losses(torch.zeros(2), examples)) == pytest.approx(math.log(2))
    assert F.logsigmoid(torch.tensor(0.0)) == pytest.approx(-math.log(2))
