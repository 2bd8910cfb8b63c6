"""Texts with labels, for which no configuration says what is to be learned: classes, or answers.

Both are plain text too, and that is how a configuration without a `loss` reads them; who names a data file alone
expects the labels to be learned.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from lamina.config import Config, DataConfig
from lamina.data.formats import DETECT_ROWS
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
    rows = [row.value for row in islice(rows_of(first), DETECT_ROWS) if isinstance(row, RawRow)]
    if data.columns is not None:
        columns = data.columns if set(data.columns) == {"text", "label"} else None
    else:
        columns = text_and_label(rows[0]) if rows else None
    if columns is None:
        return None
    text, label = columns["text"], columns["label"]
    classes = _classes(rows, label)
    what = f"{first.name}: {text!r} has texts and {label!r} their labels"
    if classes:
        renamed = {} if (text, label) == ("text", "label") else {"data.columns": columns}
        line = (
            f"{what} ({len(classes)} classes), so a classifier is trained (loss.type=classification); "
            "loss.type=cross_entropy trains on the texts alone, and "
            f"data.columns={{prompt: {text}, completion: {label}}} on labels as answers"
        )
        return LabelReading({"loss.type": "classification", **renamed}, line)
    if not classes and data.columns is None and _are_texts(rows, label):
        line = (
            f"{what}, nearly all of them different, so they are answers (data.columns={{prompt: {text}, completion: "
            f"{label}}}); loss.type=classification trains a classifier"
        )
        return LabelReading({"data.columns": {"prompt": text, "completion": label}}, line)
    return None


def _classes(rows: Sequence[Row], label: str) -> set[str]:
    """Returns the labels if they are names or numbers of classes; else nothing."""
    found = [row.get(label) for row in rows]
    given = [value for value in found if value is not None and value != ""]
    if not all(isinstance(value, str | bool | int) or (isinstance(value, float) and value % 1 == 0) for value in given):
        return set()
    names = {str(value) for value in given}
    return names if len(names) > 1 and _ROWS_PER_CLASS * len(names) <= len(given) else set()


def _are_texts(rows: Sequence[Row], label: str) -> bool:
    given = [value for value in (row.get(label) for row in rows) if value]
    return len(set(map(str, given))) > 1 and all(isinstance(value, str) for value in given)
