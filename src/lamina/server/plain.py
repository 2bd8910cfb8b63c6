"""Text without special tokens, whole or as it comes: what `/v1/completions` answers, as vLLM by default."""

from __future__ import annotations

import re
from collections.abc import Iterable


class SpecialTexts:
    """The special tokens of a tokenizer, as texts."""

    def __init__(self, texts: Iterable[str]) -> None:
        known = sorted(filter(None, texts), key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, known))) if known else None
        self._begins = frozenset(text[:length] for text in known for length in range(1, len(text)))
        self._longest = max(map(len, known), default=1) - 1

    def removed(self, text: str) -> str:
        """Returns a text without them."""
        return self._pattern.sub("", text) if self._pattern else text

    def held(self, text: str) -> int:
        """Returns how many characters at the end may begin one."""
        longest = min(self._longest, len(text))
        return next((length for length in range(longest, 0, -1) if text[-length:] in self._begins), 0)


class PlainText:
    """One text as it comes, without special tokens. A piece may end within one, where a stop string was looked for."""

    def __init__(self, special: SpecialTexts) -> None:
        self._special, self._held = special, ""

    def hear(self, piece: str, is_over: bool) -> str:
        """Takes the next piece, and returns what is new and certain."""
        text = self._special.removed(self._held + piece)
        held = 0 if is_over else self._special.held(text)
        told, self._held = text[: len(text) - held], text[len(text) - held :]
        return told
