"""lamina's own engine, in process, as `lamina serve` runs it."""

from __future__ import annotations

import contextlib
import queue
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from lamina.bench.serving.job import AdapterFacts, Job
from lamina.bench.serving.load import Event, Target
from lamina.bench.serving.traffic import ALIKE, Ask
from lamina.version import __version__

ABOUT = "lamina's engine: continuous batching, any adapters in one batch"

# Bytes of a number of an adapter in memory.
_ADAPTER_NUMBER = 4


def takes(adapter: AdapterFacts) -> bool:
    """Every method."""
    return True


def refuses(job: Job) -> str | None:
    """It runs everywhere."""
    return None


def interpreter() -> str | None:
    """This one."""
    return None


@contextlib.contextmanager
def open(job: Job) -> Iterator[tuple[Target, dict[str, Any]]]:
    """Opens an engine with the job's adapters; of those on disk, it keeps in memory about as many as a batch mixes."""
    from lamina.engine.engine import Engine

    budget = None
    if job.on_disk:
        size = _ADAPTER_NUMBER * sum(adapter.parameters for adapter in job.adapters)
        budget = max(1, size * ALIKE // len(job.adapters))
    adapters = {adapter.name: adapter.path for adapter in job.adapters}
    with Engine(job.model, adapters, dtype=job.dtype, adapter_bytes=budget) as engine:
        alone = {facts.name: facts.alone_because for facts in engine.loaded() if facts.alone_because}
        settings: dict[str, Any] = {"lamina": __version__, "slow_because": engine.slow_because, "alone": alone}
        # Threads of their own, as a server's: an adapter that is read from disk keeps no other request waiting.
        with ThreadPoolExecutor(4) as pool:
            yield _Target(engine.submit, pool if job.on_disk else None, job.max_new_tokens), settings


class _Target:
    def __init__(self, submit: Callable[..., Any], pool: ThreadPoolExecutor | None, tokens: int) -> None:
        from lamina.engine.sampling import Sampling

        self._submit, self._pool = submit, pool
        self._sampling = Sampling(max_tokens=tokens, ignore_stop_tokens=True)
        self._events: queue.SimpleQueue[Event | BaseException] = queue.SimpleQueue()

    def ask(self, ask: Ask) -> None:
        if self._pool is None:
            self._ask(ask)
        else:
            self._pool.submit(self._ask, ask).add_done_callback(self._note_failure)

    def events(self, patience: float) -> list[Event]:
        found: list[Event] = []
        try:
            waiting = self._events.get(timeout=patience) if patience > 0 else self._events.get_nowait()
            while True:
                if isinstance(waiting, BaseException):
                    raise waiting
                found.append(waiting)
                waiting = self._events.get_nowait()
        except queue.Empty:
            return found

    def _ask(self, ask: Ask) -> None:
        from lamina.engine.generator import Piece, Request

        def deliver(piece: Piece | BaseException) -> None:
            if isinstance(piece, BaseException):
                self._events.put(piece)
            else:
                done = piece.finish_reason is not None
                self._events.put(Event(ask.number, time.perf_counter(), len(piece.token_ids), done))

        self._submit(Request(token_ids=ask.token_ids, adapter=ask.adapter, sampling=self._sampling), deliver)

    def _note_failure(self, future: Future[None]) -> None:
        error = future.exception()
        if error is not None:
            self._events.put(error)
