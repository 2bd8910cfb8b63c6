"""The contract of generating: requests in, pieces out, whoever computes them.

Everything that needs a model's answers (evaluation, comparison, chat, probes, the certificate of a merged folder) knows
these classes alone; `transformers_backend.py` is the one implementation.
"""

from __future__ import annotations

from collections import abc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from lamina.chat.message import Message
from lamina.chat.template import ChatTemplate
from lamina.engine.sampling import Sampling
from lamina.errors import ConfigError, Problem

# The name of the one adapter where a generator has one.
ADAPTER = "adapter"

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Request:
    """What is to be answered, by whom, and how. One of the first three says what.

    Attributes:
        messages: A conversation that ends in a user's turn; the generator's template renders it.
        prompt: A rendered prompt: text, special tokens included.
        token_ids: A prompt's tokens.
        adapter: The name of the adapter that answers; None is the bare base.
        sampling: How the answer is drawn.
    """

    messages: Sequence[Message] | None = None
    prompt: str | None = None
    token_ids: Sequence[int] | None = None
    adapter: str | None = None
    sampling: Sampling = field(default_factory=Sampling)

    def __post_init__(self) -> None:
        """
        Raises:
            ConfigError: Not exactly one of messages, prompt and token_ids is given.
        """
        given = [name for name in ("messages", "prompt", "token_ids") if getattr(self, name) is not None]
        if len(given) != 1:
            message = f"{' and '.join(given) or 'nothing'} is given of messages, prompt and token_ids"
            raise ConfigError(Problem("request", message, "give one of them"))


@dataclass(frozen=True)
class Piece:
    """A part of an answer, or a whole one.

    Attributes:
        text: What the model wrote, to the letter, without a token that ends the answer.
        token_ids: Its tokens, with the one that ended the answer. In a stream, text may come later than its tokens.
        finish_reason: Why the answer ends here: at a token that ends it, or because there is room for no more. None
            where more pieces follow.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None


# Pieces of one answer in turn. Closing it ends the generating.
Pieces = abc.Generator[Piece, None, None]


class Generator(Protocol):
    """Answers requests."""

    @property
    def template(self) -> ChatTemplate:
        """Renders conversations, and reads what a model writes."""
        ...

    @property
    def adapters(self) -> Sequence[str]:
        """Names of the adapters that a request may ask for; the bare base is always there."""
        ...

    def check(self, request: Request) -> None:
        """Finds out whether a request can be answered, without answering it.

        Raises:
            ConfigError: There is no adapter of its name.
            DataError: Its prompt cannot be asked; the error says why.
        """
        ...

    def generate(self, requests: Sequence[Request], progress: Callable[[int], None] = ...) -> list[Piece]:
        """Answers requests.

        Args:
            requests: With any adapters and samplings.
            progress: Called with how many are answered.

        Returns:
            A whole answer for each request, in their order.

        Raises:
            ConfigError, DataError: One cannot be answered, as `check` says; nothing is answered.
        """
        ...

    def stream(self, request: Request) -> Pieces:
        """Answers one request, piece by piece as it is generated; the last piece has the finish reason.

        Raises:
            ConfigError, DataError: It cannot be answered, as `check` says.
        """
        ...

    def notes(self, sampling: Sampling) -> list[str]:
        """Sentences on what a user should know of answers that are drawn so."""
        ...
