"""Preferences in an evaluation: what a run's loss compares with, and how often the chosen answer is preferred."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lamina.adapters.adapter import read_adapter
from lamina.adapters.load import Loaded
from lamina.data.side import Side
from lamina.errors import AdapterError
from lamina.evaluation.score import Score
from lamina.losses.base import Loss
from lamina.progress import Notify
from lamina.runs import Run
from lamina.structure.head import find_head
from lamina.training.reference import Reference, with_reference
from lamina.training.session import KERNELS


@dataclass(frozen=True)
class Share:
    """A share of rows, with its 95% interval by Wilson's score.

    Attributes:
        value: The share.
        low: Lower end of the interval.
        high: Upper end of the interval.
        rows: Number of rows.
    """

    value: float
    low: float
    high: float
    rows: int


def complete(side: Side, sets: Sequence[slice], loss: Loss, loaded: Loaded, run: Run | None, notify: Notify) -> Side:
    """Returns evaluation rows with what the loss needs beside them, such as its reference's log-probabilities.

    Args:
        side: The rows.
        sets: The sets that they consist of; empty if they are one.
        loss: The run's loss.
        loaded: The adapter on its base.
        run: The run; None for an adapter by itself.
        notify: Told before anything that takes a while.

    Raises:
        AdapterError: The run's copy of the adapter that it started from does not fit.
    """
    if run is None:
        return side
    config = run.config
    # Of a run that has not ended, and whose checkpoint is evaluated, the manifest has them.
    loss.recall(run.summary.figures if run.summary is not None else run.manifest.loss_figures or {})
    loss.attach(loaded.injection, loaded.base, config.seed, notify)
    side = loss.arrange(side, sets, config.seed)
    if not loss.needs_reference:
        return side
    with loaded.injection.disabled():
        head = find_head(loaded.model)
    kernels = KERNELS[config.train.compile]
    return with_reference(side, _reference(loaded, run), head, loaded.base, kernels, notify, "evaluation")


def changes_beside_data(loss: Loss, run: Run | None) -> list[str]:
    """Says what changed, since a run was trained, of what its loss reads beside the data, such as a teacher."""
    then, now = (run.manifest.loss if run else None) or {}, loss.facts()
    changed = [name for name, digest in then.items() if now.get(name) != digest]
    return [f"warning: {name} changed since the run was trained; its loss is now another one" for name in changed]


def preference_accuracy(metrics: Mapping[str, float], side: Side) -> Share | None:
    """Returns the share of pairs whose chosen answer has the higher reward; None where there are no pairs.

    Args:
        metrics: The loss's own figures on the rows.
        side: The rows; those with one answer, which KTO takes as well, are no pairs.
    """
    accuracy = metrics.get("rewards/accuracies")
    rows = sum(len(example.lengths) == 2 for example in side)
    if accuracy is None or not rows:
        return None
    score = Score(round(accuracy * rows), rows)
    return Share(score.share, *score.interval, rows)


def _reference(loaded: Loaded, run: Run) -> Reference:
    if run.config.loss.reference_name == "base" or not run.start.is_dir():
        return Reference("base", loaded.base.fingerprint.tensors, loaded.injection)
    start = read_adapter(run.start)
    here = {name: tensor.shape for name, tensor in loaded.injection.saved_tensors().items()}
    if here != {name: tensor.shape for name, tensor in start.tensors.items()}:
        raise AdapterError(f"{run.start}: is not the adapter that this run started from. Fix: put back a copy of it.")
    return Reference("start", start.digest, loaded.injection, start.tensors)
