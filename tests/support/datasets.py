"""What the tests of a run's data share: rows, and the report of a dataset with a single file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lamina.data.dataset import Dataset
from lamina.data.report import FileReport

Row = dict[str, Any]
Build = Callable[..., Dataset]

# "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n" without Q and A, one token per byte.
OVERHEAD = len("user\n" + "\n" + "assistant\n" + "\n") + 4


def pair(prompt: str, completion: str) -> Row:
    return {"prompt": prompt, "completion": completion}


def chat(*turns: tuple[str, str]) -> Row:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def report_of(dataset: Dataset) -> FileReport:
    """Returns the report of the only file, after checking that it accounts for every row."""
    (file,) = dataset.report.files
    accounted = file.train_rows + file.eval_rows + file.rows_dropped
    assert file.rows == accounted
    assert (file.train_rows, file.eval_rows) == (len(dataset.train), len(dataset.eval))
    return file
