"""Every micro-batch has one process, and no process has more than it must."""

from __future__ import annotations

import itertools

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lamina.distributed.assign import assign, balance, cost

COSTS = st.lists(st.floats(0.0, 1e6), max_size=20)
patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@patient
@given(costs=COSTS, size=st.integers(1, 9))
def test_every_micro_batch_is_in_one_share(costs: list[float], size: int) -> None:
    shares = assign(costs, size)
    assert sorted(place for share in shares for place in share) == list(range(len(costs)))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@patient
@given(costs=COSTS.filter(lambda costs: sum(costs) > 0), size=st.integers(1, 9))
def test_those_of_a_slot_are_of_like_cost(costs: list[float], size: int) -> None:
    shares = assign(costs, size)
    slots = [[costs[share[slot]] for share in shares if slot < len(share)] for slot in range(max(map(len, shares)))]
    for earlier, later in itertools.pairwise(slots):
        assert min(earlier) >= max(later)
    slowest = sum(map(max, slots))
    assert abs(balance(costs, size) - slowest * size / sum(costs)) < 1e-6 * balance(costs, size)


def test_attention_costs_more_in_long_documents() -> None:
    assert cost([4096], 576) > cost([2048, 2048], 576) > cost([2048], 576)
    assert cost([1] * 7, 10**9) == 7 + 7 / (12 * 10**9)
