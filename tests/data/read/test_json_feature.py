"""Values that fit no table: `datasets` stores them as JSON text (its Json feature), and every file of it reads back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from lamina.data.read import RawRow, find_files, rows_of


def row(number: int) -> dict[str, Any]:
    call = {"name": "f", "arguments": {"x": number} if number % 2 else {"y": ["z", None]}}
    answer = {"role": "assistant", "content": "a", "tool_calls": [{"type": "function", "function": call}]}
    parameters = {"type": "object", "properties": {"x": {"type": "integer"}}}
    tools = [{"type": "function", "function": {"name": "f", "parameters": parameters}}]
    kwargs = {"enable_thinking": bool(number % 2)}
    return {"messages": [{"role": "user", "content": "q"}, answer], "tools": tools, "chat_template_kwargs": kwargs}


@pytest.mark.parametrize("place", ["a.parquet", "saved", "splits", "splits:test", "a.jsonl"])
def test_the_json_feature_reads_back(tmp_path: Path, place: str) -> None:
    if not hasattr(datasets, "Json"):
        pytest.skip("this version of datasets has no Json feature")
    rows = [row(number) for number in range(4)]
    json_feature = datasets.Json()
    features = datasets.Features(
        {"messages": datasets.List(json_feature), "tools": json_feature, "chat_template_kwargs": json_feature}
    )
    saved = datasets.Dataset.from_list(rows, features=features)
    saved.to_parquet(tmp_path / "a.parquet")
    saved.to_json(tmp_path / "a.jsonl")
    saved.save_to_disk(tmp_path / "saved")
    datasets.DatasetDict(train=saved, test=saved).save_to_disk(tmp_path / "splits")
    found = [each for file in find_files(str(tmp_path / place)) for each in rows_of(file)]
    assert all(isinstance(each, RawRow) for each in found)
    assert [json.loads(json.dumps(each.value)) for each in found if isinstance(each, RawRow)] == rows
