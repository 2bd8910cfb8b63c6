"""Texts that another list has too: equal ones, nearly equal ones, and those that only look alike."""

from __future__ import annotations

import random

from lamina.checks.overlap import find_overlaps

_LETTERS = random.Random(0)
WORDS = ["".join(_LETTERS.choices("abdefgiklmnoprstuz", k=_LETTERS.randint(3, 8))) for _ in range(3000)]


def text(seed: int, words: int = 30) -> str:
    draws = random.Random(seed)
    return " ".join(draws.choice(WORDS) for _ in range(words))


def test_equal_texts_are_exact_whatever_their_white_space() -> None:
    others = [text(n) for n in range(50)]
    asked = [f"  {others[7]}\n", others[3].replace(" ", "\t"), text(99), ""]
    found = find_overlaps(asked, others)
    assert [each and (each.kind, each.other) for each in found] == [("exact", 7), ("exact", 3), None, None]


def test_a_word_that_changed_is_nearly_the_same() -> None:
    others = [text(n) for n in range(300)]
    asked = []
    for number in range(40):
        words = others[number].split()
        words[number % 30] = "changed"
        asked.append(" ".join(words))
    found = find_overlaps(asked, others)
    assert sum(each is not None and (each.kind, each.other) == ("near", n) for n, each in enumerate(found)) >= 38


def test_other_texts_and_short_ones_are_not() -> None:
    others = [text(n) for n in range(200)]
    assert find_overlaps([text(n) for n in range(1000, 1100)], others) == [None] * 100
    assert find_overlaps(["yes", "no 1"], ["yes!", "no 2"]) == [None, None]
    assert find_overlaps([], others) == []
    assert find_overlaps(["a"], []) == [None]


def test_what_all_rows_share_makes_none_alike() -> None:
    frame = "You are a helpful assistant. Classify the request of this customer into one of the queues below: "
    others = [frame + text(n, 12) for n in range(400)]
    found = find_overlaps([frame + text(n, 12) for n in range(1000, 1050)], others)
    assert sum(each is not None for each in found) <= 1
