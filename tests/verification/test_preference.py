"""`verify` with losses over answers: green where all is well, and red on the right line when one thing is broken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import lamina
from lamina import Verification
from lamina.losses import answers, dft, kto
from lamina.losses.answers import Answers
from lamina.losses.dpo import Dpo
from lamina.losses.pairs import PairLoss
from lamina.methods.shared.score import ScoreHead
from lamina.training import setup
from tests.support.preferences import write_labels, write_pairs
from tests.support.verification import tiny_config

REFERENCE_LINE = "precomputed reference = live"


def verified(folder: Path, loss: dict[str, Any], **changes: Any) -> Verification:
    values = tiny_config(folder, loss=loss, **changes)
    if loss["type"] != "distillation":
        write = write_labels if loss["type"] == "kto" else write_pairs
        values["data"]["train"] = str(write(folder / "answers.jsonl"))
    return lamina.verify(values)


def failed(result: Verification) -> set[str]:
    return {check.name for check in result.checks if check.passed is False}


@pytest.mark.parametrize(
    "loss",
    [
        {"type": "dpo"},
        {"type": "dpo", "loss_type": ["sigmoid", "sft"]},
        {"type": "kto"},
        {"type": "orpo"},
        {"type": "simpo"},
        {"type": "cpo"},
        {"type": "reward", "center_rewards_coefficient": 0.01},
    ],
    ids=["dpo", "rpo", "kto", "orpo", "simpo", "cpo", "reward"],
)
def test_green(loss: dict[str, Any], tmp_path: Path) -> None:
    result = verified(tmp_path, loss)
    assert result.passed, [check for check in result.checks if not check.passed]
    names = [check.name for check in result.checks]
    assert (REFERENCE_LINE in names) == (loss["type"] in ("dpo", "kto"))
    skipped = {check.name for check in result.checks if check.passed is None}
    assert skipped == ({"merged = adapter"} if loss["type"] == "reward" else set())


@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_green_for_distillation(beta: float, tmp_path: Path) -> None:
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("Swap the words!", encoding="utf-8")
    loss = {"type": "distillation", "teacher_prompt": str(prompt), "beta": beta}
    result = verified(tmp_path, loss)
    assert result.passed, [check for check in result.checks if not check.passed]


@pytest.mark.parametrize("loss", ["dft", "eaft", "asft"])
def test_green_for_weighted_tokens(loss: str, tmp_path: Path) -> None:
    result = lamina.verify(tiny_config(tmp_path, loss={"type": loss}))
    assert result.passed, [check for check in result.checks if not check.passed]


def test_weights_of_the_micro_batch_are_red(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that are divided by their sum over a micro-batch, so that they depend on the company of a row."""
    monkeypatch.setattr(dft, "weighed", lambda logs: -logs.detach().softmax(0) * logs)
    assert "accumulation = full batch" in failed(lamina.verify(tiny_config(tmp_path, loss={"type": "dft"})))


def test_green_from_a_start(tmp_path: Path) -> None:
    """The reference is the start as it was, although the adapter is filled with other values."""
    values = tiny_config(tmp_path)
    start = lamina.train({**values, "train": {"max_steps": 2}, "output_dir": str(tmp_path / "sft")})
    result = verified(tmp_path, {"type": "dpo"}, method={"from": str(start.path)})
    assert result.passed, [check for check in result.checks if not check.passed]


@pytest.mark.parametrize("loss", ["dpo", "kto"])
def test_a_wrong_reference_is_red(loss: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = setup.with_reference

    def wrong(side: Any, *rest: Any) -> Any:
        found = real(side, *rest)
        return found.with_values({name: column - 0.5 for name, column in found.values.items() if name.endswith("/0")})

    monkeypatch.setattr(setup, "with_reference", wrong)
    assert REFERENCE_LINE in failed(verified(tmp_path, {"type": loss}))


def test_a_mean_of_micro_batches_is_red(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As TRL has it: the likelihood of a micro-batch's tokens, instead of the step's."""
    from lamina.losses.pairs import ChosenLikelihood, Pairs

    def of_micro_batch(self: ChosenLikelihood, pairs: Pairs) -> torch.Tensor:
        return -pairs.chosen * len(pairs.chosen) / pairs.chosen_lengths.sum()

    monkeypatch.setattr(ChosenLikelihood, "negative_likelihood", of_micro_batch)
    loss = {"type": "dpo", "loss_type": ["sigmoid", "sft"]}
    assert "accumulation = full batch" in failed(verified(tmp_path, loss))


def test_a_divisor_of_the_micro_batch_is_red(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = PairLoss.compute

    def averaged(self: PairLoss, model: Any, head: Any, batches: Any) -> Any:
        found = real(self, model, head, batches)
        return type(found)(found.total / len(batches[0].examples), found.metrics)

    monkeypatch.setattr(PairLoss, "compute", averaged)
    assert failed(verified(tmp_path, {"type": "dpo"})) >= {"accumulation = full batch", "packed = one at a time"}


def test_a_kl_of_the_micro_batch_is_red(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = kto.Kto.over_step

    def each(self: kto.Kto, model: Any, head: Any, micro_batches: Any, layout: Any, world: Any, **_: Any) -> Any:
        return [real(self, model, head, [examples], layout, world)[0] for examples in micro_batches]

    monkeypatch.setattr(kto.Kto, "over_step", each)
    monkeypatch.setattr(kto, "max", lambda kl, zero: kl, raising=False)  # so that a negative estimate shows too
    assert "accumulation = full batch" in failed(verified(tmp_path, {"type": "kto"}))


def test_answers_that_leak_into_each_other_are_red(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Log-probabilities that are added up to the wrong document of a packed batch."""
    real = answers._of_batch

    def leaking(model: Any, head: Any, batch: Any) -> Answers:
        found = real(model, head, batch)
        mixed = found.log_probs + 0.1 * (found.log_probs.roll(1) if len(found.log_probs) > 1 else 0)
        return Answers(mixed, found.lengths)

    monkeypatch.setattr(answers, "_of_batch", leaking)
    assert "packed = one at a time" in failed(verified(tmp_path, {"type": "dpo"}))


def test_a_wrong_formula_is_red(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of beta in the hot path alone."""
    real = Dpo.compute

    def halved(self: Dpo, model: Any, head: Any, batches: Any) -> Any:
        self.beta /= 2
        try:
            return real(self, model, head, batches)
        finally:
            self.beta *= 2

    monkeypatch.setattr(Dpo, "compute", halved)
    assert "chunked loss = transformers' loss" in failed(verified(tmp_path, {"type": "dpo"}))


def test_a_head_that_is_lost_on_reload_is_red(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lamina.adapters import fit

    real = fit.with_saved_score

    def lost(*given: Any) -> Any:
        found = real(*given)
        head = next((layer for layer in found.layers.values() if isinstance(layer, ScoreHead)), None)
        if head is not None:
            head.forward = lambda hidden: torch.zeros(*hidden.shape[:-1], 1)  # pyright: ignore[reportAttributeAccessIssue]
        return found

    monkeypatch.setattr(fit, "with_saved_score", lost)
    assert "saved = loaded" in failed(verified(tmp_path, {"type": "reward"}))
