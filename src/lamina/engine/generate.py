"""Answers as text: those to prompts, those to conversations, and one as a stream, from whatever generator there is."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lamina.adapters.load import Loaded, asked_template, load
from lamina.chat.message import Message
from lamina.chat.template import build_template
from lamina.engine.generator import ADAPTER, Generator, Request
from lamina.engine.local import LocalGenerator
from lamina.engine.prompts import check_system
from lamina.engine.sampling import DEFAULT_MAX_TOKENS, Sampling
from lamina.engine.subject import names_base
from lamina.errors import DataError
from lamina.models.load import load_base
from lamina.progress import Notify


def build_generator(loaded: Loaded, batch_size: int | None = None) -> Generator:
    """What answers for a loaded adapter, under the name `ADAPTER`, and for its bare base.

    Args:
        loaded: Base and adapter.
        batch_size: Requests that are answered at once; by default as many as the cache has room for.
    """
    return LocalGenerator(loaded.model, loaded.template, loaded.injection, batch_size=batch_size)


@dataclass(frozen=True)
class Opened:
    """What answers.

    Attributes:
        generator: Answers requests.
        adapter: The adapter to name in them; None for a base or merged model alone.
        notes: What a user should know.
    """

    generator: Generator
    adapter: str | None
    notes: list[str]


def open_generator(
    source: str | Path,
    *,
    model: str | Path | None = None,
    allow_base_mismatch: bool = False,
    chat: bool | None = None,
    notify: Notify = lambda message: None,
) -> Opened:
    """Loads what a user names: an adapter on its base, or a plain model.

    Args:
        source: A run directory, an adapter folder, or a model: an alias, a base or merged folder, a `.gguf` file or a
            hub id.
        model: The base of an adapter; by default the one that it names.
        allow_base_mismatch: Go on although the adapter's lock does not fit.
        chat: Whether prompts are rendered with the chat template; None for what training did.
        notify: Called before anything that takes a while.

    Raises:
        AdapterError, ModelError, ConfigError: It cannot be loaded.
    """
    if names_base(str(source)):
        base = load_base(str(source), notify=notify)
        template = asked_template(build_template(base.tokenizer), chat)
        return Opened(LocalGenerator(base.model, template), None, [])
    loaded = load(source, model=model, allow_base_mismatch=allow_base_mismatch, chat=chat, notify=notify)
    return Opened(build_generator(loaded), ADAPTER, loaded.notes)


def generate(
    source: str | Path | Loaded | Generator,
    prompts: str | Sequence[str],
    *,
    system: str | None = None,
    max_new_tokens: int = DEFAULT_MAX_TOKENS,
    temperature: float = 0.0,
    seed: int = 0,
    base: bool = False,
) -> list[str]:
    """Answers prompts.

    Args:
        source: A run directory, an adapter folder, a model (an alias, a folder or a hub id), what `load` gave, or a
            generator.
        prompts: One user turn each. One text is one prompt.
        system: A system turn before each.
        max_new_tokens: Longest answer.
        temperature: 0 is greedy.
        seed: For sampling.
        base: Let the bare base answer.

    Returns:
        One answer for each prompt, without its stop token.

    Raises:
        DataError: A prompt cannot be asked; the error says which, and nothing is given.
        ConfigError: The template has no place for the system turn, or an option has no such value.
    """
    prompts = [prompts] if isinstance(prompts, str) else prompts
    sampling = Sampling(temperature, max_new_tokens, seed)
    if isinstance(source, str | Path):
        opened = open_generator(source)
    else:
        opened = Opened(build_generator(source) if isinstance(source, Loaded) else source, ADAPTER, [])
    adapter = None if base else opened.adapter
    answers = generate_each(opened.generator, prompts, sampling, system=system, adapter=adapter)
    for number, text in enumerate(answers, start=1):
        if isinstance(text, DataError):
            raise DataError(f"prompt {number}: {text}")
    return [str(text) for text in answers]


def generate_each(
    generator: Generator,
    prompts: Sequence[str],
    sampling: Sampling,
    *,
    system: str | None = None,
    adapter: str | None = ADAPTER,
) -> list[str | DataError]:
    """As `generate`, but a prompt that cannot be asked gets its error for an answer and keeps no other from one.

    Raises:
        ConfigError: The template has no place for the system turn.
    """
    if system:
        check_system(generator, system)
    turns = [Message("system", system)] if system else []
    results: list[str | DataError] = []
    asked: dict[int, list[Message]] = {}
    for number, prompt in enumerate(prompts):
        conversation = [*turns, Message("user", prompt)]
        try:
            generator.check(Request(messages=conversation, adapter=adapter))
        except DataError as error:
            results.append(error)
        else:
            results.append("")
            asked[number] = conversation
    for number, text in zip(asked, answer(generator, list(asked.values()), sampling, adapter=adapter), strict=True):
        results[number] = text
    return results


def answer(
    generator: Generator,
    conversations: Sequence[Sequence[Message]],
    sampling: Sampling,
    *,
    adapter: str | None = ADAPTER,
    progress: Callable[[int], None] = lambda done: None,
) -> list[str]:
    """Answers conversations that end in a user turn.

    Raises:
        DataError: A conversation cannot be asked; nothing is answered.
    """
    requests = [Request(messages=turns, adapter=adapter, sampling=sampling) for turns in conversations]
    return [generator.template.voice.read(piece.text) for piece in generator.generate(requests, progress)]


def complete(
    generator: Generator,
    prompts: Sequence[str],
    sampling: Sampling,
    *,
    adapter: str | None = ADAPTER,
    progress: Callable[[int], None] = lambda done: None,
) -> list[str]:
    """Goes on from rendered prompts.

    Returns:
        What the model wrote, to the letter, without its stop token.

    Raises:
        DataError: A prompt cannot be asked; nothing is answered.
    """
    requests = [Request(prompt=text, adapter=adapter, sampling=sampling) for text in prompts]
    return [piece.text for piece in generator.generate(requests, progress)]


def stream(
    generator: Generator, conversation: Sequence[Message], sampling: Sampling, *, adapter: str | None = ADAPTER
) -> Iterator[str]:
    """Answers one conversation, piece by piece as it is generated.

    Generating ends with the answer, or with the iterator: one that is closed early leaves nothing running.

    Raises:
        DataError: The conversation cannot be asked.
    """
    request = Request(messages=conversation, adapter=adapter, sampling=sampling)
    with contextlib.closing(generator.stream(request)) as pieces:
        yield from generator.template.voice.stream(piece.text for piece in pieces)
