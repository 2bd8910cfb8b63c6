"""Real data files with the byte-level tokenizer: every row accounted for, and the answers taught to the letter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase

from lamina.config import DataConfig
from lamina.data.dataset import Dataset, build_dataset
from lamina.data.template import build_template

LONGEST = 100_000
FILES: dict[str, dict[str, Any]] = {
    "gsm8k_test.jsonl": {"columns": {"prompt": "question", "completion": "answer"}},
    "alpaca_en_demo.json": {},
    "kto_en_demo.json": {},
}


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The rows, read without lamina."""
    text = path.read_text(encoding="utf-8")
    return json.loads(text) if path.suffix == ".json" else [json.loads(line) for line in text.splitlines()]


def answers_of(row: dict[str, Any]) -> list[str]:
    """The assistant's texts of a row, read without lamina."""
    if "messages" in row:
        return [message["content"] for message in row["messages"] if message["role"] == "assistant"]
    return [row["answer"] if "answer" in row else row["output"]]


@pytest.fixture(scope="module", params=FILES)
def built(
    request: pytest.FixtureRequest, shared_data: Path, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[dict[str, Any]], Dataset]:
    path = shared_data / request.param
    config = DataConfig(train=str(path), eval=0.1, max_length=LONGEST, **FILES[request.param])
    return rows_of(path), build_dataset(config, build_template(tokenizer), 4, 0)


def test_every_row_is_accounted_for(built: tuple[list[dict[str, Any]], Dataset]) -> None:
    rows, dataset = built
    (file,) = dataset.report.files
    empty = [number for number, row in enumerate(rows, start=1) if not answers_of(row)[-1].strip()]
    assert file.rows == len(rows) == file.train_rows + file.eval_rows + file.rows_dropped
    assert file.dropped == ({"empty_answer": empty} if empty else {})
    used = [example.row for example in dataset.train + dataset.eval]
    assert sorted(used + empty) == list(range(1, len(rows) + 1))
    assert (file.cut, file.trimmed) == ([], [])
    assert abs(len(dataset.eval) - 0.1 * len(rows)) <= 0.02 * len(rows) + 1


def test_taught_text_is_the_answers_text(
    built: tuple[list[dict[str, Any]], Dataset], tokenizer: PreTrainedTokenizerBase
) -> None:
    rows, dataset = built
    sample = np.random.default_rng(0).choice(len(dataset.train), 150, replace=False)
    for example in (dataset.train[index] for index in sample):
        taught = tokenizer.decode(example.input_ids[example.supervised], clean_up_tokenization_spaces=False)
        assert taught == "".join(f"{answer}<|im_end|>" for answer in answers_of(rows[example.row - 1]))


def test_columns_that_are_not_used_are_named(built: tuple[list[dict[str, Any]], Dataset]) -> None:
    _, dataset = built
    (file,) = dataset.report.files
    assert file.ignored_columns == {"messages": ["label"]}.get(file.format, [])
