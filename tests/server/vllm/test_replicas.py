"""Servers that lie are found out before traffic, and servers that die, hang or fail lose no request that can move."""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lamina.engine.generator import Piece, Request
from lamina.engine.sampling import Sampling
from lamina.errors import AdapterError, CertificateError, LaminaError
from lamina.server.vllm import answering
from lamina.server.vllm.client import Served, Unreachable, VllmClient
from lamina.server.vllm.engine import VllmEngine
from lamina.server.vllm.replicas import Replica, Replicas
from tests.support.vllm import FakeVllm, _Handler, write_adapter

Open = Callable[..., VllmEngine]


def ask(adapter: str | None = None, text: str = "red green 1", tokens: int = 8) -> Request:
    return Request(prompt=text, adapter=adapter, sampling=Sampling(max_tokens=tokens, ignore_stop_tokens=True))


def until(holds: Callable[[], bool], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


class Clients:
    """Many requests at once, and what each was told."""

    def __init__(self, engine: VllmEngine, requests: list[Request]) -> None:
        self.got: list[list[Piece | BaseException]] = [[] for _ in requests]
        self.over = threading.Semaphore(0)
        for number, request in enumerate(requests):
            engine.submit(request, lambda piece, number=number: self._take(number, piece))

    def _take(self, number: int, piece: Piece | BaseException) -> None:
        self.got[number].append(piece)
        if isinstance(piece, BaseException) or piece.finish_reason is not None:
            self.over.release()

    def begun(self) -> set[int]:
        return {number for number, pieces in enumerate(self.got) if pieces}

    def lost(self) -> set[int]:
        return {number for number, pieces in enumerate(self.got) if isinstance(pieces[-1], BaseException)}

    def wait(self) -> None:
        for _ in self.got:
            assert self.over.acquire(timeout=20)

    def texts(self) -> set[str]:
        whole = [pieces for number, pieces in enumerate(self.got) if number not in self.lost()]
        return {"".join(piece.text for piece in pieces if isinstance(piece, Piece)) for pieces in whole}


@pytest.mark.parametrize("fault", ["ignores", "scaled", "zeroed"])
def test_a_server_that_does_not_apply_an_adapter_gets_no_traffic(
    opened: Open, written: dict[str, Path], fakes: list[FakeVllm], fault: str
) -> None:
    engine = opened()
    setattr(fakes[1], fault, True)
    with pytest.raises(CertificateError, match=r"on vLLM at http.*certificate FAILED.*Fix: ") as caught:
        engine.load("a", written["one"])
    assert not caught.value.certificate.passed and engine.adapters == []
    assert not any(fake.adapters or fake.asked for fake in fakes)
    setattr(fakes[1], fault, False)
    facts = engine.load("a", written["one"])
    assert facts.certificate is not None and facts.certificate.passed and facts.certificate.dtype == "float32"


def test_a_stale_reload_is_found_out_and_the_old_one_stays(
    opened: Open, written: dict[str, Path], fakes: list[FakeVllm]
) -> None:
    engine = opened({"a": written["one"]})
    for fake in fakes:
        fake.stale = True
    with pytest.raises(CertificateError, match="FAILED"):
        engine.load("a", written["two"])
    (kept,) = engine.loaded()
    assert kept.path == written["one"] and engine.generate([ask("a")])[0].digest == kept.digest
    assert [len(fake.adapters) for fake in fakes] == [1, 1]


def test_what_bfloat16_would_hide_is_seen_beside_the_base(
    opened: Open, written: dict[str, Path], fakes: list[FakeVllm], model_folder: Path, tmp_path: Path
) -> None:
    """A weak adapter in the place of another: the wide tolerance of bfloat16 has room for both."""
    weak = write_adapter(tmp_path / "weak", model_folder, 7, lora_alpha=0.4)
    engine = opened({"weak": weak}, dtype="bfloat16")
    fakes[0].zeroed = fakes[1].zeroed = True
    with pytest.raises(CertificateError, match="from its record") as caught:
        engine.load("weak", weak)
    assert caught.value.certificate.max_logit_difference < caught.value.certificate.tolerance


def test_another_base_behind_the_url_is_named(opened: Open, written: dict[str, Path], fakes: list[FakeVllm]) -> None:
    engine = opened()
    for fake in fakes:
        fake.model = copy.deepcopy(fake.model)
        next(fake.model.parameters()).data.mul_(1.3)
    with pytest.raises(CertificateError, match="bare base itself differs"):
        engine.load("a", written["one"])


def test_an_adapter_without_probes_must_change_something(
    opened: Open, written: dict[str, Path], fakes: list[FakeVllm], tmp_path: Path
) -> None:
    folder = tmp_path / "plain"
    folder.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (folder / name).write_bytes((written["one"] / name).read_bytes())
    engine = opened()
    facts = engine.load("a", folder)
    assert facts.certificate is None and "no lamina.json" in facts.notes[0]
    fakes[0].ignores = fakes[1].ignores = True
    with pytest.raises(AdapterError, match=r"gives the bare base's numbers.*Fix: "):
        engine.load("b", folder)
    assert engine.adapters == ["a"]


@pytest.mark.parametrize(
    ("refusal", "hint"),
    [
        ((500, "LoRA rank 32 is greater than max_lora_rank 16."), "higher --max-lora-rank"),
        ((404, "Not Found"), "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"),
        ((400, "no such module"), "--engine lamina"),
    ],
)
def test_what_a_server_does_not_take_is_said_with_a_way_out(
    opened: Open, written: dict[str, Path], fakes: list[FakeVllm], refusal: tuple[int, str], hint: str
) -> None:
    engine = opened()
    fakes[0].refuses = fakes[1].refuses = refusal
    with pytest.raises(AdapterError, match="does not take it") as caught:
        engine.load("a", written["one"])
    assert hint in str(caught.value) and str(written["one"]) in str(caught.value)


def test_a_killed_server_loses_no_request_that_had_not_begun(
    opened: Open, written: dict[str, Path], fakes: list[FakeVllm]
) -> None:
    engine = opened({"a": written["one"]})
    (whole,) = engine.generate([ask("a", tokens=20)])
    for fake in fakes:
        fake.pause = 0.03
    clients = Clients(engine, [ask("a", tokens=20)] * 24)
    until(lambda: bool(clients.begun()))
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
    until(lambda: all(replica.is_alive for replica in engine._replicas.all))


def test_a_silent_stream_is_given_up(opened: Open, fakes: list[FakeVllm], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answering, "_SILENCE", 0.2)
    engine = opened(count=1)
    pieces = engine.stream(ask(tokens=8))
    next(pieces)
    fakes[0].pause = 5.0
    with pytest.raises(LaminaError, match="stopped answering"):
        list(pieces)


def test_a_server_that_comes_back_gets_its_adapters_before_traffic(
    opened: Open, written: dict[str, Path], fakes: list[FakeVllm]
) -> None:
    said: list[str] = []
    engine = opened({"a": written["one"], "b": written["two"]}, notify=said.append)
    fakes[0].kill()
    replica = next(each for each in engine._replicas.all if each.client.url == fakes[0].url)
    until(lambda: not replica.is_alive)
    assert engine.generate([ask("a")])[0].token_ids
    fakes[0].ignores = True  # for one look: what it loads now does not act
    fakes[0].start()
    until(lambda: replica.is_alive)
    assert replica.held == set() and any("stays away" in line for line in said)
    assert engine.generate([ask("a")] * 4)[0].token_ids and not fakes[0].asked
    fakes[0].ignores = False
    fakes[0].kill()
    until(lambda: not replica.is_alive)
    fakes[0].start()
    until(lambda: replica.is_alive)
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
    until(lambda: not engine._replicas.is_any_alive)
    clients = Clients(engine, [ask()])
    time.sleep(0.2)
    fakes[0].start()
    clients.wait()
    assert not clients.lost()
    fakes[0].kill()
    until(lambda: not engine._replicas.is_any_alive)
    monkeypatch.setattr(answering, "_WAIT", 0.2)
    with pytest.raises(LaminaError, match="no vLLM server answers"):
        engine.generate([ask()])
    with pytest.raises(LaminaError, match="no vLLM server answers"):
        engine.load("a", written["one"])


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
    until(lambda: not replica.is_alive)
    fakes[0].start()
    engine._replicas.suspect(replica)
    until(lambda: replica.is_alive)
    assert len(fakes[0].adapters) == 1


def test_a_server_without_log_probabilities_cannot_be_certified(
    opened: Open, written: dict[str, Path], fakes: list[FakeVllm], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = opened()
    monkeypatch.setattr(_Handler, "_of_prompt", lambda self, body: None)
    with pytest.raises(AdapterError, match="does not take it: its log-probabilities are not as vLLM gives them"):
        engine.load("a", written["one"])
    assert not any(fake.adapters for fake in fakes)


def test_a_server_that_gives_other_tokens_alone_cannot_be_certified(
    opened: Open, written: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = opened()
    monkeypatch.setattr(VllmClient, "logprobs", lambda self, model, ids: [{-1: -1.0, -2: -2.0}] * len(ids))
    with pytest.raises(CertificateError, match="too few of the bare base's log-probabilities"):
        engine.load("a", written["one"])


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


def test_an_error_of_the_front_s_own_ends_its_request_alone(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = opened()
    monkeypatch.setattr(VllmClient, "chunks", lambda self, body: 1 / 0)
    with pytest.raises(LaminaError, match=r"the front of vLLM failed: ZeroDivisionError"):
        engine.generate([ask()])


def _unreachable(*given: Any) -> Any:
    raise Unreachable("gone")


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
