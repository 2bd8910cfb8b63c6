"""The steps between two lines of `metrics.jsonl`, which hold `train.logging_steps` steps each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from lamina.losses.base import means
from lamina.runs.events import Step
from lamina.training.step import StepResult


@dataclass
class Window:
    """The steps since the last line.

    Attributes:
        results: What each step did; those that were skipped are not among them.
        seconds: How long they took.
    """

    results: list[StepResult] = field(default_factory=list)
    seconds: float = 0.0

    def add(self, result: StepResult, seconds: float) -> None:
        """Takes in a step."""
        self.results.append(result)
        self.seconds += seconds

    def close(
        self,
        step: int,
        learning_rate: float,
        epoch: float,
        memory_bytes: int,
        memory_by_rank: list[int] | None = None,
        seconds_by_rank: list[float] | None = None,
    ) -> Step:
        """The line for the steps in it, of which there must be one at least; it is empty then.

        Args:
            step: The last of them.
            learning_rate: Of that one.
            epoch: How far the run is.
            memory_bytes: The run's peak so far.
            memory_by_rank: Peak memory of each process; None for a single one.
            seconds_by_rank: Time that each process computed in the last step.
        """
        results, seconds = self.results, self.seconds
        self.results, self.seconds = [], 0.0
        return Step(
            step,
            loss=sum(result.loss * result.count for result in results) / sum(result.count for result in results),
            metrics=_mean_metrics(results),
            learning_rate=learning_rate,
            grad_norm=results[-1].grad_norm,
            tokens=sum(result.tokens for result in results),
            supervised_tokens=sum(result.supervised_tokens for result in results),
            seconds=seconds,
            step_seconds=seconds / len(results),
            epoch=epoch,
            memory_bytes=memory_bytes,
            memory_by_rank=memory_by_rank,
            seconds_by_rank=seconds_by_rank,
        )


def _mean_metrics(results: Sequence[StepResult]) -> dict[str, float]:
    """The loss's own figures over some steps."""
    totals: dict[str, tuple[float, float]] = {}
    for result in results:
        for name, (total, count) in result.metrics.items():
            before = totals.get(name, (0.0, 0.0))
            totals[name] = (before[0] + total, before[1] + count)
    return means(totals)
