"""Candidates with different losses: fields that mean the same are kept, and evaluation losses have no best."""

from __future__ import annotations

from pathlib import Path

import pytest

from lamina.comparison.candidates import build_candidates
from lamina.comparison.compare import compare
from lamina.comparison.report import Comparison, Outcome, columns
from lamina.errors import ConfigError

DPO = {"data": {"train": "pairs.jsonl"}, "loss": {"type": "dpo", "beta": 0.3, "label_smoothing": 0.1}}


def test_fields_that_mean_the_same_are_kept(tmp_path: Path) -> None:
    found = build_candidates(DPO, tmp_path, grid={"loss.type": ["dpo", "cpo", "simpo"]})
    losses = {candidate.config.loss.type: candidate.config.loss.model_dump() for candidate in found}
    assert losses["dpo"]["beta"] == losses["cpo"]["beta"] == 0.3
    assert losses["simpo"]["beta"] == 2.0, "beta has another scale in SimPO"
    assert all(loss["label_smoothing"] == 0.1 for loss in losses.values())
    (named,) = build_candidates(DPO, tmp_path, named={"orpo": ["loss.type=orpo"]})
    assert named.config.loss.model_dump() == {"type": "orpo", "beta": 0.3}


def test_losses_of_different_kinds_have_no_best() -> None:
    mixed = [Outcome("a", "lora", state="done", loss_type="dpo", eval_loss=0.5, accuracy=0.8, margin=1.0)]
    mixed.append(Outcome("b", "lora", state="done", loss_type="simpo", eval_loss=0.4, accuracy=0.7, margin=0.5))
    heads = {column.title: column for column in columns(_comparison(mixed))}
    assert heads["eval loss"].best is None
    best = heads["preferred"].best
    assert best is not None and best(mixed[0]) == -0.8
    betas = [Outcome(n, "lora", {"loss.beta": n}, loss_type="dpo", eval_loss=0.5) for n in ("0.1", "0.5")]
    assert {column.title: column for column in columns(_comparison(betas))}["eval loss"].best is None
    same = [Outcome("a", "lora", state="done", loss_type="dpo", eval_loss=0.5)]
    assert {column.title: column for column in columns(_comparison(same))}["eval loss"].best is not None


def test_screening_needs_one_loss(tmp_path: Path) -> None:
    candidates = build_candidates(DPO, tmp_path, grid={"loss.type": ["dpo", "cpo", "simpo"]})
    with pytest.raises(ConfigError, match="different losses: cpo, dpo, simpo"):
        compare(candidates, tmp_path, screen=True)
    candidates = build_candidates(DPO, tmp_path, grid={"loss.beta": ["0.1", "0.3", "1.0"]})
    with pytest.raises(ConfigError, match=r"the candidates differ in loss\.beta"):
        compare(candidates, tmp_path, screen=True)


def _comparison(outcomes: list[Outcome]) -> Comparison:
    return Comparison(settings={}, outcomes=outcomes)
