"""Texts with labels, for which no configuration says what is to be learned: classes, or answers.

Both are plain text too, and that is how a configuration without a `loss` reads them; who names a data file alone
expects the labels to be learned.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from lamina.config import Config, DataConfig
from lamina.data.formats import DETECT_ROWS
from lamina.data.formats._fields import cell
from lamina.data.guess import text_and_label
from lamina.data.read import RawRow, Row, find_files, rows_of

# A label names a class if it occurs, on average, at least this often.
_ROWS_PER_CLASS = 2


@dataclass(frozen=True)
class LabelReading:
    """How texts with labels are read.

    Attributes:
        settings: Settings by their dotted keys.
        line: A sentence that says so, and how to read them otherwise.
    """

    settings: dict[str, Any]
    line: str

    def put_into(self, values: dict[str, Any]) -> dict[str, Any]:
        """Returns a configuration's values with the settings."""
        made = dict(values)
        for key, value in self.settings.items():
            section, _, name = key.partition(".")
            made[section] = {**(made.get(section) or {}), name: value}
        return made


def read_labels(config: Config) -> LabelReading | None:
    """Returns how to read the data of a run whose configuration does not say what is learned; None for other data.

    Raises:
        ConfigError, DataError: The data is not there, or cannot be read.
    """
    data = config.data
    if "loss" in config.model_fields_set or data.format != "auto" or not isinstance(data.train, str):
        return None
    return reading_of(data)


def reading_of(data: DataConfig) -> LabelReading | None:
    """Returns how to read a data file; None if it has no texts with labels."""
    (first, *_) = find_files(str(data.train), "data.train")
    every = (row.value for row in rows_of(first, data.text_unit) if isinstance(row, RawRow))
    rows = list(islice(every, DETECT_ROWS))
    if data.columns is not None:
        columns = data.columns if set(data.columns) == {"text", "label"} else None
    else:
        columns = text_and_label(rows[0]) if rows else None
    if columns is None:
        return None
    text, label = columns["text"], columns["label"]
    labels = _labels(rows, label)
    if not all(isinstance(value, str) for value in labels):  # lists, or objects
        return None
    if len(set(labels)) == 1 and len(rows) == DETECT_ROWS:  # rows that are sorted by their labels
        labels += _until_another(every, label, labels[0])
    what = f"{first.name}: {text!r} has texts and {label!r} their labels"
    if classes := _classes(labels):
        renamed = {} if (text, label) == ("text", "label") else {"data.columns": columns}
        count = f"{len(classes)} classes" if len(rows) < DETECT_ROWS else f"at least {len(classes)} classes"
        line = (
            f"{what} ({count}), so a classifier is trained (loss.type=classification); "
            f"loss.type=cross_entropy trains on the texts alone, and {_as_answers(text, label)} on labels as answers"
        )
        return LabelReading({"loss.type": "classification", **renamed}, line)
    if data.columns is None and _are_texts(labels):
        line = (
            f"{what}, nearly all of them different, so they are answers ({_as_answers(text, label)}); "
            "loss.type=classification trains a classifier"
        )
        return LabelReading({"data.columns": {"prompt": text, "completion": label}}, line)
    return None


def _as_answers(text: str, label: str) -> str:
    """Returns the overrides that train on labels as answers, as they are written in a shell."""
    return shlex.join((f"data.columns.prompt={text}", f"data.columns.completion={label}"))


def _until_another(rows: Iterable[Row], label: str, known: str) -> list[str]:
    """Returns the first label that is not the known one."""
    return next((found for row in rows if (found := _labels([row], label)) and found[0] != known), [])


def _labels(rows: Iterable[Row], label: str) -> list[Any]:
    """Returns the labels that are not empty, as a CSV file has them."""
    found = (cell(row.get(label)) for row in rows)
    return [value for value in found if not isinstance(value, str) or value.strip()]


def _number(value: str) -> float | None:
    """Returns the number that a text is; None for any other."""
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _classes(labels: Sequence[str]) -> set[str]:
    """Returns the labels if they are names or numbers of classes; nothing for scores, or too many labels."""
    numbers = [number for value in labels if (number := _number(value)) is not None]
    if len(numbers) == len(labels) and not all(number.is_integer() for number in numbers):
        return set()
    names = set(labels)
    return names if len(names) > 1 and _ROWS_PER_CLASS * len(names) <= len(labels) else set()


def _are_texts(labels: Sequence[str]) -> bool:
    """Returns whether they are different texts, and not all of them numbers."""
    return len(set(labels)) > 1 and any(_number(value) is None for value in labels)
