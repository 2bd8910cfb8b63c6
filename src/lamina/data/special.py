"""The special tokens of a tokenizer, and whether a text holds one where only words belong."""

from __future__ import annotations

import re
from collections.abc import Iterable

from transformers import PreTrainedTokenizerBase


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    """All of them, as text."""
    added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    return added | set(tokenizer.all_special_tokens)


class TokenSearch:
    """Looks for tokens in texts."""

    def __init__(self, tokens: Iterable[str]) -> None:
        ordered = sorted(tokens, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, ordered)))
        # A search for a few beginnings is quicker than one for hundreds of tokens.
        self._beginnings = tuple({token[:2] for token in ordered})

    def first_in(self, text: str) -> str:
        """The first of the tokens that the text holds; empty if it holds none."""
        match = self._pattern.search(text) if any(map(text.__contains__, self._beginnings)) else None
        return match.group() if match else ""
