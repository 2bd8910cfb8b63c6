"""Tokenizes texts in batches, and maps character spans to tokens.

Asking a tokenizer for its tokens' offsets takes a sixth of its time. For byte-level tokenizers (GPT-2, Llama 3, Qwen,
SmolLM2), it is unnecessary: each token stands for the same bytes everywhere, so the cumulative sum of their lengths
gives the offsets. The lengths must add up to the length of the text. If they do not (a token that swallows adjacent
white space), or if the tokenizer is of another kind, it is asked.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any
from unicodedata import is_normalized

import numpy as np
from tokenizers import models, pre_tokenizers
from transformers import PreTrainedTokenizerBase

from lamina.chat.spans import Span
from lamina.errors import ModelError

# Normalizers that leave most texts unchanged, in a way that can be predicted.
_UNICODE_FORMS = ("NFC", "NFD", "NFKC", "NFKD")

# Maximum number of short texts whose ids are cached.
_MOST_KNOWN = 4096

# Pre-tokenizers that only split.
_CUTS = ("ByteLevel", "Digits", "Split")


@dataclass(frozen=True, slots=True)
class Tokens:
    """The tokens of a text.

    Attributes:
        ids: int32, shape (tokens,).
        ends: int64, shape (tokens,): the byte offset of each token's end; None if only the tokenizer knows it.
        encoding: The tokenizer's own encoding.
    """

    ids: np.ndarray
    ends: np.ndarray | None
    encoding: Any

    def before(self, text: str, place: int) -> int | None:
        """Returns how many tokens are before a character offset; None if a token spans it."""
        if self.ends is not None:
            first = _bytes_before(text, place)
            count = int(self.ends.searchsorted(first, "right"))
            return count if first == (int(self.ends[count - 1]) if count else 0) else None
        count = self.encoding.char_to_token(place)
        if count is None:
            return None
        return count if not count or self.encoding.offsets[count - 1][1] >= place else None


class TextTokenizer:
    """A fast tokenizer for texts that already contain all special tokens.

    Raises:
        ModelError: The tokenizer is not a fast one.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if not tokenizer.is_fast:
            raise ModelError(
                f"{type(tokenizer).__name__} is a slow tokenizer, which does not report the offsets of its tokens. "
                "Fix: use a model with a tokenizer.json."
            )
        self._backend: Any = tokenizer.backend_tokenizer
        self._lengths = token_bytes(self._backend)
        self._known: dict[str, list[int]] = {}
        self._forms = [step["type"] for step in _steps(self._backend.normalizer, "normalizers")]

    def reset(self) -> None:
        """Disables padding and truncation, which other code may have enabled. Call it before `encode`."""
        self._backend.no_truncation()
        self._backend.no_padding()

    def encode(self, texts: Sequence[str]) -> list[Any]:
        """Encodes texts for `read`. The tokenizer uses its own threads, and other Python threads run meanwhile."""
        run = self._backend.encode_batch if self._lengths is None else self._backend.encode_batch_fast
        return run(texts, add_special_tokens=False)

    def read(self, encoding: Any, text: str) -> Tokens:
        """Returns the tokens of a text from the result of `encode`."""
        ids = np.array(encoding.ids, dtype=np.int32)
        if self._lengths is None:
            return Tokens(ids, None, encoding)
        if text.isascii() or all(is_normalized(form, text) for form in self._forms):
            ends = self._lengths[ids].cumsum()
            if (int(ends[-1]) if len(ends) else 0) == _bytes_before(text, len(text)):
                return Tokens(ids, ends, encoding)
        (asked,) = self._backend.encode_batch([text], add_special_tokens=False)
        return Tokens(np.array(asked.ids, dtype=np.int32), None, asked)

    def ends_equal(self, tokens: Tokens, text: str, begin: int, place: int) -> bool:
        """Returns whether the tokens before an offset are the same as if the text ended there.

        Args:
            tokens: The text's tokens.
            text: The text.
            begin: Offset to start from; far enough before `place`, since tokens depend on the text around them.
            place: The character offset.
        """
        count = tokens.before(text, place)
        if count is None:
            return False
        alone = self._alone(text[begin:place])
        last = (len(alone) + 1) // 2  # `begin` may cut through the first ones
        return last == 0 or tokens.ids[max(0, count - last) : count].tolist() == alone[-last:]

    def _alone(self, text: str) -> list[int]:
        """Returns the ids of a short text, cached because prompts end with the same words."""
        if text not in self._known:
            if len(self._known) == _MOST_KNOWN:
                self._known.clear()
            self._known[text] = self._backend.encode(text, add_special_tokens=False).ids
        return self._known[text]

    def read_split(self, tokens: Tokens, text: str, places: Sequence[int]) -> Tokens:
        """Returns the tokens of a text split at some offsets; `tokens` itself if that would decode to another text."""
        bounds = [0, *places, len(text)]
        pieces = [text[start:end] for start, end in pairwise(bounds)]
        separate = self._backend.encode_batch(pieces, add_special_tokens=False)
        ids = np.concatenate([np.array(piece.ids, dtype=np.int32) for piece in separate])
        if self._decoded(ids) != self._decoded(tokens.ids):
            return tokens
        shifted = [
            (start + first, start + last)
            for start, piece in zip(bounds, separate, strict=False)
            for first, last in piece.offsets
        ]
        return Tokens(ids, None, _Joined(shifted))

    def _decoded(self, ids: np.ndarray) -> str:
        return self._backend.decode(ids.tolist(), skip_special_tokens=False)


