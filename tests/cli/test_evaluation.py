"""`lamina eval` on tasks and `lamina gate`: what they print, their exit codes, and what they refuse."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lamina.runs import Run
from tests.support.cli import Cli, write_rows
from tests.support.evaluation import write_task


@pytest.fixture
def task(tmp_path: Path) -> Path:
    """Rows that the trained adapter was not trained on."""
    write_rows(tmp_path / "asked.jsonl", [{"prompt": f"tell {n}", "completion": f"{n}!"} for n in range(12)])
    return write_task(tmp_path / "task.yaml")


def test_eval_on_a_task_prints_subjects_pairs_and_the_folder(cli: Cli, trained: Run, task: Path) -> None:
    found = cli("eval", trained.path, "--task", task, "--json", "--out", "e").json()
    names = [subject["subject"] for subject in found["subjects"]]
    assert names[0] == str(trained.path)
    assert len(names) == 2
    for subject in found["subjects"]:
        assert subject["digest"].startswith("sha256:")
        assert set(subject["tasks"]["task"]["exact_match"]) == {"value", "low", "high", "rows"}
    pair = found["pairs"][0]
    expected = {"a", "b", "task", "metric", "difference", "low", "high", "p", "wins", "losses", "ties", "verdict"}
    assert expected <= set(pair)
    assert pair["verdict"] in ("better", "worse", "not_enough_rows")
    assert json.loads(Path(found["evaluation"], "result.json").read_text())["digest"] == found["digest"]


def test_eval_without_a_task_is_what_it_was(cli: Cli, trained: Run) -> None:
    found = cli("eval", trained.path, "--json").json()
    assert {"loss", "perplexity", "base_loss", "exact_match", "rows", "dropped", "notes", "scores"} <= set(found)


def test_only_one_adapter_is_shared_by_processes(cli: Cli, trained: Run, task: Path) -> None:
    for more in (["--task", task], [trained.path]):
        assert "--nproc: shares the evaluation of one adapter" in cli("eval", trained.path, *more, "--nproc", 2).error()
    assert "--nproc: '0' is not a number of processes" in cli("eval", trained.path, "--nproc", 0).error()


@pytest.mark.slow
def test_processes_print_what_one_does(cli: Cli, trained: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    command = [sys.executable, "-m", "lamina", "eval", str(trained.path), "--json", "--score", "contains"]
    command += ["--predictions", str(tmp_path / "answers.jsonl")]
    found = []
    for more in ([], ["--nproc", "2"]):
        ended = subprocess.run([*command, *more], capture_output=True, text=True, check=True)
        found.append((json.loads(ended.stdout), (tmp_path / "answers.jsonl").read_text()))
    assert found[0] == found[1]


def test_rows_alone_are_a_task(cli: Cli, trained: Run, model_folder: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "few.jsonl", [{"q": f"tell {n}", "a": "x"} for n in range(3)])
    columns = ["--column", "prompt=q", "--column", "completion=a"]
    found = cli("eval", model_folder, "--data", data, *columns, "--score", "contains", "--max-new-tokens", 3, "--json")
    (subject,) = found.json()["subjects"]
    assert subject["tasks"]["few"]["contains"]["rows"] == 3
    assert found.json()["pairs"] == []


def test_a_model_alone_is_asked_for_data(cli: Cli, model_folder: Path) -> None:
    for model in (model_folder, "smollm2-135m"):
        assert "--data FILE" in cli("eval", model).error()


def test_power_says_how_many_rows_it_takes(cli: Cli, trained: Run, task: Path, model_folder: Path) -> None:
    options = ["--task", task, "--against", model_folder, "--no-forgetting", "--json"]
    small, large = (cli("eval", trained.path, *options, "--power", d).json()["pairs"][0] for d in (0.05, 0.3))
    assert small["rows_needed"] > large["rows_needed"] > 0


def test_the_table_and_the_verdicts_are_printed(cli: Cli, trained: Run, task: Path) -> None:
    shown = cli("eval", trained.path, "--task", task, "--no-forgetting")
    assert shown.code == 0
    assert "task: exact_match" in shown.out
    assert "page.html" in shown.out


def test_stored_evaluations_are_paired(cli: Cli, trained: Run, task: Path, model_folder: Path) -> None:
    for name, subject in (("one", trained.path), ("two", model_folder)):
        assert cli("eval", subject, "--task", task, "--no-forgetting", "--out", name).code == 0
    found = cli("eval", "one", "two", "--json").json()
    assert [(pair["a"], pair["b"], pair["rows"]) for pair in found["pairs"]] == [("one", "two", 12)]
    said = cli("eval", "one", "two", "--few-shot", 4, "--general", "text.txt").error()
    assert "--few-shot: has no effect on evaluations that are stored" in said
    Path("two/page.html").write_text("changed")
    assert "was changed after it was written" in cli("eval", "one", "two").error()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["RUN", "--task", "nope.yaml"], "--task: nope.yaml does not exist"),
        (["RUN", "--task", "arithmetik"], "Did you mean 'arithmetic'"),
        (["../x/../y", "--task", "TASK"], "../x/../y"),
        (["http://127.0.0.1:1/v1", "--task", "TASK"], "names no model"),
        (["RUN", "--task", "TASK", "--predictions", "p.jsonl"], "--predictions"),
        (["RUN", "--task", "TASK", "--cluster-by", "grup"], "has no column 'grup'"),
        (["RUN", "--task", "TASK", "--power", "0"], "--power"),
        (["RUN", "--tasks", "x", "--task", "TASK", "--against", "a/../b"], "a/../b"),
        (["RUN", "--task", "TASK", "--chat"], "--chat"),
        (["RUN", "--task", "TASK", "--task", "arithmetic", "--data", "rows.jsonl"], "--data"),
        (["RUN", "--task", "TASK", "--general", "nope.txt"], "nope.txt"),
        (["RUN", "--task", "TASK", "--few-shot", "30"], "30 examples"),
        (["RUN", "--tasks", "x", "--cluster-by", "group"], "--cluster-by: has no effect on lm-eval's tasks"),
        (["RUN", "--tasks", "x", "--score", "exact_match"], "--score: has no effect on lm-eval's tasks"),
        (["http://127.0.0.1:1/v1#m", "--task", "TASK", "--few-shot", "2"], "--few-shot: has no effect"),
        (["RUN", "--task", "TASK", "--no-forgetting", "--general", "rows.jsonl"], "--general: has no effect"),
    ],
)
def test_mistakes_are_named(cli: Cli, trained: Run, task: Path, rows: Path, arguments: list[str], message: str) -> None:
    given = [{"RUN": str(trained.path), "TASK": str(task)}.get(each, each) for each in arguments]
    assert message in cli("eval", *given).error()


def test_a_task_file_reports_all_mistakes_at_once(cli: Cli, trained: Run, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("name: a/b\ndta: x\ngeneration: {max_tokens: 0, temprature: 1}\n")
    error = cli("eval", trained.path, "--task", "bad.yaml").error()
    for word in ("name", "data: is required", "Did you mean 'data'", "max_tokens", "Did you mean 'temperature'"):
        assert word in error


def test_gate_exit_codes(cli: Cli, trained: Run, task: Path, model_folder: Path, tmp_path: Path) -> None:
    gate = tmp_path / "gate.yaml"
    gate.write_text("better: [{task: task.yaml, metric: exact_match}]\n")
    found = cli("gate", trained.path, "--against", model_folder, "--gate", gate, "--json")
    assert found.code == 3
    value = found.json()
    assert value["verdict"] == "not_enough_rows"
    assert set(value["checks"][0]) >= {"name", "passed", "value", "low", "high", "limit", "rows_needed"}
    assert Path(value["record_file"]).stem == value["record"].removeprefix("sha256:")
    gate.write_text("floors: [{task: task.yaml, metric: exact_match, at_least: 0.99}]\n")
    held = cli("gate", trained.path, "--against", "base", "--gate", gate)
    assert held.code == 1
    assert held.out.rstrip().endswith("HOLD")
    gate.write_text("floors: [{task: task.yaml, metric: exact_match, at_most: 1.0}]\ncertificate: required\n")
    passed = cli("gate", trained.path, "--against", "base", "--gate", gate)
    assert passed.code == 0
    assert passed.out.rstrip().endswith("PROMOTE")
    gate.write_text("better: [{task: task.yaml, metric: exact_mtch}]\n")
    assert "Did you mean 'exact_match'" in cli("gate", trained.path, "--against", "base", "--gate", gate).error()
