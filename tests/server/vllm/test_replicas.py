"""Which server gets a request or an adapter, and how a server comes back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lamina.errors import LaminaError
from lamina.server.vllm.client import Served, Unreachable, VllmClient
from lamina.server.vllm.replicas import Replica, Replicas
from tests.support.vllm import FakeVllm
from tests.support.vllm_clients import Open, ask
from tests.support.waiting import wait_for


def test_a_server_that_comes_back_gets_its_adapters_before_traffic(
    opened: Open, written: dict[str, Path], fakes: list[FakeVllm]
) -> None:
    said: list[str] = []
    engine = opened({"a": written["one"], "b": written["two"]}, notify=said.append)
    fakes[0].kill()
    replica = next(each for each in engine._replicas.all if each.client.url == fakes[0].url)
    wait_for(lambda: not replica.is_alive)
    assert engine.generate([ask("a")])[0].token_ids
    fakes[0].ignores = True  # for one look: what it loads now does not act
    fakes[0].start()
    wait_for(lambda: replica.is_alive)
    assert replica.held == set() and any("stays away" in line for line in said)
    assert engine.generate([ask("a")] * 4)[0].token_ids and not fakes[0].asked
    fakes[0].ignores = False
    fakes[0].kill()
    wait_for(lambda: not replica.is_alive)
    fakes[0].start()
    wait_for(lambda: replica.is_alive)
    assert len(replica.held) == len(fakes[0].adapters) == 2
    assert any("does not answer" in line for line in said) and any("is back" in line for line in said)


def test_an_adapter_moves_to_a_server_that_did_not_have_it(
    opened: Open, written: dict[str, Path], fakes: list[FakeVllm]
) -> None:
    engine = opened({"a": written["one"]}, copies=1)
    holder = next(fake for fake in fakes if fake.adapters)
    other = next(fake for fake in fakes if fake is not holder)
    (expected,) = engine.generate([ask("a")])
    holder.kill()
    found = engine.generate([ask("a")] * 5)
    assert {piece.text for piece in found} == {expected.text} and len(other.loads) == 1


def replicas(count: int) -> Replicas:
    """Servers that nobody asks."""
    made = [
        Replica(VllmClient(f"http://127.0.0.1:{number}"), Served("base", 10, frozenset()))
        for number in range(1, count + 1)
    ]
    return Replicas(made, 2, "float32", list, lambda call: None, print)


def test_keys_stay_where_they_are_when_servers_go() -> None:
    some = replicas(4)

    def places() -> dict[str, Any]:
        found = {}
        for key in map(str, range(60)):
            found[key] = some.choose(key, None)
            some.done(found[key])
        return found

    before = places()
    assert len({id(replica) for replica in before.values()}) == 4
    some.all[0].is_alive = False
    after = places()
    moved = {key for key in before if before[key] is not after[key]}
    assert moved == {key for key in before if before[key] is some.all[0]}


def test_one_key_does_not_overload_a_server() -> None:
    some = replicas(3)
    for _ in range(30):
        assert some.choose("same", None) is not None
    assert sorted(replica.running for replica in some.all)[-1] <= 13
    some.all[1].held.add("label")
    assert some.choose("same", "label") is some.all[1]
    assert some.choose("same", "label", without=[some.all[1]]) is None


def test_a_server_that_is_away_at_loading_gets_its_adapter_later(
    opened: Open, written: dict[str, Path], fakes: list[FakeVllm]
) -> None:
    engine = opened(check_seconds=5.0)
    fakes[0].kill()  # no look has seen it yet
    engine.load("a", written["one"])
    assert len(fakes[1].adapters) == 1
    replica = next(each for each in engine._replicas.all if each.client.url == fakes[0].url)
    wait_for(lambda: not replica.is_alive)
    fakes[0].start()
    engine._replicas.suspect(replica)
    wait_for(lambda: replica.is_alive)
    assert len(fakes[0].adapters) == 1


def test_a_server_that_goes_while_it_is_welcomed_stays_away(
    opened: Open, written: dict[str, Path], fakes: list[FakeVllm], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = opened({"a": written["one"]})
    replica = next(each for each in engine._replicas.all if each.client.url == fakes[0].url)
    monkeypatch.setattr(VllmClient, "load", _unreachable)
    replica.held.clear()
    assert not engine._replicas._welcome(replica)
    monkeypatch.setattr(VllmClient, "served", _unreachable)
    assert not engine._replicas._welcome(replica)


def test_what_only_one_server_should_have_is_not_loaded_to_others(
    opened: Open, written: dict[str, Path], fakes: list[FakeVllm]
) -> None:
    engine = opened({"a": written["one"]}, copies=1)
    for replica in engine._replicas.all:
        assert engine._replicas._welcome(replica)
    assert sorted(len(fake.adapters) for fake in fakes) == [0, 1]


def test_an_adapter_that_no_other_server_takes_is_had_nowhere_else(
    opened: Open, written: dict[str, Path], fakes: list[FakeVllm]
) -> None:
    engine = opened({"a": written["one"]}, copies=1)
    holder, other = sorted(fakes, key=lambda fake: not fake.adapters)
    other.ignores = True
    holder.fails = True
    with pytest.raises(LaminaError, match="out of memory"):
        engine.generate([ask("a")])
    assert other.loads and not other.adapters and not other.asked
    holder.fails, other.ignores = False, False
    monkey = engine._replicas.all[fakes.index(other)]
    monkey.refused.clear()
    other.kill()
    assert engine.generate([ask("a")])[0].token_ids


def _unreachable(*given: Any) -> Any:
    raise Unreachable("gone")
