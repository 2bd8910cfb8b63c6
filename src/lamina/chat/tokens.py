"""Tokenizes texts, many at once, and tells which tokens lie in a span of characters.

A tokenizer that is asked where its tokens lie spends a sixth of its time on that. One of the byte-level kind (GPT-2's,
Llama 3's, Qwen's, SmolLM2's) need not be asked: each of its tokens stands for the same bytes wherever it is, so their
lengths added up are the places. They must add up to the text; where they do not (a token that swallows the white space
beside it), and with every other kind of tokenizer, it is asked.
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

# Normalizers that leave most texts as they are, and can be foreseen.
_UNICODE_FORMS = ("NFC", "NFD", "NFKC", "NFKD")

# Short texts whose ids are remembered.
_MOST_KNOWN = 4096

# Steps before the model that only cut.
_CUTS = ("ByteLevel", "Digits", "Split")


@dataclass(frozen=True, slots=True)
class Tokens:
    """A text's tokens.

    Attributes:
        ids: int32, shape (tokens,).
        ends: int64, shape (tokens,): past the last byte of each; None where only the tokenizer can tell.
        encoding: The tokenizer's own answer.
    """

    ids: np.ndarray
    ends: np.ndarray | None
    encoding: Any

    def before(self, text: str, place: int) -> int | None:
        """How many tokens the text has up to a place; None if one reaches across it."""
        if self.ends is not None:
            first = _bytes_before(text, place)
            count = int(self.ends.searchsorted(first, "right"))
            return count if first == (int(self.ends[count - 1]) if count else 0) else None
        count = self.encoding.char_to_token(place)
        if count is None:
            return None
        return count if not count or self.encoding.offsets[count - 1][1] >= place else None


class TextTokenizer:
    """A fast tokenizer, for texts that hold every special token already.

    Raises:
        ModelError: It is not a fast one.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if not tokenizer.is_fast:
            raise ModelError(
                f"the tokenizer {type(tokenizer).__name__} is a slow one and cannot tell where a token lies in the "
                "text. Fix: use a model with a tokenizer.json."
            )
        self._backend: Any = tokenizer.backend_tokenizer
        self._lengths = token_bytes(self._backend)
        self._known: dict[str, list[int]] = {}
        self._forms = [step["type"] for step in _steps(self._backend.normalizer, "normalizers")]

    def reset(self) -> None:
        """Switches padding and truncation off, which others may have switched on. To be called before `encode`."""
        self._backend.no_truncation()
        self._backend.no_padding()

    def encode(self, texts: Sequence[str]) -> list[Any]:
        """What `read` takes, for each text; the tokenizer's own threads do it, and Python's others run meanwhile."""
        run = self._backend.encode_batch if self._lengths is None else self._backend.encode_batch_fast
        return run(texts, add_special_tokens=False)

    def read(self, encoding: Any, text: str) -> Tokens:
        """The tokens of a text, from what `encode` gave for it."""
        ids = np.array(encoding.ids, dtype=np.int32)
        if self._lengths is None:
            return Tokens(ids, None, encoding)
        if text.isascii() or all(is_normalized(form, text) for form in self._forms):
            ends = self._lengths[ids].cumsum()
            if (int(ends[-1]) if len(ends) else 0) == _bytes_before(text, len(text)):
                return Tokens(ids, ends, encoding)
        (asked,) = self._backend.encode_batch([text], add_special_tokens=False)
        return Tokens(np.array(asked.ids, dtype=np.int32), None, asked)

    def ends_alike(self, tokens: Tokens, text: str, begin: int, place: int) -> bool:
        """Whether a text's tokens up to a place are those that it would have if it ended there.

        Args:
            tokens: The text's tokens.
            text: The text.
            begin: Where to look from: far enough before `place`, for tokens depend on what is near.
            place: The place.
        """
        count = tokens.before(text, place)
        if count is None:
            return False
        alone = self._alone(text[begin:place])
        last = (len(alone) + 1) // 2  # the first ones may be cut by `begin`
        return last == 0 or tokens.ids[max(0, count - last) : count].tolist() == alone[-last:]

    def _alone(self, text: str) -> list[int]:
        """The ids of a short text, remembered: prompts end in the same words."""
        if text not in self._known:
            if len(self._known) == _MOST_KNOWN:
                self._known.clear()
            self._known[text] = self._backend.encode(text, add_special_tokens=False).ids
        return self._known[text]

    def read_apart(self, tokens: Tokens, text: str, places: Sequence[int]) -> Tokens:
        """The tokens of a text that is cut at some places; `tokens` themselves where that would be another text."""
        bounds = [0, *places, len(text)]
        pieces = [text[start:end] for start, end in pairwise(bounds)]
        apart = self._backend.encode_batch(pieces, add_special_tokens=False)
        ids = np.concatenate([np.array(piece.ids, dtype=np.int32) for piece in apart])
        if self._decoded(ids) != self._decoded(tokens.ids):
            return tokens
        shifted = [
            (start + first, start + last)
            for start, piece in zip(bounds, apart, strict=False)
            for first, last in piece.offsets
        ]
        return Tokens(ids, None, _Joined(shifted))

    def _decoded(self, ids: np.ndarray) -> str:
        return self._backend.decode(ids.tolist(), skip_special_tokens=False)


