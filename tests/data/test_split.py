"""`hold_out`: a share of the rows, and never one prompt or one group on both sides."""

from __future__ import annotations

import random
from collections.abc import Iterable

import numpy as np
import pytest

from lamina.chat.message import Message
from lamina.data.example import Example
from lamina.data.split import hold_out
from lamina.data.store import digest_of, prompt_digest

SEEDS = range(40)


def digests(values: Iterable[object]) -> np.ndarray:
    return np.array([digest_of(value) for value in values], dtype=np.uint64)


def example(*prompt: Message, answer: str = "a") -> Example:
    return Example((*prompt, Message("assistant", answer)), 1)


@pytest.mark.parametrize("seed", SEEDS)
def test_no_prompt_is_on_both_sides_and_the_share_is_kept(seed: int) -> None:
    rng = random.Random(seed)
    prompts = digests(f"q{rng.randrange(60)}" for _ in range(200))
    held_out = hold_out(prompts, 0.1, seed)
    assert not set(prompts[held_out]) & set(prompts[~held_out])
    assert 20 <= held_out.sum() <= 40


@pytest.mark.parametrize(("count", "share", "wanted"), [(100, 0.1, 10), (100, 0.5, 50), (7, 0.01, 1), (2, 0.9, 1)])
def test_share_of_distinct_prompts_is_exact(count: int, share: float, wanted: int) -> None:
    for seed in SEEDS:
        assert hold_out(digests(range(count)), share, seed).sum() == wanted


def test_prompts_are_equal_whatever_their_white_space_and_answer() -> None:
    texts = ["what is  up?", " what\nis up? ", "what is up?", "other", "What is up?"]
    keys = [prompt_digest(example(Message("user", text), answer=str(i))) for i, text in enumerate(texts)]
    assert keys[0] == keys[1] == keys[2]
    assert len(set(keys)) == 3


def test_roles_and_earlier_turns_belong_to_the_prompt() -> None:
    one = example(Message("user", "q"))
    two = example(Message("system", "q"))
    three = example(Message("user", "p"), Message("assistant", "x"), Message("user", "q"))
    assert len({prompt_digest(item) for item in (one, two, three)}) == 3


def test_seed_alone_decides() -> None:
    prompts = digests(range(100))
    picks = [tuple(np.flatnonzero(hold_out(prompts, 0.1, seed))) for seed in SEEDS]
    assert picks == [tuple(np.flatnonzero(hold_out(prompts, 0.1, seed))) for seed in SEEDS]
    assert len(set(picks)) == len(picks)


@pytest.mark.parametrize("prompts", [["same"] * 9, ["same"], []])
def test_fewer_than_two_distinct_prompts_leave_nothing_to_hold_out(prompts: list[str]) -> None:
    assert not hold_out(digests(prompts), 0.3, 0).any()


@pytest.mark.parametrize("others", [10, 1])
def test_prompt_repeated_very_often_stays_whole_and_does_not_swallow_the_evaluation_side(others: int) -> None:
    prompts = digests(["same"] * 90 + [f"q{i}" for i in range(others)])
    for seed in SEEDS:
        held_out = hold_out(prompts, 0.1, seed)
        assert 0 < held_out.sum() <= 20, seed
        assert not held_out[:90].any()


@pytest.mark.parametrize("seed", range(10))
def test_groups_stay_together_and_so_do_prompts_that_link_them(seed: int) -> None:
    rng = random.Random(seed)
    groups = digests(i // 4 for i in range(400))
    prompts = digests("shared" if i % 50 == 0 else (i, rng.random()) for i in range(400))
    held_out = hold_out(prompts, 0.2, seed, groups=groups)
    assert not set(groups[held_out]) & set(groups[~held_out])
    assert not set(prompts[held_out]) & set(prompts[~held_out])
    assert 60 <= held_out.sum() <= 120
    alone = hold_out(prompts, 0.2, seed)
    assert set(groups[alone]) & set(groups[~alone])  # without groups, they are separated


@pytest.mark.parametrize("seed", range(10))
def test_strata_keep_their_proportions(seed: int) -> None:
    values = np.array([0] * 900 + [1] * 90 + [2] * 10)
    held_out = hold_out(digests(range(1000)), 0.2, seed, strata=digests(values))
    assert [int(held_out[values == value].sum()) for value in range(3)] == [180, 18, 2]
    counts = {int(hold_out(digests(range(1000)), 0.2, seed)[values == 2].sum()) for seed in range(30)}
    assert len(counts) > 1  # without strata, it is left to chance
