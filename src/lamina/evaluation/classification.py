"""How well a classifier sorts texts: accuracy and macro F1 with their intervals, each class, and each row's class.

Macro F1 is the mean over the classes of F1 = 2 TP / (2 TP + FP + FN). Its interval is a percentile bootstrap over rows,
since it is no mean over them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedModel

from lamina.data.batch import Layout, build_units
from lamina.data.example import EncodedExample
from lamina.distributed.world import ALONE, World
from lamina.evaluation.preference import Share
from lamina.evaluation.score import Score
from lamina.methods.shared.score import last_states, scored
from lamina.structure.head import Head

_DRAWS = 2000
_SEED = 0


@dataclass(frozen=True)
class ClassScores:
    """How one class is told apart.

    Attributes:
        label: Its name.
        rows: Rows of the class.
        predicted: Rows that were sorted into it.
        precision: Share of those that are of the class; 0 if there are none.
        recall: Share of the class that was found; 0 if there is none.
        f1: Their harmonic mean.
    """

    label: str
    rows: int
    predicted: int
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class ClassificationScores:
    """How well a classifier does on some rows.

    Attributes:
        accuracy: Share of rows that are sorted right.
        macro_f1: Mean F1 of the classes that occur; the interval is a bootstrap's.
        most_frequent: Share of the most frequent class: what always naming it would get right.
        classes: Each class.
        confusion: Rows by their class and, within it, by the class that they were sorted into.
    """

    accuracy: Share
    macro_f1: Share
    most_frequent: float
    classes: list[ClassScores]
    confusion: list[list[int]]


@torch.no_grad()
def class_probabilities(
    model: PreTrainedModel,
    head: Head,
    examples: Sequence[EncodedExample],
    batch_size: int,
    layout: Layout,
    progress: Callable[[int], None] = lambda done: None,
    world: World = ALONE,
) -> np.ndarray:
    """Computes the probability of each class for each example: (examples, classes), float32.

    Args:
        model: In evaluation mode, inside `fusion.fast_path`, with the head of a classifier.
        head: The model's parts.
        examples: The texts.
        batch_size: Examples in a batch.
        layout: How the documents of a batch go through the model.
        progress: Called with the number of examples done.
        world: The processes that share the batches.
    """
    batches = [examples[first : first + batch_size] for first in range(0, len(examples), batch_size)]
    found: dict[int, np.ndarray] = {}
    for place in world.mine([float(sum(map(len, batch))) for batch in batches]):
        units = build_units(batches[place], layout)
        scores = [scored(model, last_states(head, batch.to(model.device))) for unit in units for batch in unit]
        found[place] = torch.cat(scores).softmax(-1).cpu().numpy()
        progress(sum(len(batches[done]) for done in found))
    return np.concatenate(world.collect(found, "the classes"))


def class_scores(predicted: np.ndarray, expected: np.ndarray, labels: Sequence[str]) -> ClassificationScores:
    """Compares the ids of classes, (rows,) each.

    >>> scores = class_scores(np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1]), ["no", "yes"])
    >>> scores.accuracy.value, round(scores.macro_f1.value, 3), scores.confusion
    (0.75, 0.733, [[1, 0], [1, 2]])
    """
    confusion = _confusion(predicted, expected, len(labels))
    accuracy = Score(int(np.trace(confusion)), len(expected))
    low, high = _bootstrap(predicted, expected, len(labels))
    precision, recall, f1 = _by_class(confusion)
    classes = [
        ClassScores(label, int(rows), int(found), float(p), float(r), float(f))
        for label, rows, found, p, r, f in zip(
            labels, confusion.sum(1), confusion.sum(0), precision, recall, f1, strict=True
        )
    ]
    return ClassificationScores(
        Share(accuracy.share, *accuracy.interval, len(expected)),
        Share(_macro_f1(confusion), low, high, len(expected)),
        float(confusion.sum(1).max() / len(expected)),
        classes,
        confusion.tolist(),
    )


def _confusion(predicted: np.ndarray, expected: np.ndarray, classes: int) -> np.ndarray:
    return np.bincount(expected * classes + predicted, minlength=classes**2).reshape(classes, classes)


def _by_class(confusion: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    right, rows, found = np.diag(confusion), confusion.sum(1), confusion.sum(0)
    precision, recall = right / np.maximum(found, 1), right / np.maximum(rows, 1)
    return precision, recall, 2 * right / np.maximum(rows + found, 1)


def _macro_f1(confusion: np.ndarray) -> float:
    """The mean over the classes that occur, among the rows or among the predictions."""
    occurs = confusion.sum(0) + confusion.sum(1) > 0
    return float(_by_class(confusion)[2][occurs].mean())


def _bootstrap(predicted: np.ndarray, expected: np.ndarray, classes: int) -> tuple[float, float]:
    generator, rows = np.random.default_rng(_SEED), len(expected)
    drawn = (generator.integers(0, rows, rows) for _ in range(_DRAWS))
    values = [_macro_f1(_confusion(predicted[chosen], expected[chosen], classes)) for chosen in drawn]
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)
