"""`judge_pairs`: which of two answers a judge prefers, shown in both orders.

A row is won only by an answer that is preferred in both orders; where the orders disagree it is a tie, as are verdicts
that cannot be read. So a judge that always prefers the first answer has nothing but ties, and decides nothing. How
often it prefers the first is measured, with an interval, and so is how often it says the same when it is asked again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from lamina.errors import DataError
from lamina.evaluation.judge.ask import Judge, ask_all
from lamina.evaluation.judge.length import LengthControlled, length_controlled
from lamina.evaluation.statistics import Difference, Estimate, compare, estimate

LETTERS = ("A", "B", "C")

PROMPT = """You compare two answers to the same request. Judge only how well each does what the request asks: whether \
it is right, complete, clear, and keeps to what was asked. Neither the order of the answers nor their length is a merit.

[Request]
{prompt}
{reference}
[Answer A]
{first}

[Answer B]
{second}

Which answer is better? Say A if it is answer A, B if it is answer B, C if they are equally good. Answer with the \
letter alone."""

_REFERENCE = "\n[A right answer, for comparison]\n{reference}\n"

# Rows that are asked a second time.
AGAIN = 50

Bias = Literal["prefers_first", "prefers_second", "none", "unknown"]


@dataclass(frozen=True)
class Pairing:
    """Two answers to one request.

    Attributes:
        prompt: The request.
        a, b: The answers.
        reference: A right answer, for the judge; empty for none.
    """

    prompt: str
    a: str
    b: str
    reference: str = ""


@dataclass(frozen=True)
class PairwiseResult:
    """What a judge made of pairs.

    Attributes:
        scores: Row by row: 1 where a is preferred in both orders, 0 where b is, 0.5 for a tie.
        verdicts: Row by row, what was said with a first, and with b first; None for what is no verdict.
        win_rate: Of a, with ties as halves; rows of one prompt are a cluster.
        comparison: Of a's scores with b's; its verdict is "not_enough_rows" where the judge decides nothing.
        length_controlled: a's win rate if both answers were equally long; None where too little was decided.
        first: Share of verdicts for the answer that was shown first, of those for either.
        bias: Whether that share is shown to be another than one half.
        consistent: Share of rows where both orders agree.
        self_agreement: Share of verdicts that were the same when asked again; None if none was.
        unparsable: Verdicts that could not be read, of two a row.
        digest: SHA-256 of judge, prompt and settings.
        judge: The judge's name.
        notes: What a reader should know, in sentences.
    """

    scores: tuple[float, ...]
    verdicts: tuple[tuple[str | None, str | None], ...]
    win_rate: Estimate
    comparison: Difference
    length_controlled: LengthControlled | None
    first: Estimate | None
    bias: Bias
    consistent: Estimate
    self_agreement: Estimate | None
    unparsable: int
    digest: str
    judge: str
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


def judge_pairs(
    judge: Judge,
    pairs: Sequence[Pairing],
    *,
    prompt: str = PROMPT,
    cache: Path | None = None,
    clusters: Sequence[Hashable] | None = None,
    again: int = AGAIN,
    confidence: float = 0.95,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> PairwiseResult:
    """Lets a judge compare answers.

    Args:
        judge: Who judges.
        pairs: What it judges.
        prompt: What it is asked, with `{prompt}`, `{reference}`, `{first}` and `{second}`.
        cache: A folder of earlier verdicts; what is in it is not asked again.
        clusters: The name of each row's cluster; by default rows of one prompt are one.
        again: Of how many rows both orders are asked a second time.
        confidence: Of intervals.
        progress: Called with what is done, how much of it, and how much there is.

    Raises:
        DataError: There are no pairs.
        LaminaError: The judge does not answer; what it had answered is in the cache.
    """
    if not pairs:
        raise DataError("there are no answers to compare. Fix: give at least one pair.")
    count, names = len(pairs), list(clusters or [pair.prompt for pair in pairs])
    shown = [(pair, first, second) for pair in pairs for first, second in ((pair.a, pair.b), (pair.b, pair.a))]
    questions = [_question(prompt, *each) for each in shown]

    def ask(asked: Sequence[str], what: str, round: int) -> list[str | None]:
        report = lambda done: progress(what, min(done, len(asked)), len(asked))  # noqa: E731
        return ask_all(judge, asked, LETTERS, cache, round=round, progress=report)

    said = ask(questions, "verdicts", 0)
    repeated = ask(questions[: 2 * min(again, count)], "verdicts again", 1) if again > 0 else []
    verdicts = tuple(zip(said[::2], said[1::2], strict=True))
    scores = tuple(_score(*both) for both in verdicts)
    places = [(letter == "A", row // 2) for row, letter in enumerate(said) if letter in ("A", "B")]
    first = estimate([p for p, _ in places], [names[row] for _, row in places], confidence) if places else None
    same = [one == other for one, other in zip(said, repeated, strict=False)]
    found = compare(scores, [1 - score for score in scores], names, confidence)
    bias = _bias(first)
    consistent = estimate([one is not None and _swapped(one) == other for one, other in verdicts], names, confidence)
    unparsable = sum(letter is None for letter in said)
    decided = sum(score != 0.5 for score in scores)
    return PairwiseResult(
        scores=scores,
        verdicts=verdicts,
        win_rate=estimate(scores, names, confidence),
        comparison=found,
        length_controlled=length_controlled(scores, [len(pair.a) - len(pair.b) for pair in pairs], names, confidence),
        first=first,
        bias=bias,
        consistent=consistent,
        self_agreement=estimate(same, [names[row // 2] for row in range(len(same))], confidence) if same else None,
        unparsable=unparsable,
        digest=result_digest(judge, prompt, LETTERS),
        judge=judge.name,
        notes=tuple(_notes(first, bias, decided, count, unparsable)),
    )


def result_digest(judge: Judge, prompt: str, letters: Sequence[str]) -> str:
    """SHA-256 of what verdicts depend on beside the answers."""
    facts = {"judge": judge.digest, "settings": dict(judge.settings), "prompt": prompt, "letters": list(letters)}
    return "sha256:" + hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def filled(template: str, **texts: str) -> str:
    """A template with its fields filled in one pass, so that braces and field names in the texts stay as they are."""
    parts = template
    marks = {name: f"\0{name}\0" for name in texts}
    for name, mark in marks.items():
        parts = parts.replace("{" + name + "}", mark)
    pieces = parts.split("\0")
    return "".join(texts.get(piece, piece) if place % 2 else piece for place, piece in enumerate(pieces))


def _question(template: str, pair: Pairing, first: str, second: str) -> str:
    reference = filled(_REFERENCE, reference=pair.reference) if pair.reference else ""
    return filled(template, prompt=pair.prompt, reference=reference, first=first, second=second)


def _score(with_a_first: str | None, with_b_first: str | None) -> float:
    return {("A", "B"): 1.0, ("B", "A"): 0.0}.get((with_a_first or "", with_b_first or ""), 0.5)


def _swapped(letter: str) -> str:
    return {"A": "B", "B": "A"}.get(letter, letter)


def _bias(first: Estimate | None) -> Bias:
    if first is None or first.low is None or first.high is None:
        return "unknown"
    return "prefers_first" if first.low > 0.5 else "prefers_second" if first.high < 0.5 else "none"


def _notes(first: Estimate | None, bias: Bias, decided: int, rows: int, unparsable: int) -> list[str]:
    notes = []
    if first is not None and bias in ("prefers_first", "prefers_second"):
        which = bias.removeprefix("prefers_")
        share = first.value if which == "first" else 1 - first.value
        notes.append(
            f"the judge prefers the {which} answer, whichever it is, in {share:.0%} of its verdicts; where both orders "
            "disagree, the row is a tie"
        )
    if not decided:
        notes.append(f"the judge decides nothing: none of {rows} rows has the same winner in both orders")
    if unparsable:
        notes.append(f"{unparsable} of {2 * rows} verdicts could not be read; their rows are ties")
    return notes
