"""What goes wrong for one request ends that request alone, and nobody waits for an engine that has stopped."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lamina.engine import core, sampler
from lamina.engine.engine import Engine
from lamina.engine.generator import Piece, Request
from lamina.engine.local import LocalGenerator
from lamina.engine.sampling import Sampling
from lamina.engine.scheduler import Scheduler
from lamina.engine.transformers_runner import TransformersRunner
from lamina.errors import LaminaError
from tests.support.answers import build_template
from tests.support.models_zoo import build_model, build_tokenizer
from tests.support.waiting import wait_for

BAD = [77, 77, 77]


@pytest.fixture
def engine(model_folder: Path) -> Iterator[Engine]:
    with Engine(model_folder, dtype="float32") as engine:
        yield engine


def ask(ids: list[int], **sampling: Any) -> Request:
    return Request(token_ids=ids, sampling=Sampling(**{"max_tokens": 12, "ignore_stop_tokens": True, **sampling}))


class Answers:
    """Requests that are submitted in one step, and what they got."""

    def __init__(self, engine: Engine, requests: list[Request]) -> None:
        self._queues: list[queue.Queue[Piece | BaseException]] = [queue.Queue() for _ in requests]
        ready = threading.Event()
        engine._tell(lambda: (ready.wait(30), None)[1])
        for request, own in zip(requests, self._queues, strict=True):
            engine.submit(request, own.put)
        ready.set()

    def first(self) -> None:
        """Waits until each has begun."""
        for own in self._queues:
            wait_for(lambda own=own: not own.empty())

    def all(self) -> list[tuple[int, ...] | BaseException]:
        """The tokens of each answer, or its error."""
        return [self._whole(own) for own in self._queues]

    def _whole(self, own: queue.Queue[Piece | BaseException]) -> tuple[int, ...] | BaseException:
        tokens: list[int] = []
        while True:
            piece = own.get(timeout=60)
            if isinstance(piece, BaseException):
                return piece
            tokens += piece.token_ids
            if piece.finish_reason is not None:
                return tuple(tokens)


def broken_for(tokens: list[int], function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of sequences first, which fails where one of them has these tokens in its prompt."""

    def broken(sequences: Any, *rest: Any) -> Any:
        if any(each.tokens[: len(tokens)] == tokens for each in sequences):
            raise OverflowError("too large")
        return function(sequences, *rest)

    return broken


def test_an_error_while_tokens_are_chosen_ends_its_request_alone(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = [
        ask([5, 6], logit_bias={9: 2.0}, repetition_penalty=1.3),
        ask([7, 8, 9], temperature=1.0, seed=1, logprobs=1),
    ]
    expected = Answers(engine, good).all()
    monkeypatch.setattr(sampler, "_masks", broken_for(BAD, sampler._masks))
    found = Answers(engine, [good[0], ask(BAD, logit_bias={9: 2.0}), good[1]]).all()
    assert [found[0], found[2]] == expected
    assert isinstance(found[1], OverflowError)
    assert engine.is_alive


def test_an_error_in_what_is_told_of_a_prompt_ends_its_request_alone(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    note = core._note_prompt

    def broken(chunk: Any, logits: torch.Tensor) -> None:
        if chunk.sequence.tokens[:3] == BAD:
            raise RuntimeError("no")
        note(chunk, logits)

    (expected,) = Answers(engine, [ask([5, 6], prompt_logprobs=1)]).all()
    monkeypatch.setattr(core, "_note_prompt", broken)
    found = Answers(engine, [ask([5, 6], prompt_logprobs=1), ask(BAD, prompt_logprobs=1)]).all()
    assert found[0] == expected
    assert isinstance(found[1], RuntimeError)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_engine_whose_thread_ends_says_so_to_all_who_wait_and_to_all_who_come(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert engine.is_alive
    waiting = Answers(engine, [ask([5, 6], max_tokens=4000)])
    waiting.first()

    def broken(self: Scheduler) -> Any:
        raise KeyError("what nobody foresaw")

    monkeypatch.setattr(Scheduler, "plan", broken)
    (found,) = waiting.all()
    assert isinstance(found, LaminaError) and "the engine has stopped (KeyError" in str(found)
    assert not engine.is_alive
    later: list[Piece | BaseException] = []
    engine.submit(ask([5, 6]), later.append)
    assert [str(each) for each in later] == [str(found)]
    with pytest.raises(LaminaError, match="has stopped"):
        engine.generate([ask([5])])
    with pytest.raises(LaminaError, match="has stopped"):
        next(engine.stream(ask([5])))
    with pytest.raises(LaminaError, match="has stopped"):
        engine.logits([5], [0])
    engine.close(drain=60)  # and does not wait for what will not come


def test_an_engine_that_is_closed_is_not_alive(model_folder: Path) -> None:
    engine = Engine(model_folder, dtype="float32")
    engine.close()
    assert not engine.is_alive


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("when", ["first", "beside"])
def test_a_prompt_that_cannot_be_run_leaves_other_prompts_and_answers_as_they_are(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch, count: int, when: str
) -> None:
    first = TransformersRunner._first

    def broken(self: TransformersRunner, chunks: list[Any]) -> Any:
        if any(chunk.sequence.tokens[:3] == BAD for chunk in chunks):
            raise torch.OutOfMemoryError("as on a GPU whose memory is full")
        return first(self, chunks)

    requests = [ask([5 + number, 6], max_tokens=25) for number in range(count)]
    with Engine(model_folder, dtype="float32", use_kernels=False) as engine:
        expected = Answers(engine, requests).all()
        monkeypatch.setattr(TransformersRunner, "_first", broken)
        if when == "first":
            found = Answers(engine, [ask(BAD), *requests]).all()
            bad, found = found[0], found[1:]
        else:
            answers = Answers(engine, requests)
            answers.first()
            bad, beside = Answers(engine, [ask(BAD), ask([9, 9, 9])]).all()
            found = answers.all()
            assert isinstance(beside, tuple) and len(beside) == 12
    assert found == expected
    assert isinstance(bad, torch.OutOfMemoryError)


def test_a_step_that_fails_halfway_is_computed_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = LocalGenerator(
        build_model("llama", vocab_size=259), build_template(build_tokenizer()), use_kernels=False
    )
    requests = [ask(ids) for ids in ([5, 9, 17], [33, 4], [11, 12, 13, 14])]
    expected = generator.generate(requests)
    step, calls = TransformersRunner._next, []

    def broken(self: TransformersRunner, group: Any) -> Any:
        found = step(self, group)
        calls.append(len(found))
        if len(calls) in (2, 3, 7):
            raise torch.OutOfMemoryError("after the cache took the token")
        return found

    monkeypatch.setattr(TransformersRunner, "_next", broken)
    assert [piece.token_ids for piece in generator.generate(requests)] == [piece.token_ids for piece in expected]
    assert len(calls) >= 7
