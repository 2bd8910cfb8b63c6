"""When servers die, hang or fail, every request that can move to another server is answered."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from lamina.engine.generator import Piece
from lamina.errors import LaminaError
from lamina.server.vllm import answering
from lamina.server.vllm.client import VllmClient
from tests.support.vllm import FakeVllm, _Handler
from tests.support.vllm_clients import Clients, Open, ask
from tests.support.waiting import wait_for


def test_a_killed_server_loses_no_request_that_had_not_begun(
    opened: Open, written: dict[str, Path], fakes: list[FakeVllm]
) -> None:
    engine = opened({"a": written["one"]})
    (whole,) = engine.generate([ask("a", tokens=20)])
    for fake in fakes:
        fake.pause = 0.03
    clients = Clients(engine, [ask("a", tokens=20)] * 24)
    wait_for(lambda: bool(clients.begun()))
    begun = clients.begun()
    victim = max(engine._replicas.all, key=lambda replica: replica.running)
    next(fake for fake in fakes if fake.url == victim.client.url).kill()
    clients.wait()
    assert begun and len(clients.lost()) < len(clients.got)
    for number in clients.lost():
        assert isinstance(clients.got[number][0], Piece), "it had not begun"
    assert clients.texts() == {whole.text}
    again = Clients(engine, [ask("a", tokens=2)] * 8)
    again.wait()
    assert not again.lost()


def test_whole_answers_move_even_after_they_began(
    opened: Open, written: dict[str, Path], fakes: list[FakeVllm]
) -> None:
    engine = opened({"a": written["one"]})
    (expected,) = engine.generate([ask("a")])
    for fake in fakes[:1]:
        fake.dies_after = 3
    found = engine.generate([ask("a", tokens=8)] * 6)
    assert {piece.text for piece in found} == {expected.text}
    fakes[1].dies_after = 3
    with pytest.raises(LaminaError, match="vLLM at"):
        engine.generate([ask("a")])


def test_a_stream_that_breaks_off_is_an_error_of_its_own(opened: Open, fakes: list[FakeVllm]) -> None:
    engine = opened(count=1)
    fakes[0].dies_after = 3
    clients = Clients(engine, [ask(tokens=8)])
    clients.wait()
    pieces = clients.got[0]
    assert len(pieces) == 4 and isinstance(pieces[-1], LaminaError)
    fakes[0].dies_after = None
    assert engine.generate([ask()])[0].token_ids


@pytest.mark.parametrize("fault", ["fails", "hangs"])
def test_a_server_that_fails_or_hangs_is_passed_by(
    opened: Open, written: dict[str, Path], fakes: list[FakeVllm], fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lamina.server.vllm.replicas._PATIENCE", 0.3)
    engine = opened({"a": written["one"]})
    setattr(fakes[0], fault, True)
    clients = Clients(engine, [ask("a")] * 6 + [ask(text=f"red {number}") for number in range(6)])
    clients.wait()
    assert not clients.lost()
    setattr(fakes[0], fault, False)
    wait_for(lambda: all(replica.is_alive for replica in engine._replicas.all))


def test_a_silent_stream_is_given_up(opened: Open, fakes: list[FakeVllm], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answering, "_SILENCE", 0.2)
    engine = opened(count=1)
    pieces = engine.stream(ask(tokens=8))
    next(pieces)
    fakes[0].pause = 5.0
    with pytest.raises(LaminaError, match="stopped answering"):
        list(pieces)


def test_a_server_that_forgot_an_adapter_is_passed_by(
    opened: Open, written: dict[str, Path], fakes: list[FakeVllm]
) -> None:
    engine = opened({"a": written["one"]})
    for fake in fakes:
        fake.adapters.clear()  # as after a restart that no look has seen
    assert engine.generate([ask("a")] * 4)[0].token_ids
    assert all(len(fake.loads) <= 2 for fake in fakes) and any(len(fake.loads) == 2 for fake in fakes)


def test_a_server_that_always_forgets_is_given_up(
    opened: Open, written: dict[str, Path], fakes: list[FakeVllm], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = opened({"a": written["one"]}, count=1)
    answer = _Handler._answer

    def forget(self: Any, body: dict[str, Any]) -> None:
        if body.get("stream"):
            self.owner.adapters.clear()
        answer(self, body)

    monkeypatch.setattr(_Handler, "_answer", forget)
    with pytest.raises(LaminaError, match="does not exist"):
        engine.generate([ask("a")])
    assert engine.generate([ask()])[0].token_ids


def test_requests_wait_for_the_only_server_to_come_back(
    opened: Open, written: dict[str, Path], fakes: list[FakeVllm], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = opened(count=1)
    fakes[0].kill()
    wait_for(lambda: not engine._replicas.is_any_alive)
    clients = Clients(engine, [ask()])
    time.sleep(0.2)
    fakes[0].start()
    clients.wait()
    assert not clients.lost()
    fakes[0].kill()
    wait_for(lambda: not engine._replicas.is_any_alive)
    monkeypatch.setattr(answering, "_WAIT", 0.2)
    with pytest.raises(LaminaError, match="no vLLM server answers"):
        engine.generate([ask()])
    with pytest.raises(LaminaError, match="no vLLM server answers"):
        engine.load("a", written["one"])


def test_an_error_of_the_front_s_own_ends_its_request_alone(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = opened()
    monkeypatch.setattr(VllmClient, "chunks", lambda self, body: 1 / 0)
    with pytest.raises(LaminaError, match=r"the front of vLLM failed: ZeroDivisionError"):
        engine.generate([ask()])


def test_a_spare_server_that_is_gone_too_is_passed_by(
    opened: Open, written: dict[str, Path], fakes: list[FakeVllm], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answering, "_WAIT", 0.2)
    engine = opened({"a": written["one"]}, copies=1, check_seconds=5.0)
    for fake in fakes:
        fake.kill()  # no look has seen it yet
    with pytest.raises(LaminaError, match="vLLM at"):
        engine.generate([ask("a")])


def test_a_stream_that_ends_without_a_reason_is_no_answer(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    async def nothing(self: VllmClient, body: dict[str, Any]) -> Any:
        yield {"choices": []}

    engine = opened(count=1)
    monkeypatch.setattr(VllmClient, "chunks", nothing)
    with pytest.raises(LaminaError, match="ended an answer without a reason"):
        engine.generate([ask()])


def test_what_comes_after_a_cancel_is_not_delivered(opened: Open) -> None:
    engine = opened(count=1)
    got: list[Any] = []
    ticket = engine.submit(ask(), got.append)
    ticket.cancel()
    count = len(got)
    ticket._tell(Piece("late", (1,), "stop"))
    ticket.give_up(LaminaError("late"))
    assert len(got) == count
