"""Text as it comes: whole characters, in pieces that add up, cut before a stop string wherever it falls."""

from __future__ import annotations

from hypothesis import example, given, settings
from hypothesis import strategies as st

from lamina.engine.detokenizer import Detokenizer
from tests.support.models_zoo import build_tokenizer

TOKENIZER = build_tokenizer()


def ids_of(text: str) -> list[int]:
    return TOKENIZER(text, add_special_tokens=False).input_ids


@settings(max_examples=150, deadline=None)
@example("0 0", [" ", "0 0"])
@given(st.text(max_size=30), st.lists(st.text(min_size=1, max_size=4), max_size=3))
def test_pieces_add_up_to_the_text_before_the_first_stop_string(text: str, stop: list[str]) -> None:
    ids = ids_of(text)
    whole = TOKENIZER.decode(ids, clean_up_tokenization_spaces=False)
    told = Detokenizer(TOKENIZER, stop)
    pieces = []
    for token in ids:
        told.add(token)
        pieces.append(told.take(is_over=False))
        if told.stopped_by is not None:
            break
    told.finish()
    pieces.append(told.take(is_over=True))
    places = [(whole.find(each) + len(each), whole.find(each)) for each in stop if each in whole]
    expected = whole[: min(places)[1]] if places else whole  # the one that is complete first
    assert "".join(pieces) == expected
    assert (told.stopped_by is not None) == bool(places)


def test_half_a_character_waits_for_the_other_half() -> None:
    told, seen = Detokenizer(TOKENIZER), []
    for token in ids_of("a日🎉b"):
        told.add(token)
        seen.append(told.take(is_over=False))
    assert [piece for piece in seen if piece] == ["a", "日", "🎉", "b"]
    half = Detokenizer(TOKENIZER)
    half.add(ids_of("日")[0])
    assert half.take(is_over=False) == ""
    half.finish()
    assert half.take(is_over=True) == "\ufffd"
