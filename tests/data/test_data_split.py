"""`split_off_eval`: a share of the rows, and never one prompt on both sides."""

from __future__ import annotations

import random
from collections.abc import Iterable

import pytest

from lamina.data.example import Example, Message
from lamina.data.split import split_off_eval

SEEDS = range(40)


def examples(prompts: Iterable[str]) -> list[Example]:
    return [
        Example((Message("user", prompt), Message("assistant", f"a{row}")), row)
        for row, prompt in enumerate(prompts, start=1)
    ]


def rows(side: list[Example]) -> list[int]:
    return [example.row for example in side]


@pytest.mark.parametrize("seed", SEEDS)
def test_every_row_once_in_file_order_and_no_prompt_on_both_sides(seed: int) -> None:
    rng = random.Random(seed)
    data = examples(f"q{rng.randrange(60)}" for _ in range(200))
    train, held_out = split_off_eval(data, 0.1, seed)
    assert sorted(rows(train) + rows(held_out)) == rows(data)
    assert rows(train) == sorted(rows(train)) and rows(held_out) == sorted(rows(held_out))
    assert not {e.prompt_key() for e in train} & {e.prompt_key() for e in held_out}
    assert 20 <= len(held_out) <= 40


@pytest.mark.parametrize(("count", "share", "wanted"), [(100, 0.1, 10), (100, 0.5, 50), (7, 0.01, 1), (2, 0.9, 1)])
def test_share_of_distinct_prompts_is_exact(count: int, share: float, wanted: int) -> None:
    for seed in SEEDS:
        train, held_out = split_off_eval(examples(f"q{i}" for i in range(count)), share, seed)
        assert (len(train), len(held_out)) == (count - wanted, wanted)


def test_prompts_are_equal_whatever_their_white_space_and_answer() -> None:
    data = examples(["what is  up?", " what\nis up? ", "what is up?", "other", "What is up?"])
    assert len({example.prompt_key() for example in data}) == 3
    for seed in SEEDS:
        _, held_out = split_off_eval(data, 0.2, seed)
        assert {1, 2, 3} & set(rows(held_out)) in ({1, 2, 3}, set())


def test_roles_and_earlier_turns_belong_to_the_prompt() -> None:
    one = Example((Message("user", "q"), Message("assistant", "a")), 1)
    two = Example((Message("system", "q"), Message("assistant", "a")), 2)
    three = Example((Message("user", "p"), Message("assistant", "x"), *one.messages), 3)
    assert len({example.prompt_key() for example in (one, two, three)}) == 3


def test_seed_alone_decides() -> None:
    data = examples(f"q{i}" for i in range(100))
    picks = [tuple(rows(split_off_eval(data, 0.1, seed)[1])) for seed in SEEDS]
    assert picks == [tuple(rows(split_off_eval(data, 0.1, seed)[1])) for seed in SEEDS]
    assert len(set(picks)) == len(picks)


@pytest.mark.parametrize("prompts", [["same"] * 9, ["same"], []])
def test_fewer_than_two_distinct_prompts_leave_nothing_to_hold_out(prompts: list[str]) -> None:
    data = examples(prompts)
    assert split_off_eval(data, 0.3, 0) == (data, [])


def test_prompt_repeated_very_often_stays_whole_and_both_sides_have_rows() -> None:
    data = examples(["same"] * 90 + [f"q{i}" for i in range(10)])
    sizes = []
    for seed in SEEDS:
        train, held_out = split_off_eval(data, 0.1, seed)
        assert train and held_out
        sizes.append(len(held_out))
        held_rows = set(rows(held_out))
        assert len({example.row in held_rows for example in data[:90]}) == 1
    assert sorted(sizes)[len(sizes) // 2] <= 20


@pytest.mark.parametrize("others", [10, 1])
def test_prompt_repeated_very_often_does_not_swallow_the_evaluation_side(others: int) -> None:
    data = examples(["same"] * 90 + [f"q{i}" for i in range(others)])
    for seed in SEEDS:
        _, held_out = split_off_eval(data, 0.1, seed)
        assert len(held_out) <= 20, seed
