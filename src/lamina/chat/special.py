"""The special tokens of a tokenizer, and whether a text holds one where only words belong."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from lamina.chat.message import Message
from lamina.chat.turns import thinking_apart
from lamina.errors import DataError


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

    def last_in(self, text: str) -> int:
        """Where the last of the tokens in a text begins; 0 if it holds none."""
        return max((match.start() for match in self._pattern.finditer(text)), default=0)

    def first_in(self, text: str) -> str:
        """The first of the tokens that the text holds; empty if it holds none."""
        match = self._pattern.search(text) if any(map(text.__contains__, self._beginnings)) else None
        return match.group() if match else ""


def refuse_special_tokens(
    messages: Sequence[Message], schemas: list[dict[str, Any]] | None, search: TokenSearch
) -> None:
    """Refuses conversations that hold special tokens.

    Raises:
        DataError: A turn or a schema holds one; both are named.
    """
    for number, message in enumerate(messages, start=1):
        if message.role == "assistant" and "<think>" in message.content:
            message = thinking_apart(message)  # its tags may be special tokens, and are no words
        words = message.words() if message.tool_calls or message.thinking else message.content
        if found := search.first_in(words):
            raise DataError(
                f"the {message.role} turn (turn {number}) holds {found!r}, a special token of the chat "
                "template, so it could pass for the end of a turn or the start of another. Fix: remove or rewrite "
                "it."
            )
    if schemas and (found := search.first_in(json.dumps(schemas, ensure_ascii=False))):
        raise DataError(f"the tools hold {found!r}, a special token. Fix: remove it from the schemas.")
