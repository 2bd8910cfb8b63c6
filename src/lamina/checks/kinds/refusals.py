"""Finds answers that refuse, or that mention being a language model."""

from __future__ import annotations

import re
from typing import Any

from lamina.checks.findings import Finding, Severity
from lamina.checks.kinds._base import BaseCheck, Tally
from lamina.checks.ledger import Ledger
from lamina.checks.seen import Seen
from lamina.checks.settings import CheckSettings

# A refusal is at the start of an answer; later on, the same words are usually spoken by a character in a story.
BEGINNING = 250

_CANNOT = r"(?:can['’]?t|can ?not|could ?n['’]t|am (?:not able|unable)(?: to)?|won['’]?t(?: be able to)?|will not)"
_HELP = (
    r"(?:help|assist|provide|fulfil|comply|answer|do (?:that|this)|generate|create|write|support|engage|share|discuss|"
    r"offer|give|continue|participate|access|browse|perform|order|book)"
)
_REFUSAL = re.compile(
    r"\b(?:sorry|apologi[sz]e|regret|unfortunately)\b[^.!?\n]{0,60}"
    rf"\bI(?:['’]m| am)? ?{_CANNOT}\b(?: \w+){{0,2}}? {_HELP}"
    rf"|\A\W*I(?:['’]m| am)? ?(?:really )?{_CANNOT} (?:to )?(?:\w+ )?{_HELP}\w* (?:with|you|your|that|this|to|any|it)"
    r"|\bI(?:['’]m| am) (?:just |only )?(?:unable|not able) to (?:help|assist|fulfil|comply|provide)"
    r"|\b(?:against|violates?) my (?:programming|guidelines|policy|policies|ethical)",
    re.IGNORECASE,
)
_SELF = re.compile(
    r"\bas an? (?:AI|artificial intelligence|(?:large )?language model)\b"
    r"|\bI(?:['’]m| am) (?:just |only |merely )?an? (?:AI\b|artificial intelligence|(?:large )?language model)"
    r"|\bmy (?:knowledge|training) (?:cut-?off|data (?:ends|only goes))|\b(?:trained|developed|created) by OpenAI\b",
    re.IGNORECASE,
)
# Most answers contain none of these, and need no regular expression.
_REFUSAL_MARKS = (
    "orry",
    "polog",
    "egret",
    "nfortunately",
    "I can",
    "I could",
    "I’m",
    "I'm",
    "I am",
    "I wo",
    "I will",
    "my ",
)
_SELF_MARKS = ("AI", " ai", "anguage model", "rtificial intell", "my knowledge", "my training")


class Check(BaseCheck):
    """Both are warnings: the model will say what is in the answers, whether it is intended or a leftover."""

    def __init__(self, settings: CheckSettings, ledger: Ledger) -> None:
        super().__init__(settings, ledger)
        self._refusals, self._selves = Tally(settings), Tally(settings)
        self._answers = 0

    def see(self, seen: Seen) -> None:
        if seen.usable is None or not seen.answer:
            return
        self._answers += 1
        answer = seen.answer
        match = _search(_REFUSAL, _REFUSAL_MARKS, answer[:BEGINNING])
        if match:
            self._refusals.add(seen, " ".join(match[0].split()), _place_of(seen, match))
        match = _search(_SELF, _SELF_MARKS, answer)
        if match:
            self._selves.add(seen, " ".join(match[0].split()), _place_of(seen, match))

    def finish(self) -> list[Finding]:
        return [
            *self._refusals.finding(
                "refusal",
                Severity.WARNING,
                "the answer refuses",
                "Remove it, unless the model should refuse such requests.",
                self._answers,
            ),
            *self._selves.finding(
                "speaks_of_itself",
                Severity.WARNING,
                "the answer mentions being a language model",
                "Rewrite or remove the phrase; it is usually a leftover from the model that wrote the data.",
                self._answers,
            ),
        ]

    def facts(self) -> dict[str, Any]:
        return {"refusals": self._refusals.count}


def _search(shape: re.Pattern[str], marks: tuple[str, ...], text: str) -> re.Match[str] | None:
    return shape.search(text) if any(mark in text for mark in marks) else None


def _place_of(seen: Seen, match: re.Match[str]) -> int:
    return max(0, seen.text.find(seen.answer)) + match.start()
