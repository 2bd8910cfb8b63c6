"""`Service`: what every route of one server uses."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from lamina.chat.template import ChatTemplate
from lamina.engine.sampling import Sampling
from lamina.engine.serving import Serving
from lamina.errors import ConfigError, StorageError
from lamina.server.answering import Admission
from lamina.server.auth import Keys
from lamina.server.errors import as_api_error
from lamina.server.follow import Follower
from lamina.server.logprobs import TokenTexts
from lamina.server.logs import EventLog, Lines
from lamina.server.metrics import Metrics
from lamina.server.routing import Router
from lamina.server.settings import LimitSettings, ServeSettings

T = TypeVar("T")

# Threads in which requests are rendered, tokenized and submitted; and one in which adapters are loaded.
_THREADS = 4


@dataclass
class Service:
    """What every route uses.

    Attributes:
        engine: Answers.
        settings: Of the server.
        router: Names.
        keys: Who may ask.
        log: Events.
        root: What the base was read from, as clients are told.
        requests: Where prompts and answers are logged; None for nowhere.
        shadows: Where answers of shadows go, by file.
        created: When the server began.
        defaults: How answers are drawn of requests that do not say.
        digest: The engine's.
        tokens: How many token ids there are.
        follower: Follows aliases of a registry; None if there are none.
    """

    engine: Serving
    settings: ServeSettings
    router: Router
    keys: Keys
    log: EventLog
    root: str
    requests: Lines | None = None
    shadows: dict[str, Lines] = field(default_factory=dict)
    created: int = 0
    tasks: set[asyncio.Task[Any]] = field(default_factory=set)
    follower: Follower | None = None

    def __post_init__(self) -> None:
        self.defaults: Sampling = self.engine.default_sampling()
        self.digest = self.engine.digest
        self.texts = TokenTexts(self.engine.template.tokenizer)
        self.tokens = len(self.engine.template.tokenizer)
        self.admission = Admission(self.settings.limits.queue)
        self.metrics = Metrics(self.engine.stats, lambda: self.admission.waiting)
        self.pool = ThreadPoolExecutor(_THREADS, "lamina-server")
        self.admin_pool = ThreadPoolExecutor(1, "lamina-admin")

    @property
    def limits(self) -> LimitSettings:
        """Bounds of requests."""
        return self.settings.limits

    @property
    def room(self) -> int | None:
        """Tokens that a prompt and its answer may have together; None for no limit."""
        found = [limit for limit in (self.engine.longest, self.limits.context) if limit is not None]
        return min(found) if found else None

    def template(self, adapter: str | None) -> ChatTemplate:
        """Returns the template that renders an adapter's conversations and reads its answers, as in its training.

        Args:
            adapter: Its name; None for the base.

        Raises:
            ApiError: It has been taken away meanwhile.
        """
        try:
            return self.engine.template_of(adapter)
        except ConfigError as error:
            raise as_api_error(error) from None

    async def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """Calls a function that takes a while in a thread."""
        return await asyncio.get_running_loop().run_in_executor(self.pool, function, *arguments)

    async def administer(self, function: Callable[[], T]) -> T:
        """Calls a function that changes which adapters there are, one after the other."""
        return await asyncio.get_running_loop().run_in_executor(self.admin_pool, function)

    def follow(self, follower: Follower) -> None:
        """Lets a follower change adapters from now on, one change after the other with those that clients ask for."""
        self.follower = follower
        load = self.engine.load
        follower.start(lambda name, path: self.admin_pool.submit(load, name, path), self.log, self.metrics.alias)

    def write(self, lines: Lines, value: dict[str, Any]) -> None:
        """Adds a line to a file, in a thread; that it cannot be written is an event, and no error of a request."""

        def add() -> None:
            try:
                lines.add(value)
            except StorageError as error:
                self.log.write("write_failed", file=str(lines.path), error=str(error))

        self.pool.submit(add)

    def close(self) -> None:
        """Ends threads and closes files; what was to be written is."""
        if self.follower is not None:
            self.follower.stop()
        self.admin_pool.shutdown(wait=True, cancel_futures=True)
        self.pool.shutdown(wait=True)
        for lines in (*self.shadows.values(), *([self.requests] if self.requests else [])):
            lines.close()
