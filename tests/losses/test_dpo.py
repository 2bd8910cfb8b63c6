"""DPO and its variants: against TRL on the same log-probabilities, against closed forms, and by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from lamina.config.losses.dpo import DpoConfig
from lamina.data.batch import PACKED
from lamina.distributed.world import ALONE
from lamina.losses.dpo import Dpo
from lamina.losses.pairs import pair_metrics
from tests.support.preferences import example_of, pairs_of

LENGTHS = [(3, 5), (1, 1), (9, 2), (4, 4), (7, 10)]
REFERENCE = [(-11.0, -14.5), (-2.0, -1.0), (-30.25, -6.0), (-9.5, -9.75), (-21.0, -33.0)]
CHOSEN = [-10.2, -2.6, -28.0, -9.9, -24.0]
REJECTED = [-15.0, -0.7, -9.0, -9.2, -30.0]

TYPES = ["sigmoid", "hinge", "ipo", "robust", "apo_zero", "apo_down", "sigmoid_norm", "bco_pair"]


def answers(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor(CHOSEN, dtype=dtype).requires_grad_(), torch.tensor(REJECTED, dtype=dtype).requires_grad_()


def built(**settings: Any) -> Dpo:
    return Dpo(DpoConfig(**settings))


def ours(loss: Dpo, chosen: torch.Tensor, rejected: torch.Tensor) -> torch.Tensor:
    """The mean over all pairs as one step computes it."""
    pairs = pairs_of(chosen, rejected, LENGTHS, REFERENCE)
    (examples,) = loss.over_step(None, None, [pairs.examples], PACKED, ALONE)  # pyright: ignore[reportArgumentType]
    pairs = type(pairs)(*(getattr(pairs, name) for name in list(vars(pairs))[:4]), examples)
    return loss.losses(pairs).losses.sum() / loss.count(examples)


@pytest.mark.parametrize("beta", [0.05, 0.1, 1.0])
@pytest.mark.parametrize("loss_type", [[name] for name in TYPES] + [["sigmoid", "sft"], ["sigmoid", "bco_pair", "sft"]])
def test_as_in_trl(loss_type: list[str], beta: float) -> None:
    pytest.importorskip("trl")
    from tests.support.trl_oracle import dpo_loss

    smoothing = 0.2 if "robust" in loss_type else 0.0
    weights = [0.7, 0.3, 1.5][: len(loss_type)]
    loss = built(beta=beta, loss_type=loss_type, loss_weights=weights, label_smoothing=smoothing)
    chosen, rejected = answers()
    got = ours(loss, chosen, rejected)
    theirs, metrics = dpo_loss(
        chosen,
        rejected,
        LENGTHS,
        REFERENCE,
        beta=beta,
        loss_types=loss_type,
        loss_weights=weights,
        label_smoothing=smoothing,
    )
    torch.testing.assert_close(got, theirs, rtol=1e-10, atol=1e-12)
    pairs = zip(
        torch.autograd.grad(got, [chosen, rejected]), torch.autograd.grad(theirs, [chosen, rejected]), strict=True
    )
    for gradient, expected in pairs:
        torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-12)
    found = loss.losses(
        pairs_of(chosen, rejected, LENGTHS, REFERENCE, **{"step/pairs_per_chosen_token": [1.0] * len(LENGTHS)})
    )
    our_metrics = pair_metrics(pairs_of(chosen, rejected, LENGTHS, REFERENCE), found)
    for name in ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies", "logps/chosen"):
        assert float(our_metrics[name].total) / our_metrics[name].count == pytest.approx(metrics[name], rel=1e-6), name


def test_label_smoothing_with_sigmoid_is_cdpo() -> None:
    """TRL 1.16 ignores it; the formula is that of the note on conservative DPO."""
    chosen, rejected = answers()
    got = ours(built(beta=0.3, label_smoothing=0.1), chosen, rejected)
    references = torch.tensor(REFERENCE, dtype=torch.float64)
    difference = 0.3 * ((chosen - references[:, 0]) - (rejected - references[:, 1]))
    expected = -(0.9 * difference.sigmoid().log() + 0.1 * (1 - difference.sigmoid()).log()).mean()
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("loss_type", "value"),
    [("sigmoid", math.log(2)), ("hinge", 1.0), ("ipo", 25.0), ("apo_zero", 1.0), ("apo_down", 1.0)],
)
def test_the_loss_at_the_start(loss_type: str, value: float) -> None:
    """Where the policy is the reference: log 2, and 1 / (4 beta^2) for ipo."""
    chosen, rejected = (torch.tensor(side, dtype=torch.float64) for side in zip(*REFERENCE, strict=True))
    assert float(ours(built(loss_type=[loss_type]), chosen, rejected)) == pytest.approx(value, rel=1e-12)


def test_closed_form_of_the_gradients() -> None:
    """d L / d log p(chosen) = -beta sigmoid(-beta D) / S, and the opposite for the rejected answer."""
    chosen, rejected = answers()
    references = torch.tensor(REFERENCE, dtype=torch.float64)
    difference = (chosen - references[:, 0]) - (rejected - references[:, 1])
    weight = -0.1 * torch.sigmoid(-0.1 * difference) / len(LENGTHS)
    of_chosen, of_rejected = torch.autograd.grad(ours(built(), chosen, rejected), [chosen, rejected])
    torch.testing.assert_close(of_chosen, weight, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(of_rejected, -weight, rtol=1e-12, atol=1e-14)


def test_closed_form_of_ipo() -> None:
    chosen, rejected = answers()
    lengths, references = torch.tensor(LENGTHS, dtype=torch.float64), torch.tensor(REFERENCE, dtype=torch.float64)
    averages = (chosen - references[:, 0]) / lengths[:, 0] - (rejected - references[:, 1]) / lengths[:, 1]
    weight = 2 * (averages - 1 / 0.2) / len(LENGTHS)
    of_chosen, of_rejected = torch.autograd.grad(ours(built(loss_type=["ipo"]), chosen, rejected), [chosen, rejected])
    torch.testing.assert_close(of_chosen, weight / lengths[:, 0], rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(of_rejected, -weight / lengths[:, 1], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("loss_type", TYPES)
def test_gradients_by_finite_differences(loss_type: str) -> None:
    smoothing = 0.2 if loss_type == "robust" else 0.0
    loss = built(loss_type=[loss_type], label_smoothing=smoothing)
    assert torch.autograd.gradcheck(lambda c, r: ours(loss, c, r), answers(), eps=1e-6, atol=1e-7)


def test_sft_is_a_mean_over_the_tokens_of_the_whole_step() -> None:
    """However the pairs are divided into micro-batches; TRL's is a mean of the micro-batches' means."""
    loss = built(loss_type=["sigmoid", "sft"])
    chosen, rejected = answers()
    pairs = pairs_of(chosen, rejected, LENGTHS, REFERENCE)
    tokens = sum(length for length, _ in LENGTHS)
    parts = [pairs.examples[:1], pairs.examples[1:]]
    groups = loss.over_step(None, None, parts, PACKED, ALONE)  # pyright: ignore[reportArgumentType]
    total, at = torch.zeros((), dtype=torch.float64), 0
    for group in groups:
        part = slice(at, at + len(group))
        lengths = (pairs.chosen_lengths[part], pairs.rejected_lengths[part])
        total = total + loss.losses(type(pairs)(chosen[part], rejected[part], *lengths, group)).losses.sum()
        at += len(group)
    expected = ours(built(), chosen, rejected) - chosen.sum() / tokens
    torch.testing.assert_close(total / len(LENGTHS), expected, rtol=1e-12, atol=1e-12)


def test_a_note_where_both_answers_lose_probability() -> None:
    first = {"logps/chosen": -100.0, "logps/rejected": -120.0, "rewards/margins": 0.0}
    fallen = {"logps/chosen": -130.0, "logps/rejected": -190.0, "rewards/margins": 4.0}
    (note,) = built().remarks(first, fallen)
    assert "-100.0 -> -130.0" in note
    assert "[sigmoid,sft]" in note
    assert "loss_weights" in built(loss_type=["sigmoid", "sft"]).remarks(first, fallen)[0]
    assert not built().remarks(first, {**fallen, "logps/chosen": -99.0})
    assert not built().remarks(first, {**fallen, "rewards/margins": -1.0})
    assert not built().remarks(first, first)


def test_a_step_of_one_pair_counts_one() -> None:
    assert built().count([example_of([(3, 2), (3, 4)])]) == 1.0
