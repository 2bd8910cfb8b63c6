"""From tokens to text as they come: no half characters, and nothing that may be the start of a stop string."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

# What a tokenizer writes for bytes that are no character yet.
_HALF = "\ufffd"


class Detokenizer:
    """The text of one answer.

    Attributes:
        text: What is certain of it so far, as `tokenizer.decode` of all tokens gives it.
        stopped_by: The stop string that was found; None before.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str] = (), min_tokens: int = 0) -> None:
        """
        Args:
            tokenizer: Decodes.
            stop: Strings that end the answer.
            min_tokens: A stop string that is complete within so many tokens ends nothing, as in vLLM.
        """
        self._tokenizer, self._stop, self._min_tokens = tokenizer, tuple(stop), min_tokens
        self._ids: list[int] = []
        self._read = self._begin = 0  # tokens whose text is known; where the decoded window begins
        self._known = ""  # text of the tokens before `_read`
        self._given = 0
        self.stopped_by: str | None = None

    @property
    def text(self) -> str:
        return self._known

    def add(self, token: int) -> None:
        """Takes one more token, and looks for stop strings in what it adds."""
        self._ids.append(token)
        # A few tokens before the new ones are decoded with them, since the text of a token may depend on its neighbors.
        before = self._decode(self._ids[self._begin : self._read])
        after = self._decode(self._ids[self._begin :])
        if len(after) > len(before) and not after.endswith(_HALF):
            self._append(after[len(before) :])
            self._begin, self._read = self._read, len(self._ids)

    def finish(self) -> None:
        """Takes what is left, half characters too."""
        if self.stopped_by is None and self._read < len(self._ids):
            whole = self._decode(self._ids)
            self._append(whole[len(self._known) :] if whole.startswith(self._known) else "")
            self._read = len(self._ids)

    def take(self, is_over: bool) -> str:
        """Returns the text that is new since the last call, and certain: without what may begin a stop string."""
        end = len(self._known)
        if not is_over and self.stopped_by is None:
            end -= self._held()
        new = self._known[self._given : end]
        self._given = max(self._given, end)
        return new

    def _append(self, text: str) -> None:
        if self.stopped_by is not None:
            return
        begin = len(self._known)
        self._known += text
        if len(self._ids) <= self._min_tokens:
            return
        found = [(self._known.find(stop, max(0, begin - len(stop) + 1)), stop) for stop in self._stop]
        # The one that is complete first, however many characters a token has.
        found = [(place + len(stop), place, stop) for place, stop in found if place >= 0]
        if found:
            _, place, self.stopped_by = min(found)
            self._known = self._known[:place]

    def _held(self) -> int:
        """How many characters at the end may begin a stop string."""
        longest = max(map(len, self._stop), default=1) - 1
        for length in range(min(longest, len(self._known)), 0, -1):
            if any(stop.startswith(self._known[-length:]) for stop in self._stop):
                return length
        return 0

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(ids, clean_up_tokenization_spaces=False)) if ids else ""
