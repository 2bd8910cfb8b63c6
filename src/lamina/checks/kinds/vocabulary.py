"""Finds words that the tokenizer breaks into many pieces, and unknown tokens."""

from __future__ import annotations

import re
from typing import Any

from lamina.checks.findings import Finding, Severity
from lamina.checks.kinds._base import BaseCheck, Frequent, Sample
from lamina.checks.ledger import Ledger
from lamina.checks.private import mask
from lamina.checks.seen import Seen
from lamina.checks.settings import CheckSettings

MOST_ROWS = 20_000
CHARACTERS = 2_000
MOST_WORDS = 50_000
COMMON_WORDS = 3_000

# A word is shattered if its pieces have fewer than two characters on average, and there are at least four of them.
FEWEST_PIECES = 4
FEWEST_CHARACTERS_A_PIECE = 2.0
OFTEN = 5
MUCH = 0.05
UNKNOWN = 0.001

# Words in scripts that separate words with spaces; other scripts are not segmented here.
_WORD = re.compile(r"[^\W\d_\u0e00-\u0eff\u1000-\u109f\u3040-\u9fff]{2,40}")


class Check(BaseCheck):
    """Many shattered words, or unknown tokens, are a warning: the model has to spell what it should say."""

    def __init__(self, settings: CheckSettings, ledger: Ledger) -> None:
        super().__init__(settings, ledger)
        self._words = Frequent(MOST_WORDS)
        self._sample = Sample(MOST_ROWS)
        self._characters = self._tokens = self._unknown = 0
        tokenizer = settings.tokenizer
        # Some tokenizers declare another special token as the unknown one, and it is then in every row.
        others = () if tokenizer is None else (tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id)
        unknown = None if tokenizer is None else tokenizer.unk_token_id
        self._unknown_id = None if unknown in others else unknown
        self._facts: dict[str, Any] = {}

    def see(self, seen: Seen) -> None:
        encoded = seen.row.encoded
        if self.settings.tokenizer is None or encoded is None or not self._sample.take():
            return
        self._characters += len(seen.text)
        self._tokens += len(encoded)
        if self._unknown_id is not None:
            self._unknown += int((encoded.input_ids == self._unknown_id).sum())
        for word in _WORD.findall(seen.text[:CHARACTERS]):
            self._words.add(word)

    def finish(self) -> list[Finding]:
        tokenizer = self.settings.tokenizer
        common = [(word, count) for word, count in self._words.counts.most_common(COMMON_WORDS) if count >= OFTEN]
        if tokenizer is None or not self._tokens:
            return []
        self._facts["characters_per_token"] = self._characters / self._tokens
        found = []
        if common:
            # A word usually follows a space, which many tokenizers keep with it.
            pieces = tokenizer([f" {word}" for word, _ in common], add_special_tokens=False)["input_ids"]
            rows = [(word, count, len(ids)) for (word, count), ids in zip(common, pieces, strict=True)]
            found += self._shattered(rows)
        share = self._unknown / self._tokens
        if self._unknown_id is not None:
            self._facts["unknown_tokens_share"] = share
        if share > UNKNOWN:
            title = f"{share:.1%} of the tokens are unknown to the tokenizer"
            found.append(Finding("unknown_tokens", Severity.WARNING, title, "Use a model that supports the script."))
        return found

    def facts(self) -> dict[str, Any]:
        return self._facts

    def _shattered(self, words: list[tuple[str, int, int]]) -> list[Finding]:
        """Reports shattered words; `words` has each word with its count and its number of pieces."""
        total = sum(count for _, count, _ in words)
        self._facts["tokens_per_word"] = sum(count * pieces for _, count, pieces in words) / total
        broken = [
            (word, count, pieces)
            for word, count, pieces in words
            if pieces >= FEWEST_PIECES and len(word) < FEWEST_CHARACTERS_A_PIECE * pieces
        ]
        if not broken:
            return []
        broken.sort(key=lambda item: -item[1] * item[2])
        self._facts["shattered_words"] = {mask(word): {"count": n, "pieces": pieces} for word, n, pieces in broken[:20]}
        share = sum(count for _, count, _ in broken) / total
        some = ", ".join(f"{mask(word)} ({pieces} pieces, {count} times)" for word, count, pieces in broken[:5])
        severity = Severity.WARNING if share > MUCH else Severity.INFO
        title = f"{share:.1%} of the frequent words break into many pieces: {some}"
        advice = "The model has to spell them; a model with a better tokenizer for them learns faster."
        return [Finding("shattered_words", severity, title, advice)]
