"""What a run shows of itself, from events alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from lamina.config import Config, resolved_values
from lamina.runs import Run, compare_runs
from lamina.runs.curves import plot_events, tabulate
from lamina.runs.events import Evaluation, Event, Note
from lamina.runs.summary import LOSS_OF_SET
from tests.support.events import step

EVENTS: list[Event] = [
    Note(0, message="x"),
    Evaluation(0, eval_loss=3.0, of="base"),
    step(1, 4.0),
    step(2, 2.0),
    Evaluation(2, eval_loss=2.5, of="adapter", best_step=2),
    step(3, 1.0),
    step(4, 1.0),
    Evaluation(4, eval_loss=2.75, of="adapter", best_step=2),
]


def test_the_table_has_a_row_for_each_evaluation() -> None:
    rows = list(tabulate(EVENTS))
    assert [row["step"] for row in rows] == [0, 2, 4]
    assert [row["train_loss"] for row in rows] == [None, 3.0, 1.0]
    assert [row["eval_loss"] for row in rows] == [3.0, 2.5, 2.75]
    assert [row["note"] for row in rows] == ["bare base", "best so far", ""]


def test_without_evaluations_it_has_steps() -> None:
    rows = list(tabulate([step(number, 1.0) for number in range(1, 101)]))
    assert len(rows) <= 21 and rows[-1]["step"] == 100
    assert len(tabulate([])) == 0 and repr(tabulate([])) == "step"


def test_plots() -> None:
    chart = plot_events(EVENTS, "loss", "run")
    assert [(line.name, list(line.xs)) for line in chart.lines] == [
        ("training", [1, 2, 3, 4]),
        ("evaluation", [0, 2, 4]),
    ]
    of_sets = [Evaluation(n, eval_loss=1.0, of="adapter", metrics={f"{LOSS_OF_SET}easy": 2.0 - n}) for n in (0, 1)]
    assert [(line.name, list(line.ys)) for line in plot_events(of_sets, "loss", "run").lines] == [
        ("evaluation", [1.0, 1.0]),
        ("on easy", [2.0, 1.0]),
    ]
    assert list(plot_events(EVENTS, "accuracy", "run").lines[0].ys) == [0.1, 0.2, 0.3, 0.4]
    with pytest.raises(ValueError, match=r"'losss' is not a metric .* accuracy, .*eval_loss"):
        plot_events(EVENTS, "losss", "run")


def write_run(path: Path, seed: int) -> Run:
    run = Run(path)
    path.mkdir(parents=True)
    config = Config.model_validate({"data": {"train": "a.jsonl"}, "seed": seed, "output_dir": str(path)})
    run.config_path.write_text(yaml.safe_dump(resolved_values(config)))
    run.metrics_path.write_text("".join(json.dumps(event.as_json()) + "\n" for event in EVENTS))
    return run


def test_runs_side_by_side(tmp_path: Path) -> None:
    one, other = write_run(tmp_path / "one", 1), write_run(tmp_path / "other", 2)
    found = compare_runs(one, str(other.path))
    assert list(found.table) == [{"": "seed", "one": 1, "other": 2}]
    assert [line.name for line in found.chart.lines] == [
        f"{name} {what}" for name in ("one", "other") for what in ("training", "evaluation")
    ]
    assert "<svg" in found._repr_html_() and "seed" in repr(found)
    with pytest.raises(ValueError, match="two runs or more"):
        compare_runs(one)


def test_short_names(tmp_path: Path) -> None:
    assert repr(Run(tmp_path)) == f"<Run {tmp_path}: not started>"
    (tmp_path / "manifest.json").write_text("{")
    assert repr(Run(tmp_path)) == f"<Run {tmp_path}: unreadable>"
