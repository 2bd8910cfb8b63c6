"""Evaluation sets by name: each loss is that of the set alone, and one of them picks the best checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import lamina
from lamina.config import load_config
from lamina.errors import ConfigError, DataError
from lamina.runs import events
from lamina.runs.summary import losses_of_sets
from tests.support.training import notes_into, settings, write_rows


def write_sets(folder: Path) -> dict[str, Any]:
    rows = [json.loads(line) for line in write_rows(folder / "all.jsonl", 40).read_text().splitlines()]
    for name, chosen in {"rows": rows[:24], "one": rows[24:29], "two": rows[29:40]}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chosen))
    renamed = "".join(json.dumps({"x": row["prompt"], "y": row["completion"]}) + "\n" for row in rows[29:40])
    (folder / "two.jsonl").write_text(renamed)
    two = {"path": str(folder / "two.jsonl"), "columns": {"prompt": "x", "completion": "y"}}
    return {"one": str(folder / "one.jsonl"), "two": two}


def test_each_set_has_its_loss_and_the_chosen_one_picks_the_best(tmp_path: Path, model_folder: Path) -> None:
    sets = write_sets(tmp_path)
    data = {"eval": sets, "max_length": 128}
    found: list[str] = []
    config = settings(tmp_path, model_folder, data=data, train={"max_steps": 6, "eval_steps": 3, "best_eval": "two"})
    run = lamina.train(config, on_event=notes_into(found))
    assert any("one (5 rows), two (11 rows)" in note and "loss on two picks the best" in note for note in found)
    evaluations = list(run.events(events.Evaluation))
    assert len(evaluations) == 3
    for event in evaluations:
        losses = losses_of_sets(event.metrics)
        assert set(losses) == {"one", "two"}
        assert event.eval_loss == losses["two"] != losses["one"]
        assert event.scalars()["eval_loss/one"] == losses["one"]
    summary = run.summary
    assert summary is not None
    best = min(evaluations[1:], key=lambda event: event.eval_loss)
    assert summary.eval_loss == best.eval_loss
    assert losses_of_sets(summary.eval_metrics) == losses_of_sets(best.metrics)
    assert losses_of_sets(summary.eval_metrics_first) == losses_of_sets(evaluations[0].metrics)

    again = lamina.evaluate(run.path)
    assert again.best_set == "two"
    assert again.loss == pytest.approx(best.eval_loss, rel=1e-3)
    assert again.sets["one"].rows, again.sets["two"].rows == (5, 11)
    alone = lamina.evaluate(run.path, sets["one"])
    assert again.sets["one"].loss == pytest.approx(alone.loss, rel=1e-5)
    assert again.sets["one"].base_loss == pytest.approx(alone.base_loss, rel=1e-5)
    assert lamina.evaluate(run.path, max_rows=3).sets.keys() == {"one"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {"eval": {}}}, "names no data"),
        ({"data": {"eval": {"a b": "x"}}}, "set named 'a b'"),
        ({"data": {"eval": {"a": "x"}}, "train": {"best_eval": "b"}}, "but it has a"),
        ({"train": {"best_eval": "b"}}, "no sets with names"),
        ({"data": {"eval": {"a": {"path": "x", "weight": 2}}}}, "unknown key"),
    ],
)
def test_sets_that_cannot_be_are_errors(changes: dict[str, Any], message: str) -> None:
    data = {"train": "rows.jsonl", **changes.get("data", {})}
    with pytest.raises(ConfigError, match=message):
        load_config({"data": data, "train": changes.get("train", {})})


def test_a_set_that_is_missing_or_empty_is_named(tmp_path: Path, model_folder: Path) -> None:
    write_sets(tmp_path)
    config = settings(tmp_path, model_folder, data={"eval": {"gone": str(tmp_path / "gone.jsonl")}})
    with pytest.raises(ConfigError, match=r"data\.eval\.gone"):
        lamina.train(config)
    empty = tmp_path / "empty.jsonl"
    empty.write_text(json.dumps({"prompt": "a", "completion": ""}) + "\n")
    data = {"eval": {"one": str(tmp_path / "one.jsonl"), "empty": str(empty)}}
    with pytest.raises(DataError, match=r"empty\.jsonl.*no usable row"):
        lamina.train(settings(tmp_path, model_folder, "other", data=data))
