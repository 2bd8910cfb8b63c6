"""Log-likelihoods of references and choices after the prompts of a task's rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lamina.evaluation.asking import Speaker
from lamina.evaluation.scorers import Scorer
from lamina.evaluation.scoring import Thoughts
from lamina.evaluation.tasks import TaskRow


def think(
    speaker: Speaker, rows: Sequence[TaskRow], scorers: Sequence[Scorer], progress: Callable[[int], None]
) -> list[Thoughts]:
    raise NotImplementedError
