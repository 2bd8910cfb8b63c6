"""Finds sentences that a large share of the answers start or end with."""

from __future__ import annotations

import re
from typing import Any

from lamina.checks.findings import Finding, Severity
from lamina.checks.kinds._base import BaseCheck, Frequent
from lamina.checks.ledger import Ledger
from lamina.checks.private import mask
from lamina.checks.seen import Seen
from lamina.checks.settings import CheckSettings

LARGE_SHARE = 0.05
FEWEST_ANSWERS = 20
FEWEST_CHARACTERS = 15
LONGEST = 200

# Maximum number of sentences in memory; a sentence in a twentieth of the answers cannot be evicted with this many.
MOST_SENTENCES = 20_000

_END = re.compile(r"(?<=[.!?。！？])\s|\n")


class Check(BaseCheck):
    """Boilerplate is a warning: a model learns it before anything else."""

    def __init__(self, settings: CheckSettings, ledger: Ledger) -> None:
        super().__init__(settings, ledger)
        self._sentences = {"begin": Frequent(MOST_SENTENCES), "end": Frequent(MOST_SENTENCES)}
        self._answers = 0
        self._found: dict[str, Any] = {}

    def see(self, seen: Seen) -> None:
        answer = seen.answer.strip()
        if seen.usable is None or not answer:
            return
        self._answers += 1
        # An answer of one sentence is not boilerplate, however frequent: it may be a label.
        first = _END.split(answer[: LONGEST + 1], maxsplit=1)[0].strip()
        if FEWEST_CHARACTERS <= len(first) <= LONGEST and len(first) < len(answer):
            self._sentences["begin"].add(first)
        last = _END.split(answer[-LONGEST - 1 :])[-1].strip()
        if FEWEST_CHARACTERS <= len(last) <= LONGEST and len(last) < len(answer):
            self._sentences["end"].add(last)

    def finish(self) -> list[Finding]:
        found = []
        for where, sentences in self._sentences.items():
            least = max(FEWEST_ANSWERS, LARGE_SHARE * self._answers)
            often = [(sentence, n) for sentence, n in sentences.counts.most_common(20) if n >= least]
            self._found[where] = {mask(sentence): n for sentence, n in often}
            for sentence, count in often:
                found.append(
                    Finding(
                        f"boilerplate_{where}",
                        Severity.WARNING,
                        f"answers {where} with the same sentence: {mask(sentence)!r}",
                        "Remove it, unless every answer should say it.",
                        count,
                        count / self._answers,
                    )
                )
        return found

    def facts(self) -> dict[str, Any]:
        return {"boilerplate": self._found} if any(self._found.values()) else {}
