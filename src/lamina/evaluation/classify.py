"""`classify`: sorts texts into the classes of a trained classifier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lamina.adapters.load import Loaded, load
from lamina.compute.fusion import fast_path
from lamina.data.encode import encode_examples
from lamina.data.example import EncodedExample, Example
from lamina.data.formats._fields import RowError
from lamina.data.formats.classification import parse_input
from lamina.errors import AdapterError, DataError
from lamina.evaluation.classification import class_probabilities
from lamina.methods.shared.score import score_head
from lamina.progress import Notify
from lamina.structure.head import find_head
from lamina.structure.positions import declared_positions

Input = str | Mapping[str, Any]


@dataclass(frozen=True)
class Classified:
    """The class of a text.

    Attributes:
        label: Name of the most probable class.
        probability: Its probability.
        probabilities: Of every class, by name.
    """

    label: str
    probability: float
    probabilities: dict[str, float]


def classify(
    source: str | Path | Loaded,
    inputs: Sequence[Input],
    *,
    batch_size: int = 8,
    model: str | None = None,
    allow_base_mismatch: bool = False,
    notify: Notify = lambda message: None,
) -> list[Classified]:
    """Sorts texts into the classes of a trained classifier (`loss: {type: classification}`).

    Args:
        source: A run directory, an adapter folder, or the result of `load`.
        inputs: Texts, or rows with `text`, `prompt` or `messages`, as in training. A text that is longer than the model
            has positions is cut.
        batch_size: Texts in a batch.
        model: The base; by default the one that the adapter names.
        allow_base_mismatch: Go on although the lock does not fit.
        notify: Called with a sentence on what a user should know.

    Raises:
        AdapterError: The adapter is no classifier, or cannot be loaded.
        DataError: An input cannot be used; the message names it.
    """
    if not isinstance(source, Loaded):
        source = load(source, model=model, allow_base_mismatch=allow_base_mismatch, notify=notify)
    for note in source.notes:
        notify(note)
    classes = classes_of(source)
    if not inputs:
        return []
    encoded = _encoded(source, inputs)
    with source.injection.disabled():
        head = find_head(source.model)
    longest = max(map(len, encoded))
    source.model.eval()
    with fast_path(source.model, longest=longest) as path:
        found = class_probabilities(source.model, head, encoded, batch_size, path.layout)
    return [
        Classified(classes[int(row.argmax())], float(row.max()), dict(zip(classes, map(float, row), strict=True)))
        for row in found
    ]


def classes_of(loaded: Loaded) -> list[str]:
    """Returns the names of a classifier's classes; their numbers where it has no names.

    Raises:
        AdapterError: The adapter is no classifier.
    """
    head = score_head(loaded.model)
    if head is None or len(head.weight) < 2:
        what = "a reward model, which scores answers" if head is not None else "no classifier"
        raise AdapterError(
            f"{loaded.adapter.path}: is {what}. Fix: train one with `loss: {{type: classification}}` on rows with "
            "`text` and `label`."
        )
    return list(head.classes) or [str(number) for number in range(len(head.weight))]


def _encoded(loaded: Loaded, inputs: Sequence[Input]) -> list[EncodedExample]:
    examples: list[Example] = []
    for number, given in enumerate(inputs, start=1):
        try:
            examples.append(parse_input({"text": given} if isinstance(given, str) else given, number))
        except RowError as error:
            raise DataError(f"input {number}: {error}.") from None
        if not examples[-1].words().strip():
            raise DataError(f"input {number} is empty. Fix: leave it out.")
    limit = declared_positions(loaded.model)
    return [_ready(each, limit) for each in encode_examples(examples, loaded.template, "all")]


def _ready(example: EncodedExample, limit: int | None) -> EncodedExample:
    """A text for a batch, in which nothing is learned; it has a value, so that it counts whatever its length."""
    ids = example.input_ids[:limit]
    return EncodedExample(ids, np.zeros(len(ids), dtype=bool), example.row, values={"row": float(example.row)})
