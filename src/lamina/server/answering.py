"""Answers on their way: from the engine's thread into the event loop, with a time limit, and cancelled as one."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from concurrent.futures import Executor, Future
from typing import Any

from lamina.engine.generator import Piece, Request
from lamina.engine.serving import Cancellable, Serving
from lamina.server.errors import ApiError


class Answering:
    """The answers to several requests, as they are made.

    Attributes:
        began: When the first was asked, on the monotonic clock.
    """

    def __init__(self, engine: Serving, pool: Executor, seconds: float) -> None:
        """
        Args:
            engine: Answers.
            pool: Where requests are submitted, since reading an adapter may take a while.
            seconds: Time for all of them.
        """
        self._engine, self._pool = engine, pool
        self._loop = asyncio.get_running_loop()
        self._pieces: asyncio.Queue[tuple[int, Piece | BaseException]] = asyncio.Queue()
        self._tickets: list[Future[Cancellable]] = []
        self._left: set[int] = set()
        self._over = False
        self._reason: BaseException | None = None
        self.began = time.monotonic()
        self._seconds, self._deadline = seconds, self.began + seconds

    async def start(self, requests: Sequence[Request]) -> None:
        """Submits the requests.

        Raises:
            ConfigError, DataError: One cannot be answered; none is.
        """
        self._left = set(range(len(requests)))
        self._tickets = [
            self._pool.submit(self._engine.submit, request, self._taker(number))
            for number, request in enumerate(requests)
        ]
        try:
            for ticket in self._tickets:
                await asyncio.wrap_future(ticket)
        except asyncio.CancelledError:
            self.cancel()
            if self._reason is not None:
                raise self._reason from None
            raise
        except BaseException:
            self.cancel()
            raise

    async def pieces(self) -> AsyncGenerator[tuple[int, Piece], None]:
        """Pieces with the numbers of their requests, as they come.

        Raises:
            ApiError: There was not enough time, or the server ended.
            Exception: What the engine delivered instead of a piece.
        """
        try:
            while self._left:
                number, piece = await self._next()
                if isinstance(piece, BaseException):
                    raise piece
                if piece.finish_reason is not None:
                    self._left.discard(number)
                yield number, piece
        finally:
            self.cancel()

    def cancel(self, reason: BaseException | None = None) -> None:
        """Ends what is not answered yet. With a reason, whoever waits for a piece gets that."""
        self._over = True
        if reason is not None and self._reason is None:
            self._reason = reason
            self._pieces.put_nowait((-1, reason))
        for ticket in self._tickets:
            if not ticket.cancel():
                ticket.add_done_callback(_cancel)

    async def _next(self) -> tuple[int, Piece | BaseException]:
        try:
            return await asyncio.wait_for(self._pieces.get(), self._deadline - time.monotonic())
        except TimeoutError:
            message = f"the answer took more than {self._seconds:g} seconds. Ask for a shorter one"
            raise ApiError(504, message, code="timeout", headers={"x-should-retry": "false"}) from None

    def _taker(self, number: int) -> Callable[[Piece | BaseException], None]:
        def take(piece: Piece | BaseException) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self._put, number, piece)

        return take

    def _put(self, number: int, piece: Piece | BaseException) -> None:
        if not self._over:
            self._pieces.put_nowait((number, piece))


def _cancel(ticket: Future[Cancellable]) -> None:
    if not ticket.cancelled() and ticket.exception() is None:
        ticket.result().cancel()


class Admission:
    """How many answers are on their way: refuses those that would wait too long, and knows when all are over.

    Attributes:
        waiting: Answers that have not begun.
        running: Requests that are not over.
        draining: Whether no more are taken.
    """

    def __init__(self, most: int) -> None:
        """
        Args:
            most: Answers that may wait to begin.
        """
        self._most = most
        self.waiting = 0
        self.draining = False
        self.running: set[Answering] = set()
        self._reading: set[asyncio.Timeout] = set()
        self._wait = 1.0

    def admit(self, answers: int) -> None:
        """Takes a request for so many answers, which wait from now on.

        Raises:
            ApiError: The queue is full, or the server is ending.
        """
        if self.draining:
            message = "the server is ending. Ask another, or ask again later"
            raise ApiError(503, message, code="draining", headers={"retry-after": "1"})
        if self.waiting and self.waiting + answers > self._most:
            seconds = str(max(1, min(60, round(self._wait))))
            message = f"{self.waiting} answers wait to begin, and at most {self._most} may. Ask again in {seconds} s"
            raise ApiError(429, message, code="queue_full", headers={"retry-after": seconds})
        self.waiting += answers

    def begun(self, answers: int, seconds: float | None = None) -> None:
        """Notes that so many answers wait no more, after `seconds` if they did begin."""
        self.waiting -= answers
        if seconds is not None:
            self._wait += 0.1 * (seconds - self._wait)

    async def idle(self, seconds: float, hurry: asyncio.Event) -> bool:
        """Waits until nothing is running; returns whether that came within the time and before `hurry`."""
        end = time.monotonic() + seconds
        while self.running and not hurry.is_set() and time.monotonic() < end:
            await asyncio.sleep(0.02)
        return not self.running

    @contextlib.contextmanager
    def reading(self, time_left: asyncio.Timeout) -> Iterator[None]:
        """Lets the end of all end a block that waits for a body, too."""
        self._reading.add(time_left)
        try:
            yield
        finally:
            self._reading.discard(time_left)

    def end_all(self) -> None:
        """Ends what is running, and requests whose bodies are still on their way, with an error."""
        for answering in list(self.running):
            answering.cancel(server_ended())
        for time_left in self._reading:
            with contextlib.suppress(RuntimeError):  # it is over by itself
                time_left.reschedule(0)


def server_ended() -> ApiError:
    """The error of what a server no longer answers."""
    return ApiError(503, "the server has ended", code="draining", headers={"retry-after": "1", "connection": "close"})


async def until_gone(receive: Callable[[], Any]) -> None:
    """Returns when the client has gone; the body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass
