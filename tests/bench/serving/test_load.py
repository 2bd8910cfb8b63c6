"""Loads: how many requests are under way, what an open loop counts from, and who asks what."""

from __future__ import annotations

import itertools
import time
from collections import Counter

import numpy as np
import pytest

from lamina.bench.serving.load import Event, closed_loop, open_loop
from lamina.bench.serving.traffic import ALIKE, Ask, asks, poisson_arrivals, popular
from tests.support.serving_bench import Echo

PROMPTS = [[1, 2], [3, 4, 5]]


@pytest.mark.parametrize(("streams", "count"), [(1, 3), (4, 10), (8, 3)])
def test_a_closed_loop_keeps_its_streams_busy(streams: int, count: int) -> None:
    target = Echo(3)
    answers = closed_loop(target, asks(PROMPTS, [], 0), streams, count)
    assert len(answers) == len(target.asked) == count
    assert target.most == min(streams, count)
    assert all(len(answer.times) == 3 and answer.times == sorted(answer.times) for answer in answers)
    assert all(answer.asked <= answer.times[0] for answer in answers)
    assert {answer.prompt_tokens for answer in answers} == {2, 3}


def test_an_open_loop_counts_from_when_a_request_was_due() -> None:
    """A target that keeps the caller waiting makes later requests late, and that is in their first token's time."""

    class Slow(Echo):
        def events(self, patience: float) -> list[Event]:
            time.sleep(0.05)
            return super().events(patience)

    answers = open_loop(Slow(1), asks(PROMPTS, [], 0), [0.0, 0.001, 0.002])
    assert len(answers) == 3
    assert answers[1].asked == pytest.approx(0.001) and answers[2].asked == pytest.approx(0.002)
    assert answers[2].first_token_seconds > 0.09


def test_an_open_loop_waits_for_arrivals() -> None:
    target = Echo(2)
    answers = open_loop(target, asks(PROMPTS, [], 0), [0.0, 0.06])
    assert target.most == 1
    assert answers[1].times[0] >= 0.06


def test_several_tokens_at_once_have_one_time() -> None:
    class Bursts(Echo):
        def events(self, patience: float) -> list[Event]:
            events = [Event(number, 5.0, 3, True) for number in self.left]
            self.left.clear()
            return events

    (answer,) = closed_loop(Bursts(3), asks(PROMPTS, [], 0), 1, 1)
    assert len(answer.times) == 3 and answer.between_seconds == [0.0, 0.0]


def test_arrivals_are_those_of_their_seed() -> None:
    arrivals = poisson_arrivals(20.0, 4000, seed=3)
    assert arrivals == poisson_arrivals(20.0, 4000, seed=3) != poisson_arrivals(20.0, 4000, seed=4)
    gaps = np.diff([0.0, *arrivals])
    assert gaps.min() > 0
    assert gaps.mean() == pytest.approx(1 / 20, rel=0.05)
    assert gaps.std() == pytest.approx(1 / 20, rel=0.1)  # of an exponential distribution, the deviation is the mean


def test_prompts_and_adapters_in_turn() -> None:
    found = list(itertools.islice(asks(PROMPTS, ["a", "b", "c"], 0), 4))
    assert found[3] == Ask(3, [3, 4, 5], "a")
    assert [ask.adapter for ask in found] == ["a", "b", "c", "a"]
    assert next(asks(PROMPTS, [], 0)).adapter is None


def test_many_adapters_are_popular_as_zipf_says() -> None:
    names = [f"n{number}" for number in range(ALIKE + 1)]
    drawn = list(itertools.islice(popular(names, 5), 5000))
    assert drawn == list(itertools.islice(popular(names, 5), 5000))
    counts = Counter(drawn)
    share = 1 / sum(1 / place for place in range(1, len(names) + 1))
    assert counts["n0"] / 5000 == pytest.approx(share, rel=0.1)
    assert counts["n1"] / 5000 == pytest.approx(share / 2, rel=0.15)
