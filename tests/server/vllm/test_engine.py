"""`VllmEngine` answers as lamina's own engine does, and its adapters come, go and are replaced while it answers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lamina.chat.message import Message
from lamina.engine.engine import Engine
from lamina.engine.generator import Piece, Request
from lamina.engine.guides import Guide
from lamina.engine.sampling import Sampling
from lamina.engine.serving import Serving
from lamina.errors import ConfigError, DataError, LaminaError
from lamina.server.vllm.engine import VllmEngine
from tests.support.serving import thinking_template
from tests.support.vllm import LONGEST, FakeVllm
from tests.support.waiting import wait_for

ASKED = [Message("user", "red green 1")]
Open = Callable[..., VllmEngine]


def ask(adapter: str | None = None, **sampling: Any) -> Request:
    return Request(messages=ASKED, adapter=adapter, sampling=Sampling(**{"max_tokens": 8, **sampling}))


def test_it_answers_as_lamina_s_engine(opened: Open, written: dict[str, Path], model_folder: Path) -> None:
    engine = opened(written)
    serving: Serving = engine
    assert serving.longest == LONGEST and engine.digest.startswith("sha256:")
    asked = [ask(name, **more) for name in (*written, None) for more in ({}, {"logprobs": 2}, {"prompt_logprobs": 1})]
    asked.append(ask("one", logit_bias={70: 50.0}, stop=("CCC",)))
    with Engine(model_folder, written, dtype="float32") as own:
        expected, found = own.generate(asked), engine.generate(asked)
        for mine, theirs in zip(expected, found, strict=True):
            assert (mine.text, mine.token_ids, mine.finish_reason) == (
                theirs.text,
                theirs.token_ids,
                theirs.finish_reason,
            )
            assert (mine.stopped_by, mine.digest) == (theirs.stopped_by, theirs.digest)
            assert mine.prompt is not None and theirs.prompt is not None
            assert mine.prompt.token_ids == theirs.prompt.token_ids
            for ours, given in (
                (mine.logprobs, theirs.logprobs),
                (mine.prompt.logprobs, theirs.prompt.logprobs),
            ):
                assert [each.token_id for each in ours] == [each.token_id for each in given]
                assert [len(each.top) for each in ours] == [len(each.top) for each in given]
                assert all(abs(a.logprob - b.logprob) < 1e-4 for a, b in zip(ours, given, strict=True))
        assert engine.default_sampling() == own.default_sampling()
        assert engine.notes(Sampling()) == own.notes(Sampling())
        assert engine.tokenize(ask()) == own.tokenize(ask())
        assert engine.parts["base.tensors"] == own.base.fingerprint.tensors
        assert engine.parts["template"] == own.template.digest and engine.parts["engine.vllm"] == "0.32.0"
    assert len({piece.text for piece in found}) > 2
    certificates = [facts.certificate for facts in engine.loaded()]
    assert all(certificate is not None and certificate.passed for certificate in certificates)


def test_an_adapter_is_asked_by_its_own_template(opened: Open, written: dict[str, Path]) -> None:
    engine = opened(written)
    before = engine.tokenize(ask("one"))
    engine._table.find("one").template = thinking_template()
    asked = Request(messages=ASKED, adapter="one", template_kwargs={"enable_thinking": False})
    assert "<think>" in engine.template.tokenizer.decode(engine.tokenize(asked))
    assert engine.tokenize(ask("two")) == engine.tokenize(ask()) == before
    assert engine.template_of("one").switch and not engine.template_of("two").switch


def test_a_stream_is_the_answer(opened: Open, written: dict[str, Path]) -> None:
    engine = opened(written)
    (whole,) = engine.generate([ask("one")])
    pieces = list(engine.stream(ask("one")))
    assert "".join(piece.text for piece in pieces) == whole.text and len(pieces) > 1
    assert pieces[0].prompt is not None and not any(piece.prompt for piece in pieces[1:])


def test_cancelled_requests_say_nothing_more(opened: Open, fakes: list[FakeVllm]) -> None:
    engine = opened()
    for fake in fakes:
        fake.pause = 0.02
    got: list[Any] = []
    ticket = engine.submit(ask(max_tokens=100, ignore_stop_tokens=True), got.append)
    wait_for(lambda: len(got) > 2)
    assert engine.stats().running == 1 and engine.stats().waiting == 0
    ticket.cancel()
    wait_for(lambda: engine.stats().running == 0)
    count = len(got)
    time.sleep(0.1)
    assert len(got) == count and all(isinstance(piece, Piece) for piece in got)
    ticket.cancel()
    closing = engine.stream(ask(max_tokens=100, ignore_stop_tokens=True))
    next(closing)
    closing.close()
    wait_for(lambda: engine.stats().running == 0)
    assert engine.stats().counters.prompt_tokens > 0 and engine.stats().counters.answer_tokens > count


def test_a_name_moves_while_requests_run(opened: Open, written: dict[str, Path], fakes: list[FakeVllm]) -> None:
    engine = opened({"a": written["one"]})
    (before,) = engine.generate([ask("a", max_tokens=30, ignore_stop_tokens=True)])
    for fake in fakes:
        fake.pause = 0.02
    pieces = engine.stream(ask("a", max_tokens=30, ignore_stop_tokens=True))
    text = next(pieces).text
    engine.load("a", written["two"])
    (after,) = engine.generate([ask("a")])
    text += "".join(piece.text for piece in pieces)
    assert text == before.text and after.digest != before.digest
    wait_for(lambda: all(len(fake.adapters) == 1 for fake in fakes))  # the old one left with its last request
    (facts,) = engine.loaded()
    assert facts.digest == after.digest and facts.in_memory and facts.nbytes > 0 and facts.method == "lora"
    gone = engine.unload("a", wait=5.0)
    assert gone.name == "a" and engine.adapters == []
    wait_for(lambda: not any(fake.adapters for fake in fakes))
    assert all(len(set(fake.loads)) == len(fake.loads) for fake in fakes)


def test_unloading_waits_for_its_requests(opened: Open, written: dict[str, Path], fakes: list[FakeVllm]) -> None:
    engine = opened({"a": written["one"]})
    for fake in fakes:
        fake.pause = 0.02
    got: list[Any] = []
    engine.submit(ask("a", max_tokens=20, ignore_stop_tokens=True), got.append)
    wait_for(lambda: bool(got))
    assert engine.unload("a").requests == 1
    with pytest.raises(ConfigError, match="'a' is not an adapter"):
        engine.check(ask("a"))
    wait_for(lambda: got[-1].finish_reason is not None)
    assert sum(len(piece.token_ids) for piece in got) == 20


def test_what_cannot_be_asked(opened: Open, written: dict[str, Path]) -> None:
    engine = opened(written)
    for request, error, part in (
        (ask("onee"), ConfigError, "Did you mean 'one'"),
        (ask(temperature=3.0), ConfigError, "sampling.temperature: 3.0 is not 0, or between 0.01 and 2"),
        (ask(presence_penalty=3.0), ConfigError, "sampling.presence_penalty"),
        (ask(logit_bias={3: 200.0}), ConfigError, "the bias of token 3 is 200.0"),
        (Request(token_ids=[3] * LONGEST), DataError, f"positions for {LONGEST}"),
        (Request(token_ids=[100_000]), DataError, "rows"),
    ):
        with pytest.raises(error, match=part):
            engine.submit(request, print)
        with pytest.raises(error, match=part):
            engine.generate([request])
    with pytest.raises(ConfigError, match="regex is not one"):
        engine.submit(ask(guide=Guide("regex", "(")), print)
    with pytest.raises(ConfigError, match="pin: vLLM's servers"):
        engine.pin("one")
    with pytest.raises(ConfigError, match="pin: vLLM's servers"):
        engine.load("three", written["one"], pin=True)
    assert engine.pin("one", False).name == "one"
    assert engine.slow_because is None and engine.stats().running == 0


def test_what_a_server_refuses_is_said_to_the_one_who_asked(opened: Open, fakes: list[FakeVllm]) -> None:
    engine = opened()
    for fake in fakes:
        fake.vocabulary = 5  # so that every prompt is refused
    with pytest.raises(ConfigError, match=r"refused \(400\): token ids are out of the vocabulary"):
        engine.generate([ask()])
    with pytest.raises(ConfigError, match="refused"):
        list(engine.stream(ask()))


def test_closing_drains_and_unloads(opened: Open, written: dict[str, Path], fakes: list[FakeVllm]) -> None:
    engine = opened(written)
    for fake in fakes:
        fake.pause = 0.02
    done: list[Any] = []
    engine.submit(ask("one", max_tokens=10, ignore_stop_tokens=True), done.append)
    closer = threading.Thread(target=lambda: engine.close(drain=10.0))
    closer.start()
    closer.join(15)
    assert done[-1].finish_reason == "length" and not any(fake.adapters for fake in fakes)
    with pytest.raises(LaminaError, match="the engine is closed"):
        engine.submit(ask(), print)
    engine.close()


def test_closing_at_once_ends_what_runs_with_an_error(opened: Open, fakes: list[FakeVllm]) -> None:
    engine = opened()
    for fake in fakes:
        fake.pause = 0.05
    got: list[Any] = []
    engine.submit(ask(max_tokens=150, ignore_stop_tokens=True), got.append)
    wait_for(lambda: bool(got))
    engine.close()
    assert isinstance(got[-1], LaminaError) and "closed" in str(got[-1])


def test_a_guided_answer_may_end_with_the_tokenizer_s_end(opened: Open, fakes: list[FakeVllm]) -> None:
    engine = opened()
    engine.generate([ask(guide=Guide("choice", '["a", "b"]'), ignore_stop_tokens=True)])
    (body,) = [body for fake in fakes for body in fake.asked]
    assert body["structured_outputs"] == {"choice": ["a", "b"]}
    assert body["stop_token_ids"] == [engine.template.tokenizer.eos_token_id]
