"""`VllmEngine`: the base and the adapters of vLLM's servers, behind the protocol that the front serves from.

Rendering, checks and names are lamina's and happen here; vLLM computes. Answers stream in an event loop of their own;
what loads adapters blocks the thread that asks for it.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lamina.adapters.adapter import Adapter, read_adapter
from lamina.adapters.load import adapter_folder, template_of
from lamina.adapters.lock import check_lock
from lamina.chat.template import ChatTemplate
from lamina.engine.asking import build_asker
from lamina.engine.core import Counters
from lamina.engine.generator import Piece, Request
from lamina.engine.shared import ServingEngine
from lamina.engine.stats import EngineStats
from lamina.engine.store import AdapterFacts
from lamina.errors import ConfigError, LaminaError, Problem
from lamina.models.load import Base
from lamina.progress import Notify
from lamina.server.vllm.adapters import AdapterTable, Entry
from lamina.server.vllm.answering import Answering, Question
from lamina.server.vllm.certify import Sealed, has_effect
from lamina.server.vllm.limits import check_limits
from lamina.server.vllm.loop import Loop
from lamina.server.vllm.process import stop_all
from lamina.server.vllm.replicas import Replica, Replicas
from lamina.server.vllm.servers import Servers
from lamina.server.vllm.staging import Staging, tensor_bytes
from lamina.server.vllm.translate import PieceReader, body, check_sampling

# Tokens at the beginning of a prompt that decide which server answers for the bare base.
_PREFIX = 64


@dataclass
class _Running:
    """What is on its way."""

    answers: set[Answering] = field(default_factory=set)
    counters: Counters = field(default_factory=Counters)
    changed: threading.Condition = field(default_factory=threading.Condition)


class VllmEngine(ServingEngine):
    """Answers requests of many threads by vLLM's servers.

    Attributes:
        base: The base, without its weights.
        template: Renders conversations.
        longest: Tokens that a prompt and its answer may have together.
    """

    def __init__(
        self, base: Base, template: ChatTemplate, servers: Servers, notify: Notify = lambda message: None
    ) -> None:
        """
        Args:
            base: As `read_base` gives it.
            template: Renders conversations.
            servers: Which servers; all of them must answer.
            notify: Called with sentences when a server goes or comes.

        Raises:
            LaminaError: A server does not answer, or is no vLLM.
        """
        self.base, self.template = base, template
        self._servers = servers
        has = [client.served() for client in servers.clients]
        self.version = ", ".join(sorted({client.version() for client in servers.clients}))
        self.longest: int = min(served.longest for served in has)
        self._ask = build_asker(base.model, template, self.longest)
        self._staging = Staging(servers.adapter_folder)
        self._table = AdapterTable(self._let_go)
        self._running = _Running()
        self._is_closed = False
        self._control = ThreadPoolExecutor(1, "lamina-vllm-control")
        self._loop = Loop()
        replicas = [Replica(client, served) for client, served in zip(servers.clients, has, strict=True)]
        copies = min(servers.copies, len(replicas))
        self._replicas = Replicas(replicas, copies, servers.dtype, self._table.entries, self._loop.soon, notify)
        for replica in replicas:
            self._loop.begin(self._replicas.watch(replica, servers.check_seconds))

    @property
    def adapters(self) -> list[str]:
        """The names that a request may ask for; the bare base is always there."""
        return self._table.names()

    @property
    def slow_because(self) -> str | None:
        """Always None: vLLM runs the base."""
        return None

    @property
    def parts(self) -> dict[str, str]:
        """What an answer depends on besides adapter and sampling, by name."""
        return {**self._shared_parts(), "engine.vllm": self.version, "engine.dtype": self._servers.dtype}

    def tokenize(self, request: Request) -> list[int]:
        """Returns the tokens of a request's prompt, if vLLM can draw as the request says.

        Raises:
            ConfigError, DataError: As `check` says.
        """
        template = self.template_of(request.adapter)
        check_sampling(request.sampling)
        return replace(self._ask, template=template).tokens(request, 0)

    def template_of(self, adapter: str | None) -> ChatTemplate:
        """Returns what renders an adapter's conversations and reads what it writes, as in its training.

        Raises:
            ConfigError: There is no such adapter.
        """
        return self.template if adapter is None else self._table.find(adapter).template or self.template

    def submit(self, request: Request, deliver: Callable[[Piece | BaseException], None]) -> Answering:
        """Begins to answer a request.

        Args:
            request: What is asked.
            deliver: Called in the loop's thread with each piece, the last of which has a finish reason, or with an
                error, which ends it. It must return at once, and raise nothing.

        Raises:
            ConfigError, DataError: As `check` says; or what the answer must be cannot be compiled.
        """
        return self._begin(request, deliver, whole=False)

    def load(self, name: str, path: str | Path, *, pin: bool = False) -> AdapterFacts:
        """Checks an adapter, loads it to the servers that get it, has each of them certified, and gives it its name.

        If the name is taken, new requests get the new adapter at once, and running ones finish with the old one.

        Raises:
            AdapterError: It is missing, damaged, or not served by vLLM.
            BaseMismatchError: It is locked to another base.
            CertificateError: A server does not give the logits that it gave at the end of training; none has it then.
            LaminaError: No server answers.
        """
        self._check_open()
        if pin:
            raise _no_pins()
        adapter = read_adapter(adapter_folder(path))
        template = None if adapter.lock is None else template_of(adapter, self.base)
        notes = self._check_lock(adapter, template)
        check_limits(adapter, self._servers.most_rank)
        entry = Entry(
            name,
            f"{name}@{_short(adapter.digest)}-{secrets.token_hex(4)}",
            self._seal(adapter),
            notes,
            template=template,
        )
        try:
            entry.certificate = self._replicas.place(entry)
        except BaseException:
            self._staging.drop(entry.sealed.copy)
            raise
        self._table.add(entry)
        return self._facts(entry)

    def unload(self, name: str, wait: float | None = None) -> AdapterFacts:
        """Takes an adapter away; what it is answering is finished. With `wait`, for that many seconds at most.

        Raises:
            ConfigError: There is no such adapter.
        """
        return self._facts(self._table.remove(name, wait))

    def pin(self, name: str, pinned: bool = True) -> AdapterFacts:
        """Refuses to pin, which vLLM's servers do not offer; that an adapter need not stay is always so.

        Raises:
            ConfigError: There is no such adapter, or it is to be pinned.
        """
        entry = self._table.find(name)
        if pinned:
            raise _no_pins()
        return self._facts(entry)

    def loaded(self) -> list[AdapterFacts]:
        """What is known of each adapter."""
        return [self._facts(entry) for entry in self._table.entries()]

    def stats(self) -> EngineStats:
        """How the engine is doing now. The servers' caches are theirs."""
        with self._running.changed:
            answers = list(self._running.answers)
        running = sum(answer.has_begun for answer in answers)
        return EngineStats(running, len(answers) - running, 0, 0, replace(self._running.counters))

    @property
    def is_alive(self) -> bool:
        """Whether any replica answers."""
        return self._replicas.is_any_alive

    def close(self, drain: float = 0.0) -> None:
        """Ends the engine, after `drain` seconds at most in which requests may be finished."""
        if self._is_closed:
            return
        self._is_closed = True
        running = self._running
        with running.changed:
            running.changed.wait_for(lambda: not running.answers, drain)
            left = list(running.answers)
        for answer in left:
            answer.give_up(LaminaError("the engine was closed before it had answered."))
            answer.cancel()
        self._loop.begin(self._close_streams()).result(30)
        self._loop.close()
        self._control.shutdown(wait=True)
        if self._servers.processes:
            stop_all(self._servers.processes)
        else:
            for entry in self._table.entries():
                self._replicas.drop(entry)
        for client in self._servers.clients:
            client.close()
        self._staging.close()

    async def _close_streams(self) -> None:
        for client in self._servers.clients:
            await client.aclose()

    def _begin(self, request: Request, deliver: Callable[[Piece | BaseException], None], *, whole: bool) -> Answering:
        self._check_open()
        ids = self.tokenize(request)
        sampling = request.sampling
        stops = set(self._ask.stop_ids(sampling))
        if sampling.guide is not None:
            self._ask.guides.start(sampling.guide)  # only to see that it is one
            stops.update(self._ends_of_guides())
        entry = None if request.adapter is None else self._table.acquire(request.adapter)
        limit = min(sampling.max_tokens, self.longest - len(ids))

        def asked(model: str) -> dict[str, Any]:
            return body(
                model, ids, sampling, limit=limit, stop_ids=sorted(stops), choice=request.choice, salt=request.salt
            )

        def reader() -> PieceReader:
            return PieceReader(ids, sampling, self.template.tokenizer, entry and entry.sealed.digest)

        key = f"{request.salt}\0{ids[:_PREFIX]}" if entry is None else entry.label
        answer = Answering(Question(key, entry, asked, reader, whole), self._replicas, self._counted(deliver))
        with self._running.changed:
            self._running.answers.add(answer)
            self._running.counters.prompt_tokens += len(ids)
        task = self._loop.begin(answer.run())
        answer.cancel_task = task.cancel
        task.add_done_callback(lambda done: self._ended(answer, entry))
        return answer

    def _counted(self, deliver: Callable[[Piece | BaseException], None]) -> Callable[[Piece | BaseException], None]:
        def count(piece: Piece | BaseException) -> None:
            if isinstance(piece, Piece):
                self._running.counters.answer_tokens += len(piece.token_ids)
            deliver(piece)

        return count

    def _ended(self, answer: Answering, entry: Entry | None) -> None:
        with self._running.changed:
            self._running.answers.discard(answer)
            self._running.changed.notify_all()
        if entry is not None:
            self._table.release(entry)

    def _ends_of_guides(self) -> list[int]:
        """The token that vLLM lets a guided answer end with."""
        end = self.template.tokenizer.eos_token_id
        return [end] if isinstance(end, int) else []

    def _let_go(self, entry: Entry) -> None:
        """Unloads an adapter that nobody uses any more, in a thread that may wait for servers."""

        def drop() -> None:
            self._replicas.drop(entry)
            self._staging.drop(entry.sealed.copy)

        with suppress(RuntimeError):  # the engine is closing, and unloads all
            self._control.submit(drop)

    def _check_lock(self, adapter: Adapter, template: ChatTemplate | None) -> tuple[str, ...]:
        if adapter.lock is None or template is None:
            return ("the adapter has no lamina.json, so neither its base nor its numbers could be checked",)
        return tuple(check_lock(adapter.lock, self.base, template, self._servers.allow_base_mismatch))

    def _seal(self, adapter: Adapter) -> Sealed:
        copy = self._staging.copy(adapter)
        return Sealed(
            adapter.path,
            copy,
            adapter.digest,
            adapter.config.type,
            adapter.lock,
            adapter.probes,
            has_effect(adapter),
            tensor_bytes(copy),
        )

    def _facts(self, entry: Entry) -> AdapterFacts:
        sealed = entry.sealed
        return AdapterFacts(
            entry.name,
            sealed.path,
            sealed.digest,
            sealed.method,
            entry.certificate,
            entry.notes,
            pinned=False,
            in_memory=any(entry.label in replica.held for replica in self._replicas.all if replica.is_alive),
            nbytes=sealed.nbytes,
            requests=entry.uses,
            alone_because=None,
        )

    def _check_open(self) -> None:
        if self._is_closed:
            raise LaminaError("the engine is closed.")


def _short(digest: str) -> str:
    return digest.removeprefix("sha256:")[:12]


def _no_pins() -> ConfigError:
    message = "vLLM's servers keep adapters by a rule of their own, and cannot be told to keep one"
    return ConfigError(Problem("pin", message, "leave it out, and start vLLM with --vllm-arg=--max-cpu-loras=N"))
