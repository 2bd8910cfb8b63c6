"""Blocks are counted, found again by what they hold, and never given out twice."""

from __future__ import annotations

import random

import pytest

from lamina.engine.blocks import Blocks, first_key, next_key


def test_any_history_keeps_count() -> None:
    draw = random.Random(0)
    blocks = Blocks(7)
    held: list[int] = []
    for step in range(4000):
        kind = draw.random()
        if kind < 0.4 and blocks.available:
            block = blocks.take()
            assert block not in held
            held.append(block)
        elif kind < 0.5 and held:
            block = draw.choice(held)
            blocks.share(block)
            held.append(block)
        elif kind < 0.6 and held:
            blocks.register(draw.choice(held), next_key(first_key(None, ""), [step % 11]))
        elif kind < 0.7:
            for block in blocks.find([next_key(first_key(None, ""), [step % 11])]):
                blocks.share(block)
                held.append(block)
        elif kind < 0.71:
            blocks.forget_kept()
        elif held:
            blocks.give_back(held.pop(draw.randrange(len(held))))
        assert blocks.used == len(set(held))
    for block in held:
        blocks.give_back(block)
    assert blocks.available == 7


def test_what_was_used_the_longest_ago_goes_first() -> None:
    blocks = Blocks(3)
    keys = [next_key(first_key(None, ""), [number]) for number in range(3)]
    for key in keys:
        block = blocks.take()
        blocks.register(block, key)
        blocks.give_back(block)
    (used,) = blocks.find([keys[0]])
    blocks.share(used)
    blocks.give_back(used)
    assert blocks.take() not in blocks.find([keys[0]])
    assert [len(blocks.find([key])) for key in keys] == [1, 0, 1]


def test_keys_tell_adapters_tenants_and_places_apart() -> None:
    first = [first_key(digest, salt) for digest in (None, "a", "b") for salt in ("", "x")]
    assert len(set(first)) == 6
    assert next_key(first[0], [1, 2]) != next_key(first[0], [2, 1])
    assert next_key(next_key(first[0], [1]), [2]) != next_key(first[0], [1, 2])


def test_there_is_no_block_beyond_the_last() -> None:
    blocks = Blocks(1)
    blocks.take()
    with pytest.raises(IndexError):
        blocks.take()
