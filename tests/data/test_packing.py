"""`plan_epoch`: each example once per epoch, within the budget, in an order that depends only on seed and epoch."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pytest

from lamina.data.packing import plan_epoch, wrap

MAX_LENGTH = 256
CASES = [(1, 1), (1, 50), (4, 3), (4, 97), (8, 500)]  # batch size, number of examples


def random_lengths(count: int, seed: int = 0) -> list[int]:
    """Mostly short examples, as in real data, with a few of maximum length."""
    rng = random.Random(seed)
    return [min(MAX_LENGTH, 1 + int(rng.expovariate(1 / 80))) for _ in range(count)]


def next_fit(lengths: Sequence[int], budget: int) -> int:
    """Returns the number of bins that next fit needs in the given order."""
    bins, left = 0, 0
    for length in lengths:
        if length > left:
            bins, left = bins + 1, budget
        left -= length
    return bins


@pytest.mark.parametrize(("batch_size", "count"), CASES)
@pytest.mark.parametrize("packing", [True, False])
def test_every_example_once_and_none_left_over(batch_size: int, count: int, packing: bool) -> None:
    lengths = random_lengths(count)
    for epoch in range(3):
        plan = plan_epoch(lengths, batch_size, MAX_LENGTH, packing, 0, epoch)
        assert sorted(index for batch in plan for index in batch) == list(range(count))
        assert all(plan)


@pytest.mark.parametrize(("batch_size", "count"), CASES)
def test_packed_batches_keep_to_the_token_budget(batch_size: int, count: int) -> None:
    lengths = random_lengths(count)
    for batch in plan_epoch(lengths, batch_size, MAX_LENGTH, True, 0, 0):
        assert sum(lengths[index] for index in batch) <= batch_size * MAX_LENGTH


@pytest.mark.parametrize(("batch_size", "count"), CASES)
def test_unpacked_batches_count_examples(batch_size: int, count: int) -> None:
    plan = plan_epoch(random_lengths(count), batch_size, MAX_LENGTH, False, 0, 0)
    sizes = [len(batch) for batch in plan]
    assert sizes[:-1] == [batch_size] * (len(sizes) - 1)
    assert sizes[-1] == (count - 1) % batch_size + 1


@pytest.mark.parametrize("packing", [True, False])
def test_seed_and_epoch_alone_decide_the_order(packing: bool) -> None:
    lengths = random_lengths(200)
    plans = {
        (seed, epoch): plan_epoch(lengths, 4, MAX_LENGTH, packing, seed, epoch) for seed in (0, 1) for epoch in range(3)
    }
    for (seed, epoch), plan in plans.items():
        assert plan_epoch(list(lengths), 4, MAX_LENGTH, packing, seed, epoch) == plan
    assert len({str(plan) for plan in plans.values()}) == len(plans)


def test_epochs_differ_in_which_examples_meet_and_not_in_order_alone() -> None:
    lengths = [60] * 40
    groups = [{frozenset(batch) for batch in plan_epoch(lengths, 1, MAX_LENGTH, True, 0, epoch)} for epoch in (0, 1)]
    assert groups[0] != groups[1]


def test_long_examples_do_not_all_come_first() -> None:
    lengths = random_lengths(300)
    longest = [max(lengths[i] for i in batch) for batch in plan_epoch(lengths, 1, MAX_LENGTH, True, 0, 0)]
    assert longest != sorted(longest, reverse=True)
    half = len(longest) // 2
    assert sum(longest[:half]) / half < 1.2 * sum(longest[half:]) / (len(longest) - half)


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("count", [5, 77, 300])
def test_every_epoch_has_as_many_micro_batches(packing: bool, count: int) -> None:
    lengths = random_lengths(count, seed=count)
    counts = {len(plan_epoch(lengths, 2, MAX_LENGTH, packing, seed, epoch)) for seed in range(3) for epoch in range(10)}
    assert len(counts) == 1


def test_best_fit_needs_fewer_micro_batches_than_filling_in_order() -> None:
    for seed in range(5):
        lengths = random_lengths(400, seed)
        packed = len(plan_epoch(lengths, 1, MAX_LENGTH, True, seed, 0))
        assert packed < 0.9 * next_fit(lengths, MAX_LENGTH)
        assert sum(lengths) / (packed * MAX_LENGTH) > 0.95


def test_examples_of_the_longest_length_get_a_bin_each() -> None:
    assert sorted(plan_epoch([MAX_LENGTH] * 3, 1, MAX_LENGTH, True, 0, 0)) == [[0], [1], [2]]
    assert sorted(map(len, plan_epoch([MAX_LENGTH] * 3, 2, MAX_LENGTH, True, 0, 0))) == [1, 2]


def test_no_examples_make_no_micro_batches() -> None:
    assert plan_epoch([], 4, MAX_LENGTH, True, 0, 0) == plan_epoch([], 4, MAX_LENGTH, False, 0, 0) == []


def test_examples_of_like_length_meet_where_asked_for() -> None:
    lengths = random_lengths(400)
    plans = [plan_epoch(lengths, 4, MAX_LENGTH, False, 0, epoch, group_by_length=True) for epoch in range(2)]
    for plan in plans:
        assert sorted(index for batch in plan for index in batch) == list(range(400))
        spread = sum(max(lengths[i] for i in batch) - min(lengths[i] for i in batch) for batch in plan) / len(plan)
        assert spread < 5
        longest = [max(lengths[i] for i in batch) for batch in plan]
        assert longest != sorted(longest) and longest != sorted(longest, reverse=True)
    assert plans[0] != plans[1]
    apart = plan_epoch(lengths, 4, MAX_LENGTH, False, 0, 0)
    assert sum(max(lengths[i] for i in b) - min(lengths[i] for i in b) for b in apart) / len(apart) > 50


@pytest.mark.parametrize(("batch_size", "count"), CASES)
def test_wrapped_examples_fill_every_micro_batch_but_the_last(batch_size: int, count: int) -> None:
    lengths, budget = np.array(random_lengths(count)), batch_size * MAX_LENGTH
    parts = wrap(lengths, budget, seed=0)
    tokens = np.bincount(parts.block, parts.length)
    assert (tokens[:-1] == budget).all() and 0 < tokens[-1] <= budget
    pieces = sorted(zip(parts.example.tolist(), parts.begin.tolist(), parts.length.tolist(), strict=True))
    at = dict.fromkeys(range(count), 0)
    for example, begin, length in pieces:  # each example whole and without gaps
        assert begin == at[example]
        at[example] += length
    assert list(at.values()) == lengths.tolist()
    assert wrap(lengths, budget, seed=1).example.tolist() != parts.example.tolist() or count == 1
    for epoch in range(2):
        plan = plan_epoch(parts.length, batch_size, MAX_LENGTH, True, 0, epoch, blocks=parts.block)
        assert sorted(map(tuple, plan)) == [tuple(np.flatnonzero(parts.block == b)) for b in range(len(tokens))]


def test_wrapping_nothing() -> None:
    assert len(wrap(np.zeros(0, dtype=np.int64), 8, 0).length) == 0
