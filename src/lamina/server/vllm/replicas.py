"""`Replicas`: one or several vLLM servers: which of them live, which adapters each has, and who answers a request."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import math
import threading
from collections.abc import Callable, Collection, Iterable, Sequence

from lamina.adapters.certificate import Certificate
from lamina.errors import AdapterError, CertificateError, LaminaError
from lamina.progress import Notify
from lamina.server.vllm.adapters import Entry
from lamina.server.vllm.certify import certify
from lamina.server.vllm.client import Refused, Served, Unreachable, VllmClient

# A server may have that many times the mean of requests before one goes to the next in its order.
_MOST_OF_MEAN = 1.25

# Health checks that fail before a server counts as down, and seconds that each may take.
_MISSES = 2
_PATIENCE = 5.0


class Replica:
    """One server.

    Attributes:
        client: Asks it.
        served: What it said that it has.
        held: Labels of the adapters that are loaded there and certified.
        refused: Labels of those that are not to be had there.
        running: Requests that it is answering.
        is_alive: Whether it gets requests.
        went_down: Set while it does not.
        changing: Held while adapters are loaded.
    """

    def __init__(self, client: VllmClient, served: Served) -> None:
        self.client, self.served = client, served
        self.held: set[str] = set()
        self.refused: set[str] = set()
        self.running = 0
        self.is_alive = True
        self.went_down = asyncio.Event()
        self.look = asyncio.Event()
        self.changing = threading.Lock()


class Replicas:
    """All servers."""

    def __init__(
        self,
        all_of_them: Sequence[Replica],
        copies: int,
        dtype: str,
        entries: Callable[[], Iterable[Entry]],
        soon: Callable[[Callable[[], None]], object],
        notify: Notify,
    ) -> None:
        """
        Args:
            all_of_them: The servers, all of which answered.
            copies: How many of them get each adapter.
            dtype: What they hold the base in.
            entries: The adapters that names mean now.
            soon: Has the event loop of `watch` call something.
            notify: Called with sentences when a server goes or comes.
        """
        self.all, self._copies, self._dtype = list(all_of_them), copies, dtype
        self._entries, self._soon, self._notify = entries, soon, notify
        self._lock = threading.Lock()

    @property
    def is_any_alive(self) -> bool:
        """Whether there is a server that gets requests."""
        return any(replica.is_alive for replica in self.all)

    def choose(self, key: str, label: str | None, without: Collection[Replica] = ()) -> Replica | None:
        """Takes the server for a request, and counts it there until `done`.

        Requests with one key go to one server, where their beginnings are in the cache, unless it is much busier than
        the others; if servers go or come, only the keys of these move.

        Args:
            key: What keeps requests together.
            label: Of the adapter that must be there; None for the base.
            without: Servers not to ask.

        Returns:
            The server; None if none is left that has the adapter.
        """
        with self._lock:
            able = [
                replica
                for replica in self.all
                if replica.is_alive and replica not in without and (label is None or label in replica.held)
            ]
            if not able:
                return None
            most = math.ceil(_MOST_OF_MEAN * (sum(replica.running for replica in able) + 1) / len(able))
            order = _ranked(key, able)
            chosen = next((replica for replica in order if replica.running < most), order[0])
            chosen.running += 1
            return chosen

    def done(self, replica: Replica) -> None:
        """Ends what `choose` began."""
        with self._lock:
            replica.running -= 1

    def spare(self, entry: Entry, without: Collection[Replica]) -> Replica | None:
        """A living server that could get an adapter; None if there is none."""
        able = [r for r in self.all if r.is_alive and r not in without and entry.label not in (r.held | r.refused)]
        return next(iter(_ranked(entry.label, able)), None)

    def place(self, entry: Entry) -> Certificate | None:
        """Loads an adapter to as many servers as should have it, and certifies each.

        Returns:
            The certificate of the first; None for an adapter without probes.

        Raises:
            AdapterError, CertificateError: One does not take it, or does not apply it; then none has it.
            LaminaError: No server answers.
        """
        certificates: list[Certificate | None] = []
        failed: list[Replica] = []
        last: LaminaError | None = None
        while len(certificates) < self._copies and (replica := self.spare(entry, failed)) is not None:
            try:
                certificates.append(self.add(replica, entry))
            except Unreachable as error:
                failed.append(replica)
                self.suspect(replica)
                last = error
            except LaminaError:
                self.drop(entry)
                raise
        if not certificates:
            raise last or LaminaError("no vLLM server answers. Fix: look at their logs.")
        return certificates[0]

    def add(self, replica: Replica, entry: Entry) -> Certificate | None:
        """Loads an adapter to one server, and certifies it; it gets no request before.

        Raises:
            AdapterError, CertificateError: The server does not take it, or does not apply it.
            Unreachable: It does not answer.
        """
        client, label = replica.client, entry.label
        with replica.changing:
            if label in replica.held:
                return entry.certificate
            try:
                client.load(label, str(entry.sealed.copy))
            except Refused as error:
                replica.refused.add(label)
                raise _not_taken(entry, error) from None
            try:
                certificate = certify(client, label, replica.served.base, entry.sealed, self._dtype)
                if certificate is not None and not certificate.passed:
                    raise CertificateError(
                        f"{certificate.subject}: {certificate.line()}. Fix: serve it with lamina's "
                        "own engine (--engine lamina), or merged (lamina merge); and see that vLLM's --dtype is "
                        f"{self._dtype}.",
                        certificate,
                    )
            except BaseException as error:
                if not isinstance(error, Unreachable):
                    replica.refused.add(label)
                _unload(client, label)
                if isinstance(error, Refused):
                    raise _not_taken(entry, error) from None
                raise
            replica.held.add(label)
            return certificate

    def drop(self, entry: Entry) -> None:
        """Unloads an adapter wherever it is."""
        for replica in self.all:
            with replica.changing:
                replica.refused.discard(entry.label)
                if entry.label in replica.held:
                    replica.held.discard(entry.label)
                    _unload(replica.client, entry.label)

    def suspect(self, replica: Replica) -> None:
        """Has a server looked at now, from any thread."""
        self._soon(replica.look.set)

    def forgot(self, replica: Replica, entry: Entry) -> None:
        """Notes that a server no longer has an adapter."""
        with replica.changing:
            replica.held.discard(entry.label)

    async def watch(self, replica: Replica, seconds: float) -> None:
        """Looks at a server again and again, and gives it its adapters back when it returns."""
        misses = 0
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(replica.look.wait(), seconds)
            replica.look.clear()
            if await replica.client.is_alive(_PATIENCE):
                misses = 0
                if not replica.is_alive and await asyncio.to_thread(self._welcome, replica):
                    replica.went_down.clear()
                    replica.is_alive = True
                    self._notify(f"vLLM at {replica.client.url} is back")
                continue
            misses += 1
            if misses < _MISSES:
                replica.look.set()
                await asyncio.sleep(min(0.1, seconds))
            elif replica.is_alive:
                replica.is_alive = False
                replica.went_down.set()
                self._notify(f"vLLM at {replica.client.url} does not answer; its requests go elsewhere")

    def _welcome(self, replica: Replica) -> bool:
        """Loads what a server that comes back should have; returns whether it may get requests."""
        try:
            replica.served = replica.client.served()
        except LaminaError:
            return False
        with replica.changing:
            replica.held &= replica.served.adapters
            replica.refused.clear()
        for entry in self._entries():
            if replica not in _ranked(entry.label, self.all)[: self._copies]:
                continue
            try:
                self.add(replica, entry)
            except Unreachable:
                return False
            except LaminaError as error:
                self._notify(f"{entry.name} stays away from a server that came back: {error}")
        return True


def _ranked(key: str, replicas: Iterable[Replica]) -> list[Replica]:
    """Servers in a key's own order, which does not change if others go or come."""

    def weight(replica: Replica) -> bytes:
        return hashlib.blake2b(f"{key}\0{replica.client.url}".encode(), digest_size=8).digest()

    return sorted(replicas, key=weight)


def _unload(client: VllmClient, label: str) -> None:
    """Unloads an adapter; a server that does not have it, or is gone, has nothing to unload."""
    with contextlib.suppress(Refused, Unreachable):
        client.unload(label)


def _not_taken(entry: Entry, error: Refused) -> AdapterError:
    hint = "serve it with lamina's own engine (--engine lamina), or merged (lamina merge)"
    if error.status == 404:
        hint = (
            "start the server with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1; if it runs elsewhere, let it "
            "see vllm.adapter_folder of the --config file under the same path"
        )
    elif "max_lora_rank" in error.reason:
        hint = "start it with a higher --max-lora-rank"
    return AdapterError(
        f"{entry.sealed.path}: vLLM at {error.url} does not take it: {error.reason.rstrip('.')}. Fix: {hint}."
    )
