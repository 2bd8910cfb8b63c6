"""What is a path, what are rows, and which split is for what."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lamina
from lamina.api.sources import NOT_GIVEN, Sources, find_sources, stored
from lamina.errors import ConfigError


def names(data: Any, eval_data: Any = NOT_GIVEN, formatting: Any = None) -> dict[str, Any]:
    """The `data:` section, where rows that would be stored are their name in capitals."""
    return stored(find_sources(data, eval_data), lambda rows, name: name.upper(), formatting)


@pytest.mark.parametrize(
    ("data", "train"),
    [
        ("a.jsonl", "a.jsonl"),
        (Path("a.jsonl"), "a.jsonl"),
        (["a.jsonl", "missing/b.csv.gz"], ["a.jsonl", "missing/b.csv.gz"]),
        (["user/one", "user/two:train"], ["user/one", "user/two:train"]),
        ([{"path": Path("a"), "weight": 2.0}], [{"path": "a", "weight": 2.0}]),
        ({"path": "a.jsonl", "weight": 1.0}, [{"path": "a.jsonl", "weight": 1.0}]),
        (["a text", "another text / with a slash"], "TRAIN"),
        (["a\n.csv"], "TRAIN"),
        ([{"text": "a"}], "TRAIN"),
        ({"text": ["a", "b"]}, "TRAIN"),
        (iter([{"text": "a"}]), "TRAIN"),
        ({"text": np.array(["a", "b"])}, "TRAIN"),
    ],
)
def test_paths_and_rows(data: Any, train: Any) -> None:
    assert names(data) == {"train": train}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, None),
        (0.2, 0.2),
        (50, 50),
        (np.float32(0.25), 0.25),
        (np.int64(2), 2),
        ("b.jsonl", "b.jsonl"),
        ([{"text": "a"}], "EVAL"),
        ({"easy": [{"text": "a"}], "hard": Path("h.csv")}, {"easy": "EVAL-EASY", "hard": "h.csv"}),
    ],
)
def test_evaluation(given: Any, expected: Any) -> None:
    assert names("a.jsonl", given) == {"train": "a.jsonl", "eval": expected}


def test_splits() -> None:
    rows = [{"text": "a"}]
    assert names({"train": rows, "test": rows, "validation": Path("v.csv")}) == {"train": "TRAIN", "eval": "v.csv"}
    assert names({"train_sft": rows, "test_sft": rows}) == {"train": "TRAIN", "eval": "EVAL"}
    assert names({"train": rows, "test": rows}, None) == {"train": "TRAIN", "eval": None}
    section = find_sources({"train": "a.csv", "eval": 0.3, "max_length": 9}, NOT_GIVEN)
    assert section == Sources("a.csv", 0.3, {"max_length": 9})


def test_splits_without_one_to_train_on_are_an_error() -> None:
    with pytest.raises(ConfigError, match="no split to train on"):
        names({"a": [{"text": "a"}], "b": [{"text": "b"}]})


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"prompt": ["a", "b"], "completion": ["c"]}, "different lengths: 'prompt' 2, 'completion' 1"),
        ({"prompt": "a", "completion": "b"}, "one row.*put rows in a list"),
    ],
)
def test_what_a_dictionary_may_be_is_said(data: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        names(data)


def test_splits_of_equally_many_texts_are_no_columns() -> None:
    assert names({"train": ["a", "b"], "test": ["c", "d"]}) == {"train": "TRAIN", "eval": "EVAL"}


def test_what_was_not_given_stays() -> None:
    assert stored(Sources(NOT_GIVEN, NOT_GIVEN), lambda rows, name: name, None) == {}


def test_texts_with_labels_in_memory_train_a_classifier(model_folder: Path, tmp_path: Path) -> None:
    rows = [{"text": f"text {n}", "label": n % 2} for n in range(12)]
    settings = {"model": str(model_folder), "max_steps": 1, "output_dir": str(tmp_path / "out")}
    run = lamina.train(data=rows, **settings)
    assert run.config.loss.type == "classification" and (run.adapter / "adapter_config.json").is_file()


def test_a_configuration_without_a_loss_trains_on_the_texts_alone(model_folder: Path, tmp_path: Path) -> None:
    rows = [{"text": f"text {n}", "label": n % 2} for n in range(12)]
    config = {"model": str(model_folder), "train": {"max_steps": 1}, "output_dir": str(tmp_path / "out")}
    assert lamina.train(config, data=rows).config.loss.type == "cross_entropy"