@dataclass(frozen=True, slots=True)
class _Joined:
    """Encodings of pieces of a text as one."""

    offsets: list[tuple[int, int]]

    def char_to_token(self, place: int) -> int | None:
        """Left to the offsets."""
        return None


def supervised(tokens: Tokens, text: str, spans: Iterable[Span]) -> np.ndarray:
    """Which tokens lie in a span of a text's characters, if only in part.

    Returns:
        bool, shape (tokens,). The first token is never supervised: nothing comes before it to predict it from.
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
    """Which tokens lie in a span, by the places that a tokenizer gave.

    Args:
        offsets: int64, shape (tokens, 2): first and past-the-last character of each token.
        span: A range of characters.

    Returns:
        bool, shape (tokens,).
    """
    starts, ends = offsets[:, 0], offsets[:, 1]
    # Byte-level tokenizers leave leading white space out of a token's offsets; it belongs to the token all the same.
    starts = np.minimum(starts, np.concatenate(([0], ends[:-1])))
    return (starts < span.end) & (ends > span.start)


def token_bytes(backend: Any) -> np.ndarray | None:
    """How many bytes of text each token of a byte-level tokenizer stands for.

    Args:
        backend: A `tokenizers.Tokenizer`.

    Returns:
        int64, shape (highest id + 1,); None if the tokenizer is not known to be of that kind.
    """
    vocabulary: dict[str, int] = backend.get_vocab(with_added_tokens=False)
    whole = vocabulary.keys() >= set(pre_tokenizers.ByteLevel.alphabet())
    # A byte that the vocabulary lacks would be the unknown token, of whatever length; without one it is missing.
    if not (_splits_bytes(backend) and (whole or backend.model.unk_token is None)):
        return None
    added = {number: len(token.content.encode()) for number, token in backend.get_added_tokens_decoder().items()}
    lengths = np.zeros(max([*vocabulary.values(), *added], default=0) + 1, dtype=np.int64)
    # A letter of the vocabulary is a byte of text.
    lengths[list(vocabulary.values())] = list(map(len, vocabulary))
    lengths[list(added)] = list(added.values())
    return lengths


def _splits_bytes(backend: Any) -> bool:
    """Whether texts become tokens byte by byte, with nothing put in, taken away or written otherwise before."""
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
    """What a tokenizer's normalizer or pre-tokenizer does, step by step, as in its file."""
    if part is None:
        return []
    state = json.loads(part.__getstate__())
    return state[list_name] if state["type"] == "Sequence" else [state]


def _mark(mask: np.ndarray, encoding: Any, text: str, span: Span) -> None:
    """Sets the tokens of a span, fetching every token's offsets only where the span's edges do not tell enough."""
    # A token that ends in an ASCII character is the only one that holds it; of others several may.
    first = encoding.char_to_token(span.start)
    last = encoding.char_to_token(span.end - 1) if text[span.end - 1].isascii() else None
    if first is None or last is None:
        mask |= overlapping(np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2), span)
        return
    # A space that the tokenizer puts before a text has the place of the text's first character, too.
    while last + 1 < len(mask) and encoding.token_to_chars(last + 1)[0] < span.end:
        last += 1
    mask[first : last + 1] = True


def _bytes_before(text: str, place: int) -> int:
    return place if text.isascii() else len(text[:place].encode())
