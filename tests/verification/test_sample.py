"""Which documents a verification takes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from lamina.config import load_config
from lamina.data.example import EncodedExample
from lamina.verification.sample import DOCUMENTS, LONGEST, choose_documents, cut_down
from tests.support.verification import tiny_config

STOP = 2


def document(length: int, stop: bool = True) -> EncodedExample:
    ids = np.full(length, 7, np.int32)
    ids[-1] = STOP if stop else 7
    return EncodedExample(ids, np.arange(length) >= length // 2, row=length)


def lengths(examples: list[EncodedExample]) -> list[int]:
    return [len(example) for example in choose_documents(examples, STOP)]


def test_different_lengths_the_longest_first() -> None:
    assert lengths([document(n) for n in range(10, 110)]) == [109, 85, 60, 35, 10]
    assert lengths([document(30), document(20)]) == [30, 20]


def test_long_ones_only_where_there_are_no_others() -> None:
    many = [document(n) for n in (40, 50, LONGEST + 1, 4000)]
    assert lengths(many) == [50, 40]
    assert lengths([document(n) for n in range(1000, 1100)]) == list(range(1000 + DOCUMENTS - 1, 999, -1))


def test_a_single_one_is_taken_twice() -> None:
    assert lengths([document(30)]) == [30, 30]


def test_those_that_teach_the_stop_token_come_first() -> None:
    assert lengths([document(30), document(20), document(10, stop=False)]) == [30, 20]
    assert lengths([document(12, stop=False), document(10, stop=False)]) == [12, 10]


def test_rows_are_the_users_own_and_the_rest_stays(tmp_path: Path) -> None:
    rows = [{"question": f"what {i}?", "answer": "yes " * (1 + i), "note": i} for i in range(12)]
    data = tmp_path / "own.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in [{"question": "?", "answer": ""}, *rows]))
    columns = {"prompt": "question", "completion": "answer"}
    values = tiny_config(
        tmp_path,
        data={"train": str(data), "columns": columns, "max_length": 128, "train_on": "all"},
        train={"warmup_steps": 1000, "learning_rate": 1e-2, "num_train_epochs": 2, "early_stopping_patience": 3},
    )
    sample = cut_down(load_config(values), tmp_path, lambda message: None)
    config = sample.config
    taken = [json.loads(line) for line in Path(config.data.train).read_text().splitlines()]
    assert sample.documents == len(taken) == DOCUMENTS
    assert all(row in rows for row in taken)
    assert (config.data.columns, config.data.train_on, config.data.format) == (columns, "all", "prompt_completion")
    assert (config.train.learning_rate, config.train.warmup_steps, config.train.max_steps) == (1e-2, 0, 4)
    assert config.method == load_config(values).method
