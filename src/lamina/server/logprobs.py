"""Log-probabilities in answers: a token as text and bytes, and OpenAI's two shapes of them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import cached_property, lru_cache
from typing import Any

from transformers import PreTrainedTokenizerBase

from lamina.chat.special import special_tokens
from lamina.engine.generator import TokenLogprobs
from lamina.server.plain import SpecialTexts

# What JSON has for minus infinity, by OpenAI's custom.
_LOWEST = -9999.0

_HALF = "\ufffd"


class TokenTexts:
    """The texts of a tokenizer's tokens."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer: Any = tokenizer
        self._bytes = _byte_letters()
        self.text = lru_cache(maxsize=65_536)(self._text)

    @cached_property
    def special(self) -> SpecialTexts:
        """The special tokens, as texts."""
        return SpecialTexts(special_tokens(self._tokenizer))

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """The special tokens."""
        added = (number for number, token in self._tokenizer.added_tokens_decoder.items() if token.special)
        return frozenset([*added, *self._tokenizer.all_special_ids])

    def decode(self, ids: Sequence[int]) -> str:
        """The text of several tokens, special ones included."""
        return str(self._tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)) if ids else ""

    def bytes(self, token: int) -> list[int]:
        """The bytes of a token, which may be a part of a character."""
        text = self.text(token)
        if _HALF not in text:
            return list(text.encode())
        written = str(self._tokenizer.convert_ids_to_tokens(token))
        if written.startswith("<0x") and written.endswith(">"):
            return [int(written[3:-1], 16)]
        if all(letter in self._bytes for letter in written):
            return [self._bytes[letter] for letter in written]
        return list(text.encode())

    def _text(self, token: int) -> str:
        return self.decode([token])


def chat_logprobs(found: Sequence[TokenLogprobs], texts: TokenTexts) -> dict[str, Any]:
    """As `/v1/chat/completions` has them."""
    return {
        "content": [
            {
                **_entry(each.token_id, each.logprob, texts),
                "top_logprobs": [_entry(token, logprob, texts) for token, logprob in each.top],
            }
            for each in found
        ],
        "refusal": None,
    }


def completion_logprobs(
    ids: Sequence[int],
    found: Sequence[TokenLogprobs | None],
    texts: TokenTexts,
    begin: int = 0,
    left_out: Collection[int] = (),
) -> dict[str, Any]:
    """As `/v1/completions` has them.

    Args:
        ids: The tokens.
        found: What the model thought of each; None for the first of a prompt, which follows nothing.
        texts: Texts of tokens.
        begin: Where the first token begins in the choice's text.
        left_out: Places of tokens that the choice's text leaves out.
    """
    tokens = [texts.text(token) for token in ids]
    offsets = []
    for place, token in enumerate(tokens):
        offsets.append(begin)
        begin += 0 if place in left_out else len(token)
    return {
        "tokens": tokens,
        "token_logprobs": [None if each is None else _number(each.logprob) for each in found],
        "top_logprobs": [None if each is None else _best(each, texts) for each in found],
        "text_offset": offsets,
    }


def _best(each: TokenLogprobs, texts: TokenTexts) -> dict[str, float]:
    """The best tokens, and the one that is there; of tokens with one text, the best."""
    best: dict[str, float] = {}
    for token, logprob in (*each.top, (each.token_id, each.logprob)):
        best.setdefault(texts.text(token), _number(logprob))
    return best


def _entry(token: int, logprob: float, texts: TokenTexts) -> dict[str, Any]:
    return {"token": texts.text(token), "logprob": _number(logprob), "bytes": texts.bytes(token)}


def _number(logprob: float) -> float:
    return max(logprob, _LOWEST) if logprob == logprob else _LOWEST


def _byte_letters() -> dict[str, int]:
    """The letters that byte-level tokenizers write for bytes, as GPT-2 chose them."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + place): byte for place, byte in enumerate(others)}
