"""What the evaluation of one adapter found: its figures, its answers, and those of the bare base."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from lamina.evaluation.classification import ClassificationScores
from lamina.evaluation.preference import Share


@dataclass(frozen=True)
class Prediction:
    """What was asked, what was expected, and what adapter and base said.

    Attributes:
        row: Of the data file, counted from 1.
        prompt: The last user turn.
        expected: The row's answer.
        adapter: The adapter's answer.
        base: The bare base's.
        scores: By scorer, of the adapter's answer and of the base's.
    """

    row: int
    prompt: str
    expected: str
    adapter: str
    base: str
    scores: dict[str, tuple[float, float]]


@dataclass(frozen=True)
class Scores:
    """Means of a scorer over all rows.

    Attributes:
        adapter: Of the adapter's answers.
        base: Of the bare base's.
    """

    adapter: float
    base: float


@dataclass(frozen=True)
class SetLoss:
    """The losses on one of a run's evaluation sets.

    Attributes:
        loss: Of the adapter.
        base_loss: Of the bare base.
        rows: Rows evaluated.
    """

    loss: float
    base_loss: float
    rows: int


@dataclass(frozen=True)
class Evaluation:
    """How an adapter does on some data.

    Attributes:
        loss: Of the adapter: the run's own loss, by default the mean cross entropy over supervised tokens.
        perplexity: exp(loss); None where the loss is no mean of -log p.
        base_loss: The same of the bare base.
        base_perplexity: exp(base_loss).
        exact_match: Share of rows whose greedy answer equals the expected one, white space at the ends apart; None if
            not asked for.
        base_exact_match: The same of the bare base.
        rows: Rows evaluated.
        dropped: Rows to evaluate on that could not be used, by reason.
        notes: What a user should know of the data (that was named, or that is not what the run was trained with), and
            of how answers were compared.
        predictions: The generated answers, if asked for.
        scores: Of the answers, by scorer.
        metrics: The loss's own figures, of the adapter.
        base_metrics: The same of the bare base.
        preference_accuracy: Share of pairs whose chosen answer has the higher reward, of several sets those of
            `best_set`; None without pairs.
        classification: Accuracy and macro F1 of a classifier; None for others.
        margin: Mean difference between the rewards of chosen and rejected answers; None without a loss over answers.
        general_loss: Loss of the adapter on general text, which shows what it forgot; None if it was not measured.
        base_general_loss: The same of the bare base.
        sampled: Whether only some of the rows were answered.
        judgement: What the figures mean, in sentences; the last one is the judgement.
        sets: The losses on each evaluation set by its name, if the run has several; `loss` is that of `best_set`.
        best_set: The set that picked the best checkpoint; empty if sets have no names.
    """

    loss: float
    perplexity: float | None
    base_loss: float
    base_perplexity: float | None
    exact_match: float | None
    base_exact_match: float | None
    rows: int
    dropped: dict[str, int]
    notes: list[str]
    predictions: list[Prediction]
    scores: dict[str, Scores]
    metrics: dict[str, float]
    base_metrics: dict[str, float]
    preference_accuracy: Share | None = None
    margin: float | None = None
    classification: ClassificationScores | None = None
    general_loss: float | None = None
    base_general_loss: float | None = None
    sampled: bool = False
    judgement: list[str] = field(default_factory=list)
    sets: dict[str, SetLoss] = field(default_factory=dict)
    best_set: str = ""

    def as_json(self) -> dict[str, Any]:
        """As plain data, without the predictions."""
        return {key: value for key, value in asdict(self).items() if key != "predictions"}
