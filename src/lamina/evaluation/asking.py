"""Asks a subject the rows of a task; what was answered before is taken from its file."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from lamina.chat.message import Message
from lamina.chat.template import ChatTemplate
from lamina.config.tasks import GenerationSettings
from lamina.engine.engine import Engine
from lamina.engine.generator import Generator, Piece, Request
from lamina.engine.sampling import Sampling
from lamina.errors import DataError, LaminaError
from lamina.evaluation.answers import Answer, AnswerFile, answer_key
from lamina.evaluation.remote import RemoteModel
from lamina.evaluation.tasks import TaskRow

# Requests to a generator that gives whole lists back, so that little is lost when it is killed.
_AT_ONCE = 8


@dataclass(frozen=True)
class Shown:
    """An example in a prompt.

    Attributes:
        question: What is asked: all turns before the answer.
        answer: The answer.
    """

    question: tuple[Message, ...]
    answer: str


@dataclass(frozen=True)
class Speaker:
    """What answers, and how it is asked.

    Attributes:
        generator: Answers requests; or a model behind a URL, which renders conversations itself.
        adapter: The adapter's name there; None for the bare base.
        template: Renders conversations; None for a model behind a URL.
        shown: Examples in each prompt.
    """

    generator: Generator | RemoteModel
    adapter: str | None
    template: ChatTemplate | None
    shown: tuple[Shown, ...] = ()


def sampling_of(settings: GenerationSettings, number: int, template: ChatTemplate | None) -> Sampling:
    """How the answer to a row is drawn."""
    draws = settings.temperature > 0
    return Sampling(
        temperature=settings.temperature,
        max_tokens=settings.max_tokens,
        top_p=settings.top_p,
        top_k=settings.top_k,
        stop=tuple(settings.stop),
        seed=(settings.seed + number) % 2**63 if draws else None,
        stop_token_ids=() if template is None else tuple(template.stop_token_ids),
    )


def turns_of(row: TaskRow, shown: Sequence[Shown]) -> tuple[Message, ...]:
    """The conversation that a row asks, with examples before its own turns and after its system turn."""
    system = tuple(message for message in row.messages[:1] if message.role == "system")
    before = [
        turn
        for example in shown
        for turn in (*(m for m in example.question if m.role != "system"), Message("assistant", example.answer))
    ]
    return (*system, *before, *row.messages[len(system) :])


def answer_rows(
    speaker: Speaker,
    rows: Sequence[TaskRow],
    settings: GenerationSettings,
    answers: AnswerFile,
    progress: Callable[[int], None] = lambda done: None,
) -> list[Answer]:
    """Answers rows; an answer is on disk before the next is waited for.

    Raises:
        DataError: A row cannot be asked; the error names it.
        LaminaError: What answers failed; what was answered stays in the file.
    """
    asked = [_request(speaker, row, settings) for row in rows]
    keys = [
        answer_key(_plain(request, row), _values(request.sampling)) for request, row in zip(asked, rows, strict=True)
    ]
    waiting = {key: number for number, key in reversed(list(enumerate(keys))) if answers.get(key) is None}
    done = len(rows) - len(waiting)
    progress(done)
    if waiting:
        numbers = sorted(waiting.values())

        def keep(number: int, answer: Answer) -> None:
            nonlocal done
            answers.add(keys[number], answer)
            done += 1
            progress(done)

        if isinstance(speaker.generator, RemoteModel):
            _ask_far_away(speaker.generator, settings, asked, rows, numbers, keep)
        else:
            generator = speaker.generator
            for number in numbers:
                _check(generator, asked[number], rows[number])
            ask = (
                _submit_all(generator, asked, numbers, rows)
                if isinstance(generator, Engine)
                else _in_lists(generator, asked, numbers)
            )
            for number, piece, seconds in ask:
                keep(number, _answer(speaker, piece, seconds))
    return [_known(answers, key) for key in keys]


def _known(answers: AnswerFile, key: str) -> Answer:
    found = answers.get(key)
    if found is None:
        raise LaminaError(f"{answers.path}: an answer is missing. Fix: run the command again.")
    return found


def _request(speaker: Speaker, row: TaskRow, settings: GenerationSettings) -> Request:
    sampling = sampling_of(settings, row.number, speaker.template)
    turns = turns_of(row, speaker.shown)
    if not turns:
        raise DataError(f"{row.place}: is plain text, which asks nothing. Fix: use the scorer perplexity alone.")
    kwargs = dict(row.template_kwargs) or None
    if speaker.template is None:
        return Request(messages=turns, tools=row.tools, sampling=sampling, adapter=speaker.adapter)
    try:
        prompt = speaker.template.render(turns, row.tools, True, kwargs)
    except DataError as error:
        raise DataError(f"{row.place}: {error}") from None
    return Request(prompt=prompt, sampling=sampling, adapter=speaker.adapter)


def _plain(request: Request, row: TaskRow) -> Any:
    """What is asked, as plain data."""
    if request.prompt is not None:
        return request.prompt
    turns = [
        [turn.role, turn.content, *([call.name, call.arguments] for call in turn.tool_calls)]
        for turn in request.messages or ()
    ]
    return [turns, list(row.tools)]


def _values(sampling: Sampling) -> dict[str, Any]:
    values = asdict(replace(sampling, logit_bias={}))
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def _check(generator: Generator, request: Request, row: TaskRow) -> None:
    try:
        generator.check(request)
    except DataError as error:
        raise DataError(f"{row.place}: {error}") from None


def _answer(speaker: Speaker, piece: Piece, seconds: float) -> Answer:
    text = piece.text if speaker.template is None else speaker.template.voice.read(piece.text)
    prompt = 0 if piece.prompt is None else len(piece.prompt.token_ids)
    return Answer(text, str(piece.finish_reason), prompt, len(piece.token_ids), round(seconds, 4))


def _ask_far_away(
    model: RemoteModel,
    settings: GenerationSettings,
    asked: Sequence[Request],
    rows: Sequence[TaskRow],
    numbers: Sequence[int],
    keep: Callable[[int, Answer], None],
) -> None:
    """Asks a model behind a URL; its answers come one by one."""
    for number in numbers:
        if rows[number].tools:
            raise DataError(f"{rows[number].place}: has tools, which are not sent to a URL. Fix: leave the row out.")
    begun = time.monotonic()
    sent: dict[str, Any] = {"temperature": settings.temperature, "max_tokens": settings.max_tokens}
    if settings.temperature > 0:
        sent |= {"top_p": settings.top_p, "seed": settings.seed}
    if settings.stop:
        sent["stop"] = list(settings.stop)

    def receive(place: int, text: str) -> None:
        keep(numbers[place], Answer(text, "stop", 0, 0, round(time.monotonic() - begun, 4)))

    replace(model, settings=sent).answer([asked[number].messages or () for number in numbers], receive)


_Answers = Iterator[tuple[int, Piece, float]]


def _submit_all(engine: Engine, asked: Sequence[Request], numbers: Sequence[int], rows: Sequence[TaskRow]) -> _Answers:
    """Yields answers of an engine as they are over.

    Raises:
        DataError: A row cannot be answered; the error names it.
    """
    results: queue.SimpleQueue[tuple[int, Piece | BaseException, float]] = queue.SimpleQueue()

    def deliver_to(number: int) -> Callable[[Piece | BaseException], None]:
        return lambda piece: results.put((number, piece, time.monotonic()))

    parts: dict[int, list[Piece]] = {number: [] for number in numbers}
    begun = time.monotonic()
    tickets = [engine.submit(asked[number], deliver_to(number)) for number in numbers]
    left = len(numbers)
    try:
        while left:
            number, piece, at = results.get()
            if isinstance(piece, DataError):
                raise DataError(f"{rows[number].place}: {piece}") from piece
            if isinstance(piece, BaseException):
                raise piece
            parts[number].append(piece)
            if piece.finish_reason is not None:
                left -= 1
                yield number, _joined(parts.pop(number)), at - begun
    finally:
        for ticket in tickets:
            ticket.cancel()


def _in_lists(generator: Generator, asked: Sequence[Request], numbers: Sequence[int]) -> _Answers:
    """Yields answers of any generator, a few at a time."""
    for first in range(0, len(numbers), _AT_ONCE):
        part = numbers[first : first + _AT_ONCE]
        begun = time.monotonic()
        pieces = generator.generate([asked[number] for number in part])
        seconds = time.monotonic() - begun
        for number, piece in zip(part, pieces, strict=True):
            yield number, piece, seconds


def _joined(pieces: Sequence[Piece]) -> Piece:
    last = pieces[-1]
    ids = tuple(token for piece in pieces for token in piece.token_ids)
    return replace(last, text="".join(piece.text for piece in pieces), token_ids=ids, prompt=pieces[0].prompt)
