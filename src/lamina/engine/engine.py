"""`Engine`: one base and many adapters, answering requests of many threads in one batch.

A thread of the engine's own runs the steps. All else happens in the caller's thread: rendering, reading an adapter,
checking it. The two meet in `_inbox`, between two steps.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from transformers import PreTrainedModel

from lamina.adapters.adapter import read_adapter
from lamina.adapters.load import adapter_folder
from lamina.chat.template import ChatTemplate
from lamina.config.quantization import QuantizationConfig
from lamina.engine.admission import Admission, template_for
from lamina.engine.asking import Asker, build_asker, joined_logits, reading_order
from lamina.engine.core import Core
from lamina.engine.generator import Piece, Reading, Request, TokenLogprobs
from lamina.engine.sequence import Sequence as Asked
from lamina.engine.sequence import Voice
from lamina.engine.shared import ServingEngine, T
from lamina.engine.stats import EngineStats
from lamina.engine.store import AdapterFacts, AdapterStore, Handle
from lamina.engine.thread import Ticket, start
from lamina.engine.voices import Part, build_runners
from lamina.errors import LaminaError
from lamina.models.load import Base, load_base
from lamina.models.vocabulary import embedding_rows
from lamina.progress import Notify


class Engine(ServingEngine):
    """One base and many adapters, answering requests.

        with lamina.Engine("smollm2-135m", {"support": "runs/support"}) as engine:
            pieces = engine.generate([lamina.Request(messages=[...], adapter="support")])

    Attributes:
        base: The base.
        template: Renders conversations.
    """

    def __init__(
        self,
        base: str | Path | Base,
        adapters: Mapping[str, str | Path] | None = None,
        *,
        dtype: str = "auto",
        quantization: QuantizationConfig | None = None,
        template: ChatTemplate | None = None,
        one_template: bool = False,
        cache_bytes: int | None = None,
        adapter_bytes: int | None = None,
        most_running: int | None = None,
        allow_base_mismatch: bool = False,
        use_kernels: bool = True,
        shares_prefixes: bool = True,
        notify: Notify = lambda message: None,
    ) -> None:
        """
        Args:
            base: An alias, a folder, a `.gguf` file or a hub id; or a base that is loaded.
            adapters: Runs or adapter folders by the names that requests call them by.
            dtype: `bfloat16` or `float32` for the base; `auto` as the machine multiplies best.
            quantization: Holds the base in 4 or 8 bits.
            template: Renders conversations for the base; by default that of the first adapter that names one, else the
                model's own. Each adapter has its own, as in its training.
            one_template: Render the adapters' conversations with `template`, too.
            cache_bytes: Memory for keys and values; by default a share of what is free.
            adapter_bytes: Memory for adapters that nobody uses; None for no limit.
            most_running: Requests that are answered at once.
            allow_base_mismatch: Load adapters although their lock names another base.
            use_kernels: Whether to use lamina's kernels where they run the base.
            shares_prefixes: Whether a beginning that was computed before is taken from the cache.
            notify: Called with a sentence before anything that takes a while.

        Raises:
            AdapterError, CertificateError, ConfigError, ModelError: The base or an adapter cannot be used.
        """
        self.base = (
            base if isinstance(base, Base) else load_base(str(base), dtype, notify=notify, quantization=quantization)
        )
        model = self.base.model
        rows = embedding_rows(model)
        self.template = template or template_for(self.base, adapters or {})
        stop = self.template.stop_token_id
        self._runners = build_runners(
            model,
            cache_bytes=cache_bytes,
            most_running=most_running,
            filler=stop if rows is None or stop < rows else 0,
            use_kernels=use_kernels,
        )
        fused = self._runners.fused
        capacity = None if fused is None else fused.blocks.count * fused.block_size
        self._ask: Asker = build_asker(model, self.template, capacity)
        self._one_template = one_template
        self._askers: dict[str | None, Asker] = {}
        self._core = Core(self._runners.all, shares_prefixes)
        self._admission = Admission(self.base, self._runners, allow_base_mismatch)
        self._store = AdapterStore(self._admission.read, adapter_bytes)
        self._inbox: deque[Callable[[], None]] = deque()
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._broken: LaminaError | None = None
        self._breaking = threading.RLock()
        self._thread = start(self, self._wake)
        try:
            for name, path in (adapters or {}).items():
                notify(f"Loading the adapter {name} ...")
                self.load(name, path)
        except BaseException:
            self.close()
            raise

    @property
    def adapters(self) -> list[str]:
        """The names that a request may ask for; the bare base is always there."""
        return self._store.names()

    @property
    def model(self) -> PreTrainedModel:
        """The base."""
        return self.base.model

    @property
    def is_alive(self) -> bool:
        """Whether it answers: it is not closed, and its thread has not ended by an error that nobody foresaw."""
        return self._broken is None and not self._closing.is_set() and self._thread.is_alive()

    @property
    def slow_because(self) -> str | None:
        """Why the base runs by transformers' code instead of the kernels; None where it does not."""
        return self._runners.reason

    @property
    def longest(self) -> int | None:
        """Tokens that a prompt and its answer may have together; None for no limit."""
        return self._ask.room(0)

    @property
    def parts(self) -> dict[str, str]:
        """What an answer depends on beside adapter and sampling, by name."""
        return {
            **self._shared_parts(),
            "base.packed": str(self.base.packed_digest),
            "engine.dtype": str(self.base.dtype),
            "engine.kernels": str(self._runners.fused is not None),
        }

    def tokenize(self, request: Request) -> list[int]:
        """The tokens of a request's prompt.

        Raises:
            ConfigError, DataError: As `check` says.
        """
        with contextlib.closing(_Use(self, request.adapter)) as use:
            return self._asker(request.adapter).tokens(request, use.part.virtual_tokens)

    def read(
        self, readings: Sequence[Reading], progress: Callable[[int], None] = lambda done: None
    ) -> list[tuple[TokenLogprobs, ...]]:
        """As the contract says."""
        results: queue.SimpleQueue[Piece | BaseException] = queue.SimpleQueue()
        begun: list[tuple[Asked, Part]] = []
        try:
            for reading in readings:
                use = _Use(self, reading.adapter)
                voice = Voice(use.digest, use.part.weights, use.part.virtual_tokens, use.close)
                try:
                    begun.append((self._ask.reading(reading, voice, results.put, results.put), use.part))
                except BaseException:
                    use.close()
                    raise
            for number in reading_order(readings):
                sequence, part = begun[number]
                self._tell(partial(self._core.add, sequence, part.runner), sequence)
            self._wait(results, len(readings), progress)
        except BaseException:
            for sequence, _ in begun:
                self._tell(sequence.end)
            raise
        return [tuple(sequence.prompt_logprobs) for sequence, _ in begun]

    def submit(self, request: Request, deliver: Callable[[Piece | BaseException], None]) -> Ticket:
        """Begins to answer a request.

        Args:
            request: What is asked.
            deliver: Called in the engine's thread with each piece, the last of which has a finish reason, or with an
                error, which ends it. It must return at once, and raise nothing.

        Raises:
            ConfigError, DataError: As `check` says.
        """
        return self._begin(request, deliver, whole=False)

    def load(self, name: str, path: str | Path, *, pin: bool = False) -> AdapterFacts:
        """Loads an adapter, checks its lock, replays its probes, and lets it answer under a name.

        If the name is taken, new requests get the new adapter at once, and running ones finish with the old one.

        Raises:
            AdapterError: It is missing, damaged, or does not fit the base.
            BaseMismatchError: It is locked to another base.
            CertificateError: It does not give the logits that it gave at the end of training.
        """
        folder = adapter_folder(path)
        adapter = read_adapter(folder)
        notes = self._admission.check_lock(adapter)
        ready, more = self._admission.prepare(adapter)
        certificate = self._admission.certify(adapter, ready.part, self._logits)
        if adapter.lock is not None and not self._one_template:
            self._askers[name] = replace(self._ask, template=self._admission.template(adapter.lock, adapter))
        else:  # it renders with the engine's own, whatever had its name before
            self._askers.pop(name, None)
        return self._store.add(name, folder, ready, certificate, (*notes, *more), pin)

    def unload(self, name: str, wait: float | None = None) -> AdapterFacts:
        """Takes an adapter away; what it is answering is finished. With `wait`, for that many seconds at most.

        Raises:
            ConfigError: There is no such adapter.
        """
        self._askers.pop(name, None)
        return self._store.remove(name, wait)

    def pin(self, name: str, pinned: bool = True) -> AdapterFacts:
        """Keeps an adapter in memory, or no longer.

        Raises:
            ConfigError: There is no such adapter.
        """
        return self._store.pin(name, pinned)

    def loaded(self) -> list[AdapterFacts]:
        """What is known of each adapter."""
        return self._store.facts()

    def logits(self, ids: Sequence[int], positions: Sequence[int], adapter: str | None = None) -> torch.Tensor:
        """An adapter's logits at `positions` of the sequence `ids`, float32 (positions, vocabulary)."""
        with contextlib.closing(_Use(self, adapter)) as use:
            return self._logits([(ids, positions)], use.part, use.digest)[0]

    def stats(self) -> EngineStats:
        """How the engine is doing now."""
        schedulers = self._core.schedulers()
        fused = self._runners.fused
        return EngineStats(
            running=sum(len(scheduler.running) for scheduler in schedulers),
            waiting=sum(len(scheduler.waiting) for scheduler in schedulers) + len(self._inbox),
            cache_blocks=0 if fused is None else fused.blocks.count,
            used_blocks=0 if fused is None else fused.blocks.used,
            counters=self._core.counters,
        )

    def close(self, drain: float = 0.0) -> None:
        """Ends the engine, after `drain` seconds at most in which requests may be finished."""
        if self._closing.is_set():
            return
        if drain > 0 and self.is_alive:
            done = threading.Event()
            self._tell(lambda: self._when_idle(done))
            done.wait(drain)
        self._closing.set()
        self._wake.set()
        if self._thread is not threading.current_thread():
            self._thread.join(60)

    def template_of(self, adapter: str | None) -> ChatTemplate:
        """What renders an adapter's conversations and reads what it writes: that of its training, else the engine's."""
        return self._asker(adapter).template

    def _asker(self, adapter: str | None) -> Asker:
        """What renders prompts for an adapter, as in its training."""
        return self._askers.get(adapter, self._ask)

    def _when_idle(self, done: threading.Event) -> None:
        if self._core.is_idle:
            done.set()
        else:
            threading.Timer(0.02, lambda: self._tell(lambda: self._when_idle(done))).start()

    def _begin(self, request: Request, deliver: Callable[[Piece | BaseException], None], *, whole: bool) -> Ticket:
        use = _Use(self, request.adapter)
        try:
            voice = Voice(use.digest, use.part.weights, use.part.virtual_tokens, use.close)
            sequence = self._asker(request.adapter).sequence(request, voice, deliver, deliver, streams=not whole)
        except BaseException:
            use.close()
            raise
        runner = use.part.runner
        self._tell(lambda: self._core.add(sequence, runner), sequence)
        return Ticket(partial(self._tell, sequence.end))

    def _logits(
        self, asked: Sequence[tuple[Sequence[int], Sequence[int]]], part: Part, digest: str | None
    ) -> list[torch.Tensor]:
        """Logits at positions of several sequences, which are computed together."""
        results: queue.SimpleQueue[Piece | BaseException] = queue.SimpleQueue()
        voice = Voice(digest, part.weights, part.virtual_tokens)
        sequences = [self._ask.probe(list(ids), list(at), voice, results.put, results.put) for ids, at in asked]
        for sequence in sequences:
            self._tell(partial(self._core.add, sequence, part.runner), sequence)
        self._wait(results, len(sequences))
        return [joined_logits(sequence, list(at)) for sequence, (_, at) in zip(sequences, asked, strict=True)]

    def _wait(
        self,
        results: queue.SimpleQueue[Piece | BaseException],
        count: int,
        progress: Callable[[int], None] = lambda done: None,
    ) -> None:
        """Waits for so many results; the first that is an error is raised."""
        for done in range(1, count + 1):
            result = self._next(results)
            if isinstance(result, BaseException):
                raise result
            progress(done)

    def _next(self, results: queue.SimpleQueue[T]) -> T:
        """The next result; an engine that was closed meanwhile gives none."""
        while True:
            try:
                return results.get(timeout=1.0)
            except queue.Empty:
                if not self._thread.is_alive():
                    raise LaminaError("the engine was closed before it had answered.") from None

    def _tell(self, message: Callable[[], None], sequence: Asked | None = None) -> None:
        """Lets the engine's thread call `message` before its next step."""
        if self._closing.is_set():
            if sequence is not None:
                sequence.give_up(LaminaError("the engine is closed."))
            return
        self._inbox.append(message)
        self._wake.set()
        if self._broken is not None or not self._thread.is_alive():  # nobody will read it
            self._drop_all(self._broken or LaminaError("the engine is closed."))

    def work_once(self) -> bool:
        """For the engine's thread: reads the inbox and computes a step; returns whether there may be more to do."""
        while self._inbox:
            self._inbox.popleft()()
        if self._closing.is_set():
            self._core.drop_all(LaminaError("the engine was closed before it had answered."))
            return False
        return self._core.step()

    def break_down(self, error: BaseException) -> None:
        """For the engine's thread, which ends with an error: all requests get it, those that come later too."""
        reason = f"{type(error).__name__}: {error}"
        self._broken = LaminaError(f"the engine has stopped ({reason}). Fix: start it anew; stderr says where it was.")
        self._drop_all(self._broken)

    def _drop_all(self, error: LaminaError) -> None:
        """Ends what has begun and what waits in the inbox, once there is no thread that would."""
        with self._breaking:
            while self._inbox:
                with contextlib.suppress(Exception):
                    self._inbox.popleft()()
            with contextlib.suppress(Exception):
                self._core.drop_all(error)

    @property
    def is_over(self) -> bool:
        """Whether it is closed, and has been told all that it is told."""
        return self._closing.is_set() and not self._inbox


class _Use:
    """What answers for an adapter, or for the bare base, until it is closed."""

    def __init__(self, engine: Engine, adapter: str | None) -> None:
        self._handle: Handle | None = None if adapter is None else engine._store.acquire(adapter)
        self.part = engine._runners.base() if self._handle is None else self._handle.part
        self.digest = None if self._handle is None else self._handle.digest

    def close(self) -> None:
        if self._handle is not None:
            self._handle.release()
