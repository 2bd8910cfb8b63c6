"""The special tokens of a tokenizer, and how to find them in texts that must not contain them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from lamina.chat.message import Message
from lamina.chat.turns import separate_thinking
from lamina.errors import DataError


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    """Returns all special tokens of a tokenizer, as text."""
    added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    return added | set(tokenizer.all_special_tokens)


def control_tokens(tokenizer: PreTrainedTokenizerBase, written: str, stop: str) -> set[str]:
    """Returns the special tokens that have a meaning in a template, as text.

    Args:
        tokenizer: The tokenizer.
        written: The template and what it writes.
        stop: The token that ends an answer.
    """
    named = {str(token) for token in (tokenizer.bos_token, tokenizer.eos_token, stop) if token}
    unknown = getattr(tokenizer, "unk_token", None)
    return {t for t in special_tokens(tokenizer) if t != unknown and t.strip() and t in written} | named


class TokenSearch:
    """Searches texts for tokens."""

    def __init__(self, tokens: Iterable[str]) -> None:
        ordered = sorted(tokens, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, ordered)))
        # Searching for a few prefixes is faster than searching for hundreds of tokens.
        self._beginnings = tuple({token[:2] for token in ordered})

    def last_in(self, text: str) -> int:
        """Returns where the last of the tokens in a text starts; 0 if there is none."""
        return max((match.start() for match in self._pattern.finditer(text)), default=0)

    def first_in(self, text: str) -> str:
        """Returns the first of the tokens in the text; empty if there is none."""
        match = self._pattern.search(text) if any(map(text.__contains__, self._beginnings)) else None
        return match.group() if match else ""


def refuse_special_tokens(
    messages: Sequence[Message], schemas: list[dict[str, Any]] | None, search: TokenSearch
) -> None:
    """Refuses conversations that contain special tokens.

    Raises:
        DataError: A turn or a schema contains one; the error names both.
    """
    for number, message in enumerate(messages, start=1):
        if message.role == "assistant" and "<think>" in message.content:
            message = separate_thinking(message)  # its tags may be special tokens, and are not content
        words = message.words() if message.tool_calls or message.thinking else message.content
        if found := search.first_in(words):
            raise DataError(
                f"the {message.role} turn (turn {number}) contains {found!r}, a special token of the chat template, "
                "which the model could take for the end of a turn or the start of another. Fix: remove or rewrite "
                "it."
            )
    if schemas and (found := search.first_in(json.dumps(schemas, ensure_ascii=False))):
        raise DataError(f"the tools contain {found!r}, a special token. Fix: remove it from the schemas.")
