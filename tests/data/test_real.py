"""Real data files with the byte-level tokenizer: every row is accounted for, and exactly the answers are supervised."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase

from lamina.chat.template import build_template
from lamina.config import DataConfig, SourceConfig
from lamina.data.dataset import Dataset, build_dataset
from lamina.data.example import Kind
from lamina.data.read import find_files
from lamina.data.source import SourceReader

LONGEST = 100_000
FILES: dict[str, dict[str, Any]] = {
    "gsm8k_test.jsonl": {"columns": {"prompt": "question", "completion": "answer"}},
    "alpaca_en_demo.json": {},
    "glaive_toolcall_en_demo.json": {},
}


def rows_of(path: Path) -> list[dict[str, Any]]:
    """Returns the rows, read without lamina."""
    text = path.read_text(encoding="utf-8")
    return json.loads(text) if path.suffix == ".json" else [json.loads(line) for line in text.splitlines()]


def answers_of(row: dict[str, Any]) -> list[str]:
    """Returns the assistant's texts in a row, read without lamina; calls as text, as for a template without tools."""
    if "conversations" in row:
        texts = {
            "gpt": lambda text: text,
            "function_call": lambda text: f"<tool_call>\n{call_text(text)}\n</tool_call>",
        }
        return [texts[turn["from"]](turn["value"]) for turn in row["conversations"] if turn["from"] in texts]
    return [row["answer"] if "answer" in row else row["output"]]


def call_text(text: str) -> str:
    call = json.loads(text)
    return json.dumps({"name": call["name"], "arguments": call["arguments"]}, ensure_ascii=False)


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
    assert {reason: lost.first for reason, lost in file.dropped.items()} == ({"empty_answer": empty} if empty else {})
    used = [example.row for side in (dataset.train, dataset.eval) for example in side]
    assert sorted(used + empty) == list(range(1, len(rows) + 1))
    assert (file.cut.count, file.trimmed.count) == (0, 0)
    assert abs(len(dataset.eval) - 0.1 * len(rows)) <= 0.02 * len(rows) + 1


def test_taught_text_is_the_answers_text(
    built: tuple[list[dict[str, Any]], Dataset], tokenizer: PreTrainedTokenizerBase
) -> None:
    rows, dataset = built
    sample = np.random.default_rng(0).choice(len(dataset.train), 150, replace=False)
    for example in (dataset.train[index] for index in sample):
        taught = tokenizer.decode(example.input_ids[example.supervised], clean_up_tokenization_spaces=False)
        assert taught == "".join(f"{answer}<|im_end|>" for answer in answers_of(rows[example.row - 1]))


def test_every_column_is_used(built: tuple[list[dict[str, Any]], Dataset]) -> None:
    _, dataset = built
    (file,) = dataset.report.files
    assert file.ignored_columns == []


@pytest.mark.parametrize(
    ("name", "format_name", "kind"),
    [
        ("gsm8k_train.jsonl", "prompt_completion", Kind.CONVERSATION),
        ("alpaca_en_demo.json", "alpaca", Kind.CONVERSATION),
        ("glaive_toolcall_en_demo.json", "sharegpt", Kind.CONVERSATION),
        ("dpo_en_demo.json", "preference", Kind.PREFERENCE),
        ("kto_en_demo.json", "unpaired_preference", Kind.UNPAIRED_PREFERENCE),
        ("c4_demo.jsonl", "text", Kind.TEXT),
        ("wiki_demo.txt", "text", Kind.TEXT),
    ],
)
def test_format_is_seen_without_hints(shared_data: Path, name: str, format_name: str, kind: Kind) -> None:
    path = str(shared_data / name)
    columns = FILES.get(name.replace("train", "test"), {}).get("columns")
    (file,) = find_files(path)
    reader = SourceReader(file, SourceConfig(path=path, columns=columns))
    rows = list(reader)
    assert reader.format == format_name
    assert {row.example.kind for row in rows if row.example} == {kind}
    assert not [row for row in rows if row.fault or row.misfit]
