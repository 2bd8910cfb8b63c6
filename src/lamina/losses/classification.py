"""Sequence classification: L = -log softmax(W h)[c], with the state h of a text's last token and its class c.

W (classes, hidden size) is a head that is trained and saved with the adapter (`score`), as in transformers' models for
sequence classification and in HF peft's task SEQ_CLS. The loss is a mean over the texts of the whole optimizer step.
With the adapter off there is no head, and all classes are equally likely.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from lamina.config.losses.classification import ClassificationConfig
from lamina.data.batch import Batch
from lamina.data.example import EncodedExample, Example, Kind
from lamina.data.formats._fields import label_text
from lamina.data.sequences import Sequences
from lamina.data.side import Side
from lamina.data.store import digest_of
from lamina.errors import ConfigError, DataError, Problem
from lamina.losses.base import Loss, LossSum, Metric
from lamina.methods.shared.base import Injection
from lamina.methods.shared.score import attach_score, last_states, scored, text_states
from lamina.models.load import Base
from lamina.progress import Notify
from lamina.structure.head import Head, find_head

CLASS = "class"

# The classes' names are only known once all rows are read, so a row keeps a digest of its own; floats hold 53 bits.
_DIGEST_BITS = 52

# A class with fewer rows than this share of the mean is worth a note.
_RARE = 0.1


def class_code(name: str) -> float:
    """Returns the number that a row keeps for its class."""
    return float(digest_of(name) % 2**_DIGEST_BITS)


def class_value(example: Example) -> Mapping[str, float]:
    """Returns the code of a row's class."""
    return {CLASS: class_code(example.category)}


SEQUENCES = Sequences(
    frozenset({Kind.CLASSIFICATION}),
    values=class_value,
    label=CLASS,
    key={"classes": 1},
    learns="texts and conversations with a label",
    pooled=True,
)


class Classification(Loss):
    """Cross entropy over classes; the formula is at the top of the file.

    Attributes:
        classes: The classes' names, in the order of their ids; empty until the rows are known.
    """

    sequences = SEQUENCES
    trains_score = True

    def __init__(self, labels: Sequence[str] | None) -> None:
        self._named = labels is not None
        self.classes = list(labels or ())

    def count(self, examples: Sequence[EncodedExample]) -> float:
        return float(len(examples))

    def study(self, train: Side, rows_per_step: float, notify: Notify) -> None:
        counts: dict[str, int] = {}
        for number, store in enumerate(train.stores):
            if not len(train.indices(number)):  # of evaluation rows alone; what training never saw is no class
                continue
            for name, count in store.facts.classes.items():
                counts[name] = counts.get(name, 0) + count
        if not self._named:
            self.classes = _in_order(counts)
            if len(self.classes) < 2:
                message = f"all rows have the label {next(iter(counts), '')!r}, so there is nothing to tell apart"
                raise DataError(f"{message}. Fix: give rows of two classes at least, or name them all in loss.labels.")
        self._check(counts)
        self._note_rare(counts, notify)

    def arrange(self, side: Side, sets: Sequence[slice], seed: int) -> Side:
        for number, store in enumerate(side.stores):
            if len(side.indices(number)):
                self._check(store.facts.classes)
        return side

    def attach(self, injection: Injection, base: Base, seed: int, notify: Notify) -> Injection:
        if find_head(injection.model).whole_model:
            message = (
                f"a class needs hidden states, and those of {type(injection.model).__name__} are in no known place."
            )
            raise ConfigError(Problem("loss.type", message, "use another loss, or another model"))
        return attach_score(injection, seed, len(self.classes), tuple(self.classes))

    def compute(self, model: PreTrainedModel, head: Head, batches: Sequence[Batch]) -> LossSum:
        examples = batches[0].examples
        scores = torch.cat([scored(model, last_states(head, batch)) for batch in batches])
        targets = self.targets(examples).to(scores.device)
        right = (scores.argmax(-1) == targets).double().sum()
        loss = F.cross_entropy(scores, targets, reduction="sum")
        return LossSum(loss, {"accuracy": Metric(right, float(len(targets)))})

    def outputs(self, model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
        return scored(model, text_states(model, ids))

    def formula(self, logits: Sequence[torch.Tensor], example: EncodedExample) -> torch.Tensor:
        (scores_TC,) = logits
        return F.cross_entropy(scores_TC[-1:], self.targets([example]).to(scores_TC.device), reduction="sum")

    def targets(self, examples: Sequence[EncodedExample]) -> torch.Tensor:
        """Returns the id of each example's class, (examples,), int64.

        Raises:
            DataError: A row's label is no class.
        """
        codes = self._codes()
        unknown = next((example.row for example in examples if example.values[CLASS] not in codes), None)
        if unknown is not None:
            known = ", ".join(map(repr, self.classes))
            raise DataError(f"row {unknown} has a label that is no class; they are {known}. Fix: correct the label.")
        return torch.tensor([codes[example.values[CLASS]] for example in examples])

    def figures(self) -> dict[str, Any]:
        return {"classes": self.classes}

    def recall(self, figures: Mapping[str, Any]) -> None:
        self.classes = list(figures.get("classes", self.classes))

    def _check(self, counts: Mapping[str, int]) -> None:
        codes = self._codes()
        unknown = next((name for name in counts if class_code(name) not in codes), None)
        if unknown is not None:
            known = ", ".join(map(repr, self.classes))
            fix = "correct the label, or name it in loss.labels before training"
            raise DataError(f"{counts[unknown]} rows have the label {unknown!r}; the classes are {known}. Fix: {fix}.")

    def _codes(self) -> dict[float, int]:
        """The id of each class, by the code of its name; where classes are named, by that of its number too."""
        numbers = {class_code(str(number)): number for number in range(len(self.classes))} if self._named else {}
        return numbers | {class_code(label_text(name)): number for number, name in enumerate(self.classes)}

    def _note_rare(self, counts: Mapping[str, int], notify: Notify) -> None:
        mean = sum(counts.values()) / max(len(self.classes), 1)
        rare = [f"{name!r} ({counts.get(name, 0)})" for name in self.classes if counts.get(name, 0) < _RARE * mean]
        if rare and not self._named:
            notify(f"Few rows of the classes {', '.join(rare)}: accuracy says little about them; look at macro F1.")


def build(config: ClassificationConfig) -> Classification:
    """Builds the loss of a `loss:` section.

    Raises:
        ConfigError: Two of its labels are the same in data, such as '1' and '1.0'.
    """
    names: dict[str, str] = {}
    for label in config.labels or ():
        if (other := names.setdefault(label_text(label), label)) != label:
            message = f"{other!r} and {label!r} are the same label, since data is read alike from any table"
            raise ConfigError(Problem("loss.labels", message, "name each class once"))
    return Classification(config.labels)


def _in_order(names: Mapping[str, int]) -> list[str]:
    """Sorts labels: numbers by value, names alphabetically."""
    if all(name.lstrip("-").isdigit() for name in names):
        return sorted(names, key=int)
    return sorted(names)
