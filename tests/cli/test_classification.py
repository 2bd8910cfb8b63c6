"""`lamina classify`, and what `lamina eval` says of a classifier."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import lamina
from lamina.runs import Run
from tests.support.cli import Cli, write_rows
from tests.support.models_zoo import build_model, build_tokenizer
from tests.support.training import settings


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("classifier")
    build_model("llama", vocab_size=259).save_pretrained(folder / "base")
    build_tokenizer().save_pretrained(folder / "base")
    rows = [{"text": f"{i} {'great' if i % 2 else 'awful'}", "label": "pos" if i % 2 else "neg"} for i in range(40)]
    write_rows(folder / "rows.jsonl", rows)
    train = {"max_steps": 12, "per_device_train_batch_size": 8, "learning_rate": 2e-2, "eval_steps": 12}
    return lamina.train(settings(folder, folder / "base", loss={"type": "classification"}, train=train))


def test_texts_get_their_class_and_its_probability(cli: Cli, classifier: Run) -> None:
    found = cli("classify", str(classifier.path), "-t", "3 great", "-t", "awful")
    lines = [line.split("\t") for line in found.out.splitlines()]
    assert found.code == 0 and [label for label, _ in lines] == ["pos", "neg"]
    assert all(0.5 < float(probability) <= 1.0 for _, probability in lines)
    results = cli("classify", str(classifier.path), "-t", "3 great", "--json").json()["results"]
    assert results[0]["text"] == "3 great" and results[0]["predicted"] == "pos"
    assert sum(results[0]["probabilities"].values()) == pytest.approx(1.0, abs=1e-5)


def test_a_file_keeps_its_columns(cli: Cli, classifier: Run, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("id,text\n7,1 great\n8,2 awful\n")
    target = tmp_path / "out.jsonl"
    done = cli("classify", str(classifier.path), "--data", str(tmp_path / "in.csv"), "--out", str(target))
    assert done.code == 0 and "2 rows classified" in done.out
    rows: list[dict[str, Any]] = [json.loads(line) for line in target.read_text().splitlines()]
    assert [(str(row["id"]), row["predicted"]) for row in rows] == [("7", "pos"), ("8", "neg")]


def test_eval_prints_the_classes(cli: Cli, classifier: Run) -> None:
    shown = cli("eval", str(classifier.path))
    assert shown.code == 0 and "macro F1" in shown.out and "recall" in shown.out and "pos" in shown.out
    found = cli("eval", str(classifier.path), "--json").json()["classification"]
    assert found["accuracy"]["low"] < found["accuracy"]["value"] == 1.0
    assert [each["label"] for each in found["classes"]] == ["neg", "pos"]


def test_what_cannot_be_classified_is_one_error(cli: Cli, classifier: Run) -> None:
    assert "is empty" in cli("classify", str(classifier.path), "-t", " ").error()
    assert "--out" in cli("classify", str(classifier.path), "-t", "a", "--out", "x").error()
    assert "has no effect" not in cli("classify", str(classifier.path), "-t", "a", "--data", "x").error()
    assert "compares generated answers" in cli("eval", str(classifier.path), "--exact-match").error()


def test_an_adapter_that_is_no_classifier_says_so(cli: Cli, classifier: Run, tmp_path: Path) -> None:
    base = classifier.path.parent / "base"
    write_rows(tmp_path / "rows.jsonl", [{"prompt": f"{i}", "completion": "x"} for i in range(8)])
    values = settings(tmp_path, base, data={"eval": None})
    other = lamina.train({**values, "train": {"max_steps": 1}})
    assert "is no classifier" in cli("classify", str(other.path), "-t", "a").error()
