"""What engines that serve have in common: names of what an answer depends on, and waiting for answers."""

from __future__ import annotations

import hashlib
import json
import queue
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping, Sequence
from functools import partial
from typing import Self, TypeVar

from lamina.chat.template import ChatTemplate
from lamina.engine.asking import default_sampling, ignored_settings
from lamina.engine.generator import Piece, Pieces, Request
from lamina.engine.sampling import Sampling
from lamina.engine.serving import Cancellable
from lamina.models.load import Base
from lamina.version import __version__

T = TypeVar("T")


class ServingEngine(ABC):
    """The half of `Serving` that does not depend on who computes.

    Attributes:
        base: The base.
        template: Renders conversations.
    """

    base: Base
    template: ChatTemplate

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    @property
    @abstractmethod
    def parts(self) -> Mapping[str, str]:
        """What an answer depends on besides adapter and sampling, by name."""

    @property
    def digest(self) -> str:
        """SHA-256 of `parts`."""
        return "sha256:" + hashlib.sha256(json.dumps(self.parts, sort_keys=True).encode()).hexdigest()

    def default_sampling(self) -> Sampling:
        """Returns the sampling of the model's own generation_config.json."""
        return default_sampling(self.base.model)

    def notes(self, sampling: Sampling) -> list[str]:
        """As the contract says."""
        return ignored_settings(self.base.model, sampling)

    @property
    def is_alive(self) -> bool:
        """Whether it answers."""
        return True

    def template_of(self, adapter: str | None) -> ChatTemplate:
        """What renders an adapter's conversations and reads what it writes."""
        return self.template

    @abstractmethod
    def tokenize(self, request: Request) -> list[int]:
        """Returns the tokens of a request's prompt.

        Raises:
            ConfigError, DataError: As `check` says.
        """

    def check(self, request: Request) -> None:
        """As the contract says."""
        self.tokenize(request)

    def generate(self, requests: Sequence[Request], progress: Callable[[int], None] = lambda done: None) -> list[Piece]:
        """As the contract says."""
        found: dict[int, Piece] = {}
        for number, piece in self.answers(requests):
            found[number] = piece
            progress(len(found))
        return [found[number] for number in range(len(requests))]

    def answers(self, requests: Sequence[Request]) -> Generator[tuple[int, Piece], None, None]:
        """Answers requests, and yields each answer with the number of its request as soon as it is complete.

        Closing the generator cancels what is left.

        Raises:
            ConfigError, DataError: A request cannot be answered, as `check` says; nothing is answered.
        """
        for request in requests:
            self.check(request)
        results: queue.SimpleQueue[tuple[int, Piece | BaseException]] = queue.SimpleQueue()
        tickets = [
            self._begin(request, partial(put_numbered, results, number), whole=True)
            for number, request in enumerate(requests)
        ]
        try:
            for _ in requests:
                number, result = self._next(results)
                if isinstance(result, BaseException):
                    raise result
                yield number, result
        finally:
            for ticket in tickets:
                ticket.cancel()

    def stream(self, request: Request) -> Pieces:
        """As the contract says."""
        pieces: queue.SimpleQueue[Piece | BaseException] = queue.SimpleQueue()
        ticket = self._begin(request, pieces.put, whole=False)
        try:
            while True:
                piece = self._next(pieces)
                if isinstance(piece, BaseException):
                    raise piece
                yield piece
                if piece.finish_reason is not None:
                    return
        finally:
            ticket.cancel()

    @abstractmethod
    def close(self, drain: float = 0.0) -> None:
        """Ends the engine, after `drain` seconds at most in which requests may be finished."""

    @abstractmethod
    def _begin(self, request: Request, deliver: Callable[[Piece | BaseException], None], *, whole: bool) -> Cancellable:
        """Begins to answer a request: in one piece, or in pieces as they come."""

    def _next(self, results: queue.SimpleQueue[T]) -> T:
        """Waits for what an answer gives next."""
        return results.get()

    def _shared_parts(self) -> dict[str, str]:
        """Returns the parts that every engine has."""
        return {
            "base.tensors": self.base.fingerprint.tensors,
            "base.config": self.base.fingerprint.config,
            "template": self.template.digest,
            "template.tokenizer": self.template.tokenizer_digest,
            "engine.lamina": __version__,
        }


def put_numbered(
    results: queue.SimpleQueue[tuple[int, Piece | BaseException]], number: int, result: Piece | BaseException
) -> None:
    """Delivers a piece of the answer with that number."""
    results.put((number, result))
