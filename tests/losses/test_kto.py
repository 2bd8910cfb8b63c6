"""KTO: against TRL on the same log-probabilities, closed forms, its weights, and its mismatched rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lamina.config.losses.kto import KtoConfig
from lamina.data.example import EncodedExample
from lamina.data.mismatch import draw_partners, mismatched
from lamina.losses.answers import Answers
from lamina.losses.kto import Kto
from lamina.losses.pairs import REFERENCE
from tests.support.preferences import example_of

LENGTHS = [3, 1, 9, 4, 7]
LABELS = [True, False, False, True, True]
REFERENCES = [-11.0, -2.0, -30.25, -9.5, -21.0]
LOG_PROBS = [-10.2, -2.6, -28.0, -9.9, -24.0]
MISMATCHED, MISMATCHED_REFERENCE = [-30.0, -40.5, -22.0, -60.0, -51.0], [-32.0, -40.0, -25.0, -59.0, -55.5]


def built(**changes: Any) -> Kto:
    return Kto(KtoConfig(**changes))


def examples_with(kl: float) -> list[EncodedExample]:
    return [
        example_of(
            [(3, length)],
            row=row + 1,
            values={"label": float(label), REFERENCE.format(0): reference, "step/kl": kl, "step/kl_unclamped": kl},
        )
        for row, (length, label, reference) in enumerate(zip(LENGTHS, LABELS, REFERENCES, strict=True))
    ]


def ours(loss: Kto, log_probs: torch.Tensor, kl: float) -> torch.Tensor:
    answers = Answers(log_probs, torch.tensor(LENGTHS, dtype=log_probs.dtype))
    examples = examples_with(kl)
    return loss.losses(answers, examples)[0].sum() / loss.count(examples)


def log_probs() -> torch.Tensor:
    return torch.tensor(LOG_PROBS, dtype=torch.float64).requires_grad_()


@pytest.mark.parametrize("beta", [0.05, 0.1, 1.0])
@pytest.mark.parametrize("loss_type", ["kto", "apo_zero_unpaired"])
@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.3, 0.7)])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_as_in_trl(loss_type: str, beta: float, weights: tuple[float, float], sign: float) -> None:
    """TRL's KL is that of a micro-batch; with one micro-batch in the step, it is the step's."""
    pytest.importorskip("trl")
    from tests.support.trl_oracle import kto_loss

    policy, reference = (MISMATCHED, MISMATCHED_REFERENCE) if sign > 0 else (MISMATCHED_REFERENCE, MISMATCHED)
    kl = max(float(np.mean(np.array(policy) - np.array(reference))), 0.0)
    loss = built(beta=beta, loss_type=loss_type, desirable_weight=weights[0], undesirable_weight=weights[1])
    given_ = log_probs()
    got = ours(loss, given_, kl)
    theirs, metrics = kto_loss(
        given_,
        LABELS,
        LENGTHS,
        REFERENCES,
        torch.tensor(policy, dtype=torch.float64),
        reference,
        beta=beta,
        loss_type=loss_type,
        desirable_weight=weights[0],
        undesirable_weight=weights[1],
    )
    torch.testing.assert_close(got, theirs, rtol=1e-10, atol=1e-12)
    gradients = [torch.autograd.grad(value, given_)[0] for value in (got, theirs)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-12)
    answers = Answers(given_, torch.tensor(LENGTHS, dtype=torch.float64))
    examples = examples_with(kl)
    found = loss._metrics(given_, loss.losses(answers, examples)[1], examples)
    for name in ("rewards/chosen", "rewards/rejected", "logps/chosen", "logps/rejected"):
        assert float(found[name].total) / found[name].count == pytest.approx(metrics[name], rel=1e-9), name


def test_closed_form_of_the_gradients() -> None:
    """-w beta sigmoid'(beta (r - z)) / S for a desirable answer, and with the opposite sign for another one."""
    loss, given_, kl = built(beta=0.2, desirable_weight=1.5, undesirable_weight=0.5), log_probs(), 1.25
    (got,) = torch.autograd.grad(ours(loss, given_, kl), given_)
    at = torch.sigmoid(0.2 * (given_ - torch.tensor(REFERENCES, dtype=torch.float64) - kl))
    signed = torch.tensor([-1.5 if label else 0.5 for label in LABELS], dtype=torch.float64)
    torch.testing.assert_close(got, signed * 0.2 * at * (1 - at) / len(LABELS), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("desirable", "undesirable", "weights"),
    [(10, 10, (1.0, 1.0)), (12, 10, (1.0, 1.0)), (10, 30, (3.0, 1.0)), (40, 10, (1.0, 3.0)), (1, 1000, (1000.0, 1.0))],
)
def test_weights_balance_the_labels(desirable: int, undesirable: int, weights: tuple[float, float]) -> None:
    loss = built()
    loss._balance(desirable, undesirable)
    assert (loss.desirable_weight, loss.undesirable_weight) == pytest.approx(weights)
    ratio = desirable * loss.desirable_weight / (undesirable * loss.undesirable_weight)
    assert 1 - 1e-12 <= ratio <= 4 / 3 + 1e-12


@pytest.mark.parametrize("given_", [{"desirable_weight": 2.0}, {"undesirable_weight": 2.0}])
def test_a_given_weight_stays_and_the_other_balances_it(given_: dict[str, float]) -> None:
    loss = built(**given_)
    loss._balance(10, 40)
    assert {"desirable_weight": loss.desirable_weight, "undesirable_weight": loss.undesirable_weight}.items() >= {
        *given_.items()
    }
    assert 10 * loss.desirable_weight / (40 * loss.undesirable_weight) == pytest.approx(1.0)


@settings(deadline=None, max_examples=200)
@given(prompts=st.lists(st.integers(0, 6), max_size=60), seed=st.integers(0, 5))
def test_partners_are_a_permutation_with_other_prompts(prompts: list[int], seed: int) -> None:
    partners = draw_partners(np.array(prompts, dtype=np.uint64), seed)
    assert sorted(partners.tolist()) == list(range(len(prompts)))
    if len(prompts) > 1:
        assert not (partners == np.arange(len(prompts))).any()
    most = max((prompts.count(prompt) for prompt in prompts), default=0)
    if 2 * most <= len(prompts):
        assert all(prompts[place] != prompts[partner] for place, partner in enumerate(partners))


@settings(deadline=None, max_examples=60)
@given(
    own=st.lists(st.tuples(st.integers(1, 20), st.integers(1, 20)), min_size=1, max_size=2),
    other=st.lists(st.tuples(st.integers(1, 20), st.integers(1, 20)), min_size=1, max_size=2),
    limit=st.integers(40, 60),
)
def test_mismatched_rows(own: list[tuple[int, int]], other: list[tuple[int, int]], limit: int) -> None:
    prompt_of, answer_of = example_of(own, row=1), example_of(other, row=2)
    found = mismatched(prompt_of, answer_of, limit)
    assert len(found.lengths) == len(own)
    for number, (before, _) in enumerate(own):
        after_prompt, after = other[number % len(other)]
        sequence, answer = found.sequence(number), answer_of.sequence(number % len(other))
        assert sequence.input_ids[:before].tolist() == prompt_of.sequence(number).input_ids[:before].tolist()
        assert sequence.input_ids[before:].tolist() == answer.input_ids[after_prompt:].tolist()
        assert sequence.supervised.tolist() == [False] * before + [True] * after
    short = mismatched(prompt_of, answer_of, 25)
    assert all(length <= 25 for length in short.lengths)
    assert all(short.sequence(number).supervised.any() for number in range(len(own)))
