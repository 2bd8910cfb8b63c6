"""Answers of a loaded adapter, as text; and a generator that needs no model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from lamina.adapters.load import Loaded
from lamina.chat.message import Message
from lamina.chat.template import ChatTemplate, build_template
from lamina.engine import generate
from lamina.engine.generator import ADAPTER, Piece, Pieces, Request
from lamina.engine.sampling import Sampling
from lamina.errors import DataError
from tests.support.models_zoo import build_tokenizer


def answer(
    loaded: Loaded, conversations: Sequence[Sequence[Message]], *, batch_size: int = 32, **sampling: Any
) -> list[str]:
    """The adapter's answers to conversations; further options are those of `Sampling`."""
    return generate.answer(generate.build_generator(loaded, batch_size), conversations, Sampling(**sampling))


def stream(loaded: Loaded, conversation: Sequence[Message], **sampling: Any) -> Iterator[str]:
    """The adapter's answer to one conversation as a stream."""
    return generate.stream(generate.build_generator(loaded), conversation, Sampling(**sampling))


def generate_each(
    loaded: Loaded, prompts: Sequence[str], *, system: str | None = None, **sampling: Any
) -> list[str | DataError]:
    """The adapter's answers to prompts, each by itself."""
    return generate.generate_each(generate.build_generator(loaded), prompts, Sampling(**sampling), system=system)


def notes(loaded: Loaded, temperature: float) -> str:
    """What a user is told of answers at a temperature."""
    return " ".join(generate.build_generator(loaded).notes(Sampling(temperature)))


@dataclass
class FakeGenerator:
    """Answers without a model, by a function of the request; what it was asked is in `asked`."""

    write: Callable[[Request], str]
    template: ChatTemplate = field(default_factory=lambda: build_template(build_tokenizer()))
    adapters: Sequence[str] = (ADAPTER,)
    asked: list[Request] = field(default_factory=list)

    def check(self, request: Request) -> None:
        if request.messages and "?!" in request.messages[-1].content:
            raise DataError("it cannot be asked. Fix: ask another.")

    def generate(self, requests: Sequence[Request], progress: Callable[[int], None] = lambda done: None) -> list[Piece]:
        self.asked += requests
        progress(len(requests))
        return [Piece(text, tuple(text.encode()), "stop") for text in map(self.write, requests)]

    def stream(self, request: Request) -> Pieces:
        self.asked.append(request)
        for character in self.write(request):
            yield Piece(character, tuple(character.encode()), None)
        yield Piece("", (), "stop")

    def notes(self, sampling: Sampling) -> list[str]:
        return [f"nothing answers at temperature {sampling.temperature:g}"]
