"""Finds rows in a different language than most."""

from __future__ import annotations

import re
from collections import Counter
from functools import cache
from typing import Any

import numpy as np
from py3langid.langid import MODEL_FILE, LanguageIdentifier

from lamina.checks.findings import Finding, Severity
from lamina.checks.kinds._base import BaseCheck, Sample
from lamina.checks.ledger import Ledger
from lamina.checks.seen import Seen
from lamina.checks.settings import CheckSettings

# Identifying a language takes 0.1 ms, so it is done for all of the first rows, and then for a decreasing share.
MOST_ROWS = 20_000
CHARACTERS = 240

# Less text, or a lower probability, is not enough. Chinese needs only a quarter of the characters for the same content.
FEWEST_LETTERS = 80
FEWEST_WIDE_LETTERS = 20
CERTAIN = 0.97

# A language is an outlier if its share is below this, and another language has most of the rows.
RARE_SHARE = 0.02
MAIN_SHARE = 0.8
FEWEST_ROWS = 50

_CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`|\$\$.*?\$\$|\$[^$\n]*\$|<[^<>\n]{1,200}>|https?://\S+", re.DOTALL)
_NOT_WORDS = re.compile(r"[\W\d_]+")
_WIDE = re.compile(r"[\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
_LOOKS_LIKE_CODE = re.compile(
    r"[{};]\s*$|^\s*(?:def|class|import|from|#include|SELECT|public|function|var|let)\b", re.M
)


class Check(BaseCheck):
    """Outliers are infos, since the task may be translation."""

    def __init__(self, settings: CheckSettings, ledger: Ledger) -> None:
        super().__init__(settings, ledger)
        self._sample = Sample(MOST_ROWS)
        self._languages: Counter[str] = Counter()
        self._rows: dict[str, list[int]] = {}
        self._usable = 0

    def see(self, seen: Seen) -> None:
        if seen.usable is None:
            return
        self._usable += 1
        if not self._sample.take():
            return
        language = identify(f"{seen.prompt}\n{seen.reply}")
        if language:
            self._languages[language] += 1
            rows = self._rows.setdefault(language, [])
            if len(rows) < self.settings.examples:
                rows.append(seen.index)

    def finish(self) -> list[Finding]:
        known = self._languages.total()
        if known < FEWEST_ROWS or self._languages.most_common(1)[0][1] < MAIN_SHARE * known:
            return []
        main = self._languages.most_common(1)[0][0]
        rare = [
            language for language, rows in self._languages.items() if rows < RARE_SHARE * known and language != main
        ]
        if not rare:
            return []
        count = sum(self._languages[language] for language in rare)
        rows = sorted((row, language) for language in rare for row in self._rows[language])
        part = "" if self._sample.taken == self._usable else f" (of {self._sample.taken:,} rows sampled)"
        return [
            Finding(
                "other_language",
                Severity.INFO,
                f"the row is not in {main}, the language of most rows{part}",
                "Check whether it belongs here.",
                count,
                count / known,
                self.shown(np.array([row for row, _ in rows]), lambda number: rows[number][1]),
            )
        ]

    def facts(self) -> dict[str, Any]:
        if not self._languages:
            return {}
        return {"languages": dict(self._languages.most_common()), "language_rows_looked_at": self._sample.taken}


def identify(text: str) -> str:
    """Returns the language of a text as an ISO 639 code, or an empty string if it is uncertain."""
    prose = _CODE.sub(" ", text[: 4 * CHARACTERS])
    if len(_LOOKS_LIKE_CODE.findall(prose)) >= 3:
        return ""
    words = _NOT_WORDS.sub(" ", prose)[:CHARACTERS]
    if len(words) < FEWEST_LETTERS and len(_WIDE.findall(words)) < FEWEST_WIDE_LETTERS:
        return ""
    language, certainty = _identifier().classify(words)
    return language if certainty >= CERTAIN else ""


@cache
def _identifier() -> LanguageIdentifier:
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
