"""Builds a dataset from rows, with the small tokenizer's template."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from lamina.chat.template import ChatTemplate, build_template
from lamina.config import DataConfig
from lamina.data.dataset import Dataset, build_dataset
from tests.support.datasets import Build, Row


@pytest.fixture(scope="module")
def template(tokenizer: PreTrainedTokenizerBase) -> ChatTemplate:
    return build_template(tokenizer)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    """Writes rows to a file and returns its path."""

    def write_rows(rows: list[Row], name: str = "rows.jsonl") -> str:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return str(path)

    return write_rows


@pytest.fixture
def build(write: Callable[..., str], template: ChatTemplate) -> Build:
    """Builds a dataset from rows, without evaluation data by default."""

    def build_rows(
        rows: list[Row], seed: int = 0, batch_size: int = 2, positions: int | None = None, **settings: Any
    ) -> Dataset:
        config = DataConfig(train=write(rows), **{"eval": None, **settings})
        return build_dataset(config, template, batch_size, seed, positions=positions)

    return build_rows
