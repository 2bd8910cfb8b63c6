"""Evaluation sets by name: each is evaluated by itself, and one of them picks the best checkpoint.

Its loss is the evaluation's loss. The losses of all sets are metrics beside it, `eval_loss/NAME`, so that the log, the
trackers and the summary have them; figures of the loss itself are `NAME_OF_FIGURE/NAME` for the other sets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from lamina.data.side import Side
from lamina.runs.summary import LOSS_OF_SET
from lamina.training.step import EvaluationResult


def evaluate_sets(
    evaluate: Callable[[Side, str], EvaluationResult], side: Side, sets: Mapping[str, slice], best: str
) -> EvaluationResult:
    """Evaluates every set.

    Args:
        evaluate: Evaluates rows; the text names them for people, and is empty for a single set without a name.
        side: All rows.
        sets: Those of each set; empty for a single set without a name.
        best: The set whose loss counts.
    """
    if not sets:
        return evaluate(side, "")
    results = {name: evaluate(side[chosen], f" on {name}") for name, chosen in sets.items()}
    metrics = dict(results[best].metrics)
    for name, result in results.items():
        metrics[f"{LOSS_OF_SET}{name}"] = result.loss
        if name != best:
            metrics |= {f"{figure}/{name}": value for figure, value in result.metrics.items()}
    return EvaluationResult(results[best].loss, metrics)


def best_set(sets: Mapping[str, slice], wanted: str | None) -> str:
    """Returns the set that picks the best checkpoint: the one that is configured, or the first."""
    return wanted or next(iter(sets), "")
