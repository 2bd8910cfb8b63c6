"""The contract of generating: requests in, pieces out, whoever computes them.

Everything that needs a model's answers (evaluation, comparison, chat, probes, the certificate of a merged folder, the
server) knows these classes alone. `Engine` and `LocalGenerator` implement it; transformers' `generate` is the oracle
that tests compare them with.
"""

from __future__ import annotations

from collections import abc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from transformers import PreTrainedModel

from lamina.chat.message import Message
from lamina.chat.template import ChatTemplate
from lamina.engine.sampling import Sampling
from lamina.engine.turns import turn_of
from lamina.errors import ConfigError, Problem

# The name of the one adapter where a generator has one.
ADAPTER = "adapter"

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Request:
    """What is to be answered, by whom, and how. One of the first three says what.

    Attributes:
        messages: A conversation that ends in a user's turn; the generator's template renders it. A turn may be given as
            `{"role": ..., "content": ...}` too.
        prompt: A rendered prompt: text, special tokens included.
        token_ids: A prompt's tokens.
        adapter: The name of the adapter that answers; None is the bare base.
        sampling: How the answer is drawn.
        choice: Which of several answers to the same this is; each has draws of its own.
        tools: JSON schemas of functions that the conversation offers to the model.
        template_kwargs: Variables of the template for this conversation.
        salt: Cached prefixes are shared only with requests of the same salt.
    """

    messages: Sequence[Message] | None = None
    prompt: str | None = None
    token_ids: Sequence[int] | None = None
    adapter: str | None = None
    sampling: Sampling = field(default_factory=Sampling)
    choice: int = 0
    tools: Sequence[dict[str, Any]] = ()
    template_kwargs: Mapping[str, Any] | None = None
    salt: str = ""

    def __post_init__(self) -> None:
        """
        Raises:
            ConfigError: Not exactly one of messages, prompt and token_ids is given.
            DataError: A turn is neither a `Message` nor an object with a role and a content.
        """
        given = [name for name in ("messages", "prompt", "token_ids") if getattr(self, name) is not None]
        if len(given) != 1:
            message = f"{' and '.join(given) or 'nothing'} is given of messages, prompt and token_ids"
            raise ConfigError(Problem("request", message, "give one of them"))
        if self.messages is not None and not all(isinstance(turn, Message) for turn in self.messages):
            object.__setattr__(self, "messages", tuple(turn_of(turn) for turn in self.messages))


@dataclass(frozen=True)
class TokenLogprobs:
    """What the model thought of a token, before bias, penalties and temperature.

    Attributes:
        token_id: The token.
        logprob: Its log-probability.
        top: The most probable tokens with theirs, the best first, as many as were asked for.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Reading:
    """A text that is read instead of answered: how likely each of its tokens is after those before it.

    Attributes:
        token_ids: Its tokens; the first has nothing before it.
        start: The first one that is asked about, 1 or more.
        adapter: The name of the adapter that reads; None is the bare base.
    """

    token_ids: Sequence[int]
    start: int = 1
    adapter: str | None = None

    def __post_init__(self) -> None:
        """
        Raises:
            ConfigError: No token is asked about, or the first is, which has nothing before it.
        """
        if not 0 < self.start < len(self.token_ids):
            message = f"{self.start} is not between 1 and the last of {len(self.token_ids)} tokens"
            raise ConfigError(Problem("reading.start", message, "put a token that begins a text before it"))


@dataclass(frozen=True)
class PromptFacts:
    """What became of a prompt.

    Attributes:
        token_ids: Its tokens.
        cached: How many of them were in the cache.
        logprobs: Of each token after the first, if they were asked for.
    """

    token_ids: tuple[int, ...]
    cached: int = 0
    logprobs: tuple[TokenLogprobs, ...] = ()


@dataclass(frozen=True)
class Piece:
    """A part of an answer, or a whole one.

    Attributes:
        text: What the model wrote, to the letter, without a token that ends the answer.
        token_ids: Its tokens, with the one that ended the answer. In a stream, text may come later than its tokens.
        finish_reason: Why the answer ends here: at a token that ends it, or because there is room for no more. None
            where more pieces follow.
        logprobs: Of its tokens, if they were asked for.
        prompt: Of the first piece.
        stopped_by: The string of `Sampling.stop`, or the token, that ended the answer.
        digest: Of the adapter that answers; None for the bare base.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None
    logprobs: tuple[TokenLogprobs, ...] = ()
    prompt: PromptFacts | None = field(default=None, compare=False)
    stopped_by: str | int | None = field(default=None, compare=False)
    digest: str | None = field(default=None, compare=False)


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


class Reader(Generator, Protocol):
    """A generator that can also say how likely given texts are."""

    @property
    def model(self) -> PreTrainedModel:
        """The base."""
        ...

    def read(
        self, readings: Sequence[Reading], progress: Callable[[int], None] = ...
    ) -> list[tuple[TokenLogprobs, ...]]:
        """Reads texts.

        Readings with the same beginning share its computation.

        Args:
            readings: With any adapters.
            progress: Called with how many are read.

        Returns:
            For each reading, in their order, each token from its start on: its log-probability and the most probable
            token in its place.

        Raises:
            ConfigError: There is no adapter of a name.
            DataError: A text is too long, or has a token that the base has no row for; nothing is read.
        """
        ...