@dataclass(frozen=True, slots=True)
class _Joined:
    """The encodings of the pieces of a text, as one."""

    offsets: list[tuple[int, int]]

    def char_to_token(self, place: int) -> int | None:
        """Returns None: the offsets decide."""
        return None


def supervised(tokens: Tokens, text: str, spans: Iterable[Span]) -> np.ndarray:
    """Returns which tokens are, at least partly, in one of the character spans.

    Returns:
        bool, shape (tokens,). The first token is never supervised, because nothing precedes it.
    """
    mask = np.zeros(len(tokens.ids), dtype=bool)
    for span in spans:
        if span.start == 0 and span.end == len(text):
            mask[:] = True
        elif tokens.ends is not None:
            first, last = _bytes_before(text, span.start), _bytes_before(text, span.end)
            mask[tokens.ends.searchsorted(first, "right") : tokens.ends.searchsorted(last, "left") + 1] = True
        else:
            _mark(mask, tokens.encoding, text, span)
    mask[:1] = False
    return mask


def overlapping(offsets: np.ndarray, span: Span) -> np.ndarray:
    """Returns which tokens overlap a span, given the tokenizer's offsets.

    Args:
        offsets: int64, shape (tokens, 2): start and end (exclusive) of each token, in characters.
        span: A range of characters.

    Returns:
        bool, shape (tokens,).
    """
    starts, ends = offsets[:, 0], offsets[:, 1]
    # Byte-level tokenizers exclude leading white space from a token's offsets, although it belongs to the token.
    starts = np.minimum(starts, np.concatenate(([0], ends[:-1])))
    return (starts < span.end) & (ends > span.start)


def token_bytes(backend: Any) -> np.ndarray | None:
    """Returns how many bytes of text each token of a byte-level tokenizer stands for.

    Args:
        backend: A `tokenizers.Tokenizer`.

    Returns:
        int64, shape (highest id + 1,); None if the tokenizer is not known to be byte-level.
    """
    vocabulary: dict[str, int] = backend.get_vocab(with_added_tokens=False)
    whole = vocabulary.keys() >= set(pre_tokenizers.ByteLevel.alphabet())
    # A byte missing from the vocabulary would become the unknown token, of unknown length; without an unknown token, it
    # would be dropped.
    if not (_splits_bytes(backend) and (whole or backend.model.unk_token is None)):
        return None
    added = {number: len(token.content.encode()) for number, token in backend.get_added_tokens_decoder().items()}
    lengths = np.zeros(max([*vocabulary.values(), *added], default=0) + 1, dtype=np.int64)
    # Each character of a vocabulary entry is one byte of text.
    lengths[list(vocabulary.values())] = list(map(len, vocabulary))
    lengths[list(added)] = list(added.values())
    return lengths


def _splits_bytes(backend: Any) -> bool:
    """Returns whether texts are tokenized byte by byte, and nothing is added, removed or rewritten before."""
    steps = _steps(backend.pre_tokenizer, "pretokenizers")
    model = backend.model
    return (
        [step["type"] for step in steps].count("ByteLevel") == 1
        and all(step["type"] in _CUTS for step in steps)
        and not any(step.get("add_prefix_space") or step.get("behavior") == "Removed" for step in steps)
        and all(step["type"] in _UNICODE_FORMS for step in _steps(backend.normalizer, "normalizers"))
        and isinstance(model, models.BPE)
        and not (model.continuing_subword_prefix or model.end_of_word_suffix)
    )


def _steps(part: Any, list_name: str) -> list[dict[str, Any]]:
    """Returns the steps of a tokenizer's normalizer or pre-tokenizer, as in tokenizer.json."""
    if part is None:
        return []
    state = json.loads(part.__getstate__())
    return state[list_name] if state["type"] == "Sequence" else [state]


def _mark(mask: np.ndarray, encoding: Any, text: str, span: Span) -> None:
    """Marks the tokens of a span. Fetches every token's offsets only if the span's ends are not sufficient."""
    # An ASCII character belongs to exactly one token; other characters may be split among several tokens.
    first = encoding.char_to_token(span.start)
    last = encoding.char_to_token(span.end - 1) if text[span.end - 1].isascii() else None
    if first is None or last is None:
        mask |= overlapping(np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2), span)
        return
    # A space that the tokenizer adds in front of a text has the offset of the text's first character, too.
    while last + 1 < len(mask) and encoding.token_to_chars(last + 1)[0] < span.end:
        last += 1
    mask[first : last + 1] = True


def _bytes_before(text: str, place: int) -> int:
    return place if text.isascii() else len(text[:place].encode())
