"""`judge_rubric`: how good each answer is by a rubric, from 1 to 5, asked one by one."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lamina.errors import ConfigError, DataError, Problem
from lamina.evaluation.judge.ask import Judge, ask_all
from lamina.evaluation.judge.pairwise import AGAIN, filled, result_digest
from lamina.evaluation.statistics import Estimate, estimate

GRADES = ("1", "2", "3", "4", "5")

PROMPT = """You grade an answer by a rubric. Keep to the rubric; nothing else counts, and length is no merit.

[Rubric]
{rubric}

[Request]
{prompt}
{reference}
[Answer]
{answer}

Grade the answer from 1 (it fails the rubric) to 5 (it meets all of it). Answer with the number alone."""

_REFERENCE = "\n[A right answer, for comparison]\n{reference}\n"


@dataclass(frozen=True)
class RubricResult:
    """What a judge made of answers.

    Attributes:
        scores: Row by row, from 1 to 5; None where its verdict could not be read.
        mean: Over those that could.
        self_agreement: Share of grades that were the same when asked again; None if none was.
        unparsable: Verdicts that could not be read.
        digest: SHA-256 of judge, prompt, rubric and settings.
        judge: The judge's name.
    """

    scores: tuple[float | None, ...]
    mean: Estimate | None
    self_agreement: Estimate | None
    unparsable: int
    digest: str
    judge: str

    def as_json(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


def judge_rubric(
    judge: Judge,
    answers: Sequence[tuple[str, str]],
    rubric: str,
    *,
    references: Sequence[str] | None = None,
    prompt: str = PROMPT,
    cache: Path | None = None,
    clusters: Sequence[Hashable] | None = None,
    again: int = AGAIN,
    confidence: float = 0.95,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> RubricResult:
    """Lets a judge grade answers.

    Args:
        judge: Who judges.
        answers: Requests and their answers.
        rubric: What makes an answer good.
        references: A right answer for each row, for the judge.
        prompt: What it is asked, with `{rubric}`, `{prompt}`, `{reference}` and `{answer}`.
        cache, clusters, again, confidence, progress: As for `judge_pairs`.

    Raises:
        ConfigError: The rubric is empty.
        DataError: There are no answers.
        LaminaError: The judge does not answer; what it had answered is in the cache.
    """
    if not rubric.strip():
        raise ConfigError(Problem("rubric", "is empty", "say what makes an answer good"))
    if not answers:
        raise DataError("there are no answers to grade. Fix: give at least one.")
    names = list(clusters or [request for request, _ in answers])
    rights = references or [""] * len(answers)
    questions = [
        filled(
            prompt,
            rubric=rubric,
            prompt=request,
            reference=filled(_REFERENCE, reference=right) if right else "",
            answer=answer,
        )
        for (request, answer), right in zip(answers, rights, strict=True)
    ]

    def ask(asked: Sequence[str], what: str, round: int) -> list[str | None]:
        report = lambda done: progress(what, min(done, len(asked)), len(asked))  # noqa: E731
        return ask_all(judge, asked, GRADES, cache, round=round, progress=report)

    said = ask(questions, "grades", 0)
    repeated = ask(questions[:again], "grades again", 1) if again > 0 else []
    scores = tuple(None if letter is None else float(letter) for letter in said)
    read = [(score, name) for score, name in zip(scores, names, strict=True) if score is not None]
    same = [one == other for one, other in zip(said, repeated, strict=False)]
    return RubricResult(
        scores=scores,
        mean=estimate([score for score, _ in read], [name for _, name in read], confidence) if read else None,
        self_agreement=estimate(same, names[: len(same)], confidence) if same else None,
        unparsable=sum(letter is None for letter in said),
        digest=result_digest(judge, filled(prompt, rubric=rubric), GRADES),
        judge=judge.name,
    )
