"""What a server needs of an engine: requests of many clients at once, and adapters that come and go.

`Engine` is one; the front of vLLM's servers is another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from lamina.chat.template import ChatTemplate
from lamina.engine.generator import Generator, Piece, Request
from lamina.engine.sampling import Sampling
from lamina.engine.stats import EngineStats
from lamina.engine.store import AdapterFacts


class Cancellable(Protocol):
    """A request on its way."""

    def cancel(self) -> None:
        """Ends it without another piece; nothing if it is over."""
        ...


class Serving(Generator, Protocol):
    """Answers requests of many threads."""

    @property
    def longest(self) -> int | None:
        """Tokens that a prompt and its answer may have together; None for no limit."""
        ...

    @property
    def digest(self) -> str:
        """Digest of what an answer depends on beside the adapter and the sampling."""
        ...

    @property
    def parts(self) -> Mapping[str, str]:
        """What `digest` is of, by name: so that two answers can be told apart by what differs.

        Those of the base begin with `base`, and those of the template with `template`.
        """
        ...

    @property
    def is_alive(self) -> bool:
        """Whether it answers; one that does not gives every request an error."""
        ...

    def template_of(self, adapter: str | None) -> ChatTemplate:
        """What renders an adapter's conversations and reads what it writes."""
        ...

    def default_sampling(self) -> Sampling:
        """How the model's own generation_config.json draws."""
        ...

    def tokenize(self, request: Request) -> list[int]:
        """The tokens of a request's prompt.

        Raises:
            ConfigError, DataError: As `check` says.
        """
        ...

    def submit(self, request: Request, deliver: Callable[[Piece | BaseException], None]) -> Cancellable:
        """Begins to answer a request; `deliver` is called in a thread of the engine's with each piece or with an error.

        Raises:
            ConfigError, DataError: As `check` says.
        """
        ...

    def load(self, name: str, path: str | Path, *, pin: bool = False) -> AdapterFacts:
        """Loads an adapter under a name, once it is checked.

        Raises:
            AdapterError, BaseMismatchError, CertificateError: It cannot be used.
        """
        ...

    def unload(self, name: str, wait: float | None = None) -> AdapterFacts:
        """Takes an adapter away; what it is answering is finished.

        Raises:
            ConfigError: There is no such adapter.
        """
        ...

    def pin(self, name: str, pinned: bool = True) -> AdapterFacts:
        """Keeps an adapter in memory, or no longer.

        Raises:
            ConfigError: There is no such adapter.
        """
        ...

    def loaded(self) -> list[AdapterFacts]:
        """What is known of each adapter."""
        ...

    def stats(self) -> EngineStats:
        """How the engine is doing now."""
        ...

    def close(self, drain: float = 0.0) -> None:
        """Ends the engine, after `drain` seconds at most in which requests may be finished."""
        ...
