"""`Answering`: one request on its way: to a server that has its adapter, and to another one if that fails in time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

from lamina.engine.generator import Piece
from lamina.errors import ConfigError, LaminaError, Problem
from lamina.server.vllm.adapters import Entry
from lamina.server.vllm.client import Refused, Unreachable
from lamina.server.vllm.replicas import Replica, Replicas
from lamina.server.vllm.translate import PieceReader

# Seconds without a word in the middle of an answer, after which the server counts as lost.
_SILENCE = 120.0

# Seconds that a request waits for a server to come back while there is none.
_WAIT = 30.0
_STEP = 0.1

# How often a request goes round all servers that live: what one of them fails at may pass.
_ROUNDS = 3


@dataclass(frozen=True)
class Question:
    """What is asked.

    Attributes:
        key: Requests of one key go to one server.
        entry: The adapter; None for the base.
        body: For the server of that name.
        reader: Makes a reader of a new answer.
        whole: Whether the answer is delivered as one piece, so that it can begin anew elsewhere at any time.
    """

    key: str
    entry: Entry | None
    body: Callable[[str], dict[str, Any]]
    reader: Callable[[], PieceReader]
    whole: bool


class Answering:
    """One request on its way.

    Attributes:
        has_begun: Whether a piece was delivered.
    """

    def __init__(
        self, question: Question, replicas: Replicas, deliver: Callable[[Piece | BaseException], None]
    ) -> None:
        self._question, self._replicas, self._deliver = question, replicas, deliver
        self._is_over = False
        self.has_begun = False
        self.cancel_task: Callable[[], object] = lambda: None

    def cancel(self) -> None:
        """Ends it without another piece; nothing if it is over."""
        self._is_over = True
        self.cancel_task()

    def give_up(self, error: BaseException) -> None:
        """Ends it with an error, unless it is over."""
        if not self._is_over:
            self._is_over = True
            self._deliver(error)

    async def run(self) -> None:
        """Answers. Every error ends this request alone."""
        try:
            await self._anywhere()
        except asyncio.CancelledError:
            self.give_up(LaminaError("the engine was closed before it had answered."))
            raise
        except LaminaError as error:
            self.give_up(error)
        except Exception as error:  # of any kind: it must not vanish with the task
            self.give_up(LaminaError(f"the front of vLLM failed: {error!r}."))

    async def _anywhere(self) -> None:
        """Asks one server after the other, until one answers or the answer has begun.

        Raises:
            ConfigError: The servers do not answer this.
            Unreachable: None does.
        """
        failed: list[Replica] = []
        forgetful: list[Replica] = []
        last: LaminaError = Unreachable("no vLLM server answers. Fix: look at their logs.")
        until, rounds = time.monotonic() + _WAIT, 0
        while True:
            replica = await self._take(failed)
            if replica is None:
                rounds += self._replicas.is_any_alive
                if rounds == _ROUNDS or time.monotonic() > until:
                    raise last
                failed.clear()
                await asyncio.sleep(_STEP)
                continue
            try:
                await self._at(replica)
                return
            except Unreachable as error:
                self._replicas.suspect(replica)
                if self.has_begun:
                    raise
                last = error
                failed.append(replica)
            except Refused as error:
                if error.status != 404 or self.has_begun:
                    raise _refused(error) from None
                last = Unreachable(str(error))
                if self._question.entry is None or replica in forgetful:
                    failed.append(replica)
                else:  # it was started anew, and gets the adapter once more
                    forgetful.append(replica)
                    await asyncio.to_thread(self._replicas.forgot, replica, self._question.entry)
            finally:
                self._replicas.done(replica)

    async def _take(self, failed: Sequence[Replica]) -> Replica | None:
        """A server that has the adapter; one more gets it if need be."""
        question, replicas = self._question, self._replicas
        label = None if question.entry is None else question.entry.label
        while True:
            chosen = replicas.choose(question.key, label, failed)
            if chosen is not None or question.entry is None:
                return chosen
            spare = replicas.spare(question.entry, failed)
            if spare is None:
                return None
            try:
                await asyncio.to_thread(replicas.add, spare, question.entry)
            except Unreachable:
                replicas.suspect(spare)
                failed = [*failed, spare]
            except LaminaError:
                continue  # it is refused there from now on

    async def _at(self, replica: Replica) -> None:
        """Asks one server, and delivers what it says.

        Raises:
            Refused, Unreachable: It does not answer, or not to the end.
        """
        entry = self._question.entry
        reader = self._question.reader()
        whole: list[Piece] = []
        asked = self._question.body(replica.served.base if entry is None else entry.label)
        async with aclosing(replica.client.chunks(asked)) as chunks:
            while not reader.is_over:
                chunk = await self._next(chunks, replica)
                piece = None if chunk is None else reader.take(chunk)
                if chunk is None:
                    raise Unreachable(f"vLLM at {replica.client.url} ended an answer without a reason.")
                if piece is None:
                    continue
                if self._question.whole:
                    whole.append(piece)
                else:
                    self._tell(piece)
        if whole:
            self._tell(_joined(whole))

    async def _next(self, chunks: AsyncGenerator[dict[str, Any], None], replica: Replica) -> dict[str, Any] | None:
        """The next chunk; None at the end. What has not begun leaves a server that goes down.

        Raises:
            Unreachable: The server went down, or is silent.
        """
        coming = asyncio.ensure_future(anext(chunks, None))
        down = asyncio.ensure_future(replica.went_down.wait())
        movable = not self.has_begun
        try:
            waiting = {coming, down} if movable else {coming}
            await asyncio.wait(waiting, timeout=None if movable else _SILENCE, return_when=asyncio.FIRST_COMPLETED)
            if coming.done():
                return coming.result()
            raise Unreachable(f"vLLM at {replica.client.url} stopped answering.")
        finally:
            down.cancel()
            if not coming.done():
                coming.cancel()
                await asyncio.gather(coming, return_exceptions=True)

    def _tell(self, piece: Piece) -> None:
        if self._is_over:
            return
        self.has_begun = True
        self._is_over = piece.finish_reason is not None
        self._deliver(piece)


def _joined(pieces: Sequence[Piece]) -> Piece:
    """A whole answer of its parts."""
    return replace(
        pieces[-1],
        text="".join(piece.text for piece in pieces),
        token_ids=tuple(token for piece in pieces for token in piece.token_ids),
        logprobs=tuple(each for piece in pieces for each in piece.logprobs),
        prompt=pieces[0].prompt,
    )


def _refused(error: Refused) -> LaminaError:
    return ConfigError(Problem("request", f"{error}", "change it, or use lamina's own engine (--engine lamina)"))
