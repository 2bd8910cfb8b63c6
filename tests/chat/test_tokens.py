"""`TextTokenizer` and `supervised`: which tokens are in a span, with any kind of tokenizer."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from lamina.chat.spans import Span
from lamina.chat.tokens import TextTokenizer, Tokens, supervised, token_bytes
from tests.support.chat_families import fast
from tests.support.models_zoo import SPECIAL, build_tokenizer
from tests.support.tokenizers import BY_BYTES, LEARNT, OTHERS, STOP

_BUILT: dict[str, PreTrainedTokenizerFast] = {}

PIECES = [
    *LEARNT,
    " ",
    "\n\n",
    STOP,
    f"  {STOP}\n",
    "e\u0301",
    "\u00e9",
    "A\u030a",
    "\u212b",
    "日",
    "🎉",
    "\x7f",
    "ñ",
    "12345",
]
texts = st.lists(st.sampled_from(PIECES) | st.text(max_size=6), max_size=8).map("".join)


def tokenizer_of(name: str) -> PreTrainedTokenizerFast:
    if name not in _BUILT:
        _BUILT[name] = PreTrainedTokenizerFast(tokenizer_object={**BY_BYTES, **OTHERS}[name]())
    return _BUILT[name]


def asked_for_all(name: str, text: str) -> tuple[list[int], np.ndarray]:
    """Returns the ids, and the start and end of each token in characters, from the tokenizer itself."""
    (encoding,) = tokenizer_of(name).backend_tokenizer.encode_batch([text], add_special_tokens=False)
    return encoding.ids, np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)


@pytest.mark.parametrize("name", [*BY_BYTES, *OTHERS])
@fast
@given(text=texts, cuts=st.lists(st.integers(0, 60), min_size=4, max_size=4))
def test_tokens_of_a_span_are_those_that_the_tokenizer_places_there(name: str, text: str, cuts: list[int]) -> None:
    text = text.encode("utf-8", "ignore").decode()
    edges = sorted(min(cut, len(text)) for cut in cuts)
    spans = [Span(*pair) for pair in (edges[:2], edges[2:]) if pair[0] < pair[1]]
    ours = TextTokenizer(tokenizer_of(name))
    (encoding,) = ours.encode([text])
    tokens = ours.read(encoding, text)
    ids, offsets = asked_for_all(name, text)
    assert tokens.ids.tolist() == ids
    by_offsets = Tokens(tokens.ids, None, SimpleNamespace(offsets=offsets, char_to_token=lambda _: None))
    assert supervised(tokens, text, spans).tolist() == supervised(by_offsets, text, spans).tolist()


@pytest.mark.parametrize("name", [*BY_BYTES, *OTHERS])
@pytest.mark.parametrize("text", [f"  {STOP}\nu+e", f"the cat{STOP}A mat", "A", "é", f"{STOP}é{STOP}"])
def test_every_character_alone_has_all_of_its_tokens(name: str, text: str) -> None:
    """If a tokenizer adds a space in front of a text, two tokens have the offset of one character."""
    ours = TextTokenizer(tokenizer_of(name))
    (encoding,) = ours.encode([text])
    tokens = ours.read(encoding, text)
    _, offsets = asked_for_all(name, text)
    by_offsets = Tokens(tokens.ids, None, SimpleNamespace(offsets=offsets, char_to_token=lambda _: None))
    for place in range(len(text)):
        spans = [Span(place, place + 1)]
        assert supervised(tokens, text, spans).tolist() == supervised(by_offsets, text, spans).tolist()


@pytest.mark.parametrize("name", [*BY_BYTES, *OTHERS])
@fast
@given(text=texts.filter(bool), cut=st.integers(1, 60), back=st.integers(0, 60))
def test_a_text_is_cut_where_its_beginning_alone_has_other_tokens(name: str, text: str, cut: int, back: int) -> None:
    text = text.encode("utf-8", "ignore").decode()
    place = min(cut, len(text) - 1)
    ours = TextTokenizer(tokenizer_of(name))
    tokens = ours.read(ours.encode([text])[0], text)
    alone, rest = asked_for_all(name, text[:place])[0], asked_for_all(name, text[place:])[0]
    if ours.ends_equal(tokens, text, 0, place):
        last = (len(alone) + 1) // 2
        count = tokens.before(text, place)
        assert count is not None
        assert tokens.ids[:count].tolist()[count - last :] == alone[len(alone) - last :]
    apart = ours.read_split(tokens, text, [place])
    if apart is not tokens:
        assert apart.ids.tolist() == alone + rest
        learned = supervised(apart, text, [Span(place, len(text))])
        assert learned[max(1, len(alone)) :].all()
        assert not learned[: len(alone)].any()
    else:
        decode = ours._backend.decode
        assert decode(alone + rest, skip_special_tokens=False) != decode(tokens.ids.tolist(), skip_special_tokens=False)


def test_tokens_that_cross_a_place_or_look_ahead_of_it_are_seen() -> None:
    ours = TextTokenizer(tokenizer_of("gpt2"))

    def alike(text: str, place: int) -> bool:
        return ours.ends_equal(ours.read(ours.encode([text])[0], text), text, 0, place)

    assert alike("the mat, the cat", 8)
    assert not alike("the mat, the cat", 9)  # the token " the" spans it
    assert not alike("mat\n\nindeed", 5)  # at the end of a text, both line ends are one token


@pytest.mark.parametrize("name", BY_BYTES)
def test_a_byte_level_tokenizer_is_not_asked_for_places(name: str) -> None:
    text = f"the cat, 12 times{STOP}"
    ours = TextTokenizer(tokenizer_of(name))
    tokens = ours.read(ours.encode([text])[0], text)
    assert tokens.ends is not None
    assert tokens.ends[-1] == len(text)
    assert ours.encode([text])[0].offsets[-1] == (0, 0)


@pytest.mark.parametrize("name", OTHERS)
def test_any_other_one_is(name: str) -> None:
    assert token_bytes(tokenizer_of(name).backend_tokenizer) is None


def test_it_is_asked_where_the_bytes_do_not_add_up() -> None:
    ours = TextTokenizer(tokenizer_of("a token that swallows white space"))
    text = f"the cat  {STOP}"
    tokens = ours.read(ours.encode([text])[0], text)
    assert tokens.ends is None
    assert supervised(tokens, text, [Span(0, 7), Span(9, len(text))])[-1]


def test_a_letter_of_two_parts_is_normalized_so_the_tokenizer_is_asked() -> None:
    ours = TextTokenizer(tokenizer_of("qwen"))
    for text, places in (("caf\u00e9", True), ("cafe\u0301", False)):
        assert (ours.read(ours.encode([text])[0], text).ends is not None) is places


def test_every_token_of_a_byte_is_one_byte_long_and_special_ones_as_long_as_they_are_written() -> None:
    tokenizer = build_tokenizer()
    lengths = token_bytes(tokenizer.backend_tokenizer)
    assert lengths is not None
    special = [tokenizer.convert_tokens_to_ids(token) for token in SPECIAL]
    assert lengths[special].tolist() == [len(token) for token in SPECIAL]
    assert (np.delete(lengths, special) == 1).all()


def mask(offsets: list[tuple[int, int]], *spans: tuple[int, int]) -> list[bool]:
    encoding = SimpleNamespace(offsets=offsets, char_to_token=lambda _: None)
    tokens = Tokens(np.zeros(len(offsets), dtype=np.int32), None, encoding)
    return supervised(tokens, "x" * 20, [Span(*span) for span in spans]).tolist()


def test_tokens_inside_at_the_edges_and_outside_of_a_span() -> None:
    offsets = [(0, 3), (3, 5), (5, 8), (8, 9), (9, 12)]
    assert mask(offsets, (5, 9)) == [False, False, True, True, False]
    assert mask(offsets, (4, 6)) == [False, True, True, False, False]
    assert mask(offsets, (3, 5), (9, 12)) == [False, True, False, False, True]
    assert mask(offsets) == [False] * 5


def test_white_space_left_out_of_the_offsets_belongs_to_the_token_after_it() -> None:
    # "Q: hi  you": the tokens " hi" and "  you" are reported as (3, 5) and (7, 10).
    offsets = [(0, 2), (3, 5), (7, 10)]
    assert mask(offsets, (2, 10)) == [False, True, True]
    assert mask(offsets, (2, 3)) == [False, True, False]  # the answer is only the space
    assert mask(offsets, (5, 7)) == [False, False, True]
    assert mask(offsets, (3, 5)) == [False, True, False]  # text after the answer is not part of it


def test_several_tokens_of_one_character_are_all_in_its_span() -> None:
    offsets = [(0, 1), (1, 2), (1, 2), (1, 2), (1, 2), (2, 3)]
    assert mask(offsets, (1, 2)) == [False, True, True, True, True, False]


@pytest.mark.parametrize("spans", [[(0, 9)], [(0, 1), (1, 9)]])
def test_the_first_token_is_never_supervised(spans: list[tuple[int, int]]) -> None:
    assert mask([(0, 3), (3, 6), (6, 9)], *spans) == [False, True, True]
    assert mask([(0, 3)], *spans) == [False]
    assert mask([], *spans) == []
