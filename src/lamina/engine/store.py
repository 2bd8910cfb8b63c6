"""`AdapterStore`: adapters by name, checked before they answer, held within a budget, counted while they are in use."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from lamina.adapters.certificate import Certificate
from lamina.engine.voices import Part
from lamina.errors import AdapterError, ConfigError, Problem, nearest


@dataclass(frozen=True)
class Ready:
    """An adapter that was read and laid out.

    Attributes:
        part: What answers for it.
        digest: Of its tensors and settings.
        method: Name of its method.
    """

    part: Part
    digest: str
    method: str


@dataclass(frozen=True)
class AdapterFacts:
    """What is known of an adapter in a store.

    Attributes:
        name: What requests call it.
        path: Where it was read from.
        digest: Of its tensors and settings.
        method: Name of its method.
        certificate: The result of its probes; None for an adapter that lamina did not train.
        notes: What its lock and its loading say.
        pinned: Whether it stays in memory.
        in_memory: Whether it is there now.
        nbytes: Memory that it takes there.
        requests: How many it is answering.
        alone_because: Why it does not share batches with others; None where it does.
    """

    name: str
    path: Path
    digest: str
    method: str
    certificate: Certificate | None
    notes: tuple[str, ...]
    pinned: bool
    in_memory: bool
    nbytes: int
    requests: int
    alone_because: str | None


@dataclass
class _Entry:
    """One adapter under one name, as it was loaded."""

    name: str
    path: Path
    digest: str
    method: str
    certificate: Certificate | None
    notes: tuple[str, ...]
    part: Part | None
    nbytes: int
    alone_because: str | None
    pinned: bool
    used: int = 0
    uses: int = 0
    retired: bool = False
    loading: threading.Lock = field(default_factory=threading.Lock)


class Handle:
    """A use of an adapter: it stays as it is until `release`.

    Attributes:
        name: The adapter's.
        digest: Of the one that answers, whatever is loaded under the name later.
        part: What answers.
    """

    def __init__(self, store: AdapterStore, entry: _Entry, part: Part) -> None:
        self.name, self.digest, self.part = entry.name, entry.digest, part
        self._store, self._entry = store, entry
        self._released = False

    def release(self) -> None:
        """Ends the use. More than once is the same as once."""
        if not self._released:
            self._released = True
            self._store._release(self._entry)


class AdapterStore:
    """Adapters by name. Safe to use from several threads."""

    def __init__(self, read: Callable[[Path], Ready], budget: int | None = None) -> None:
        """
        Args:
            read: Reads an adapter and lays it out, without checking its probes.
            budget: Bytes of adapters that are kept in memory though nobody uses them; None for no limit.
        """
        self._read, self._budget = read, budget
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)
        self._entries: dict[str, _Entry] = {}
        self._retired: list[_Entry] = []
        self._clock = 0

    def names(self) -> list[str]:
        """The names, in the order in which they were first loaded."""
        with self._lock:
            return list(self._entries)

    def facts(self) -> list[AdapterFacts]:
        """What is known of each adapter."""
        with self._lock:
            return [_facts(entry) for entry in self._entries.values()]

    def add(
        self,
        name: str,
        path: Path,
        ready: Ready,
        certificate: Certificate | None,
        notes: tuple[str, ...] = (),
        pinned: bool = False,
    ) -> AdapterFacts:
        """Lets an adapter answer under a name, at once for new requests; running ones keep what was there before."""
        part = ready.part
        entry = _Entry(
            name, path, ready.digest, ready.method, certificate, notes, part, part.nbytes, part.reason, pinned
        )
        with self._lock:
            before = self._entries.get(name)
            if before is not None:
                self._retire(before)
                entry.pinned = pinned or before.pinned
            self._entries[name] = entry
            self._touch(entry)
            self._shrink()
            return _facts(entry)

    def acquire(self, name: str) -> Handle:
        """Begins a use of the adapter that has the name now; one that had left memory is read again.

        Raises:
            ConfigError: There is no such adapter.
            AdapterError: It was changed on disk since it was checked, or cannot be read any more.
        """
        while True:
            with self._lock:
                entry = self._find(name)
                if entry.part is not None:
                    self._touch(entry)
                    entry.uses += 1
                    return Handle(self, entry, entry.part)
            with entry.loading:
                if entry.part is None:
                    ready = self._read(entry.path)
                    if ready.digest != entry.digest:
                        raise AdapterError(
                            f"{entry.path}: was changed since it was loaded as {name!r} (its digest was "
                            f"{entry.digest}, and is {ready.digest}). Fix: load it again, so that it is checked."
                        )
                    with self._lock:
                        entry.part, entry.nbytes = ready.part, ready.part.nbytes
                        self._touch(entry)
                        self._shrink(but=entry)

    def remove(self, name: str, wait: float | None = None) -> AdapterFacts:
        """Takes a name away. What is being answered is finished.

        Args:
            name: The name.
            wait: Seconds to wait for the last use to end; None returns at once.

        Raises:
            ConfigError: There is no such adapter.
        """
        with self._lock:
            entry = self._find(name)
            del self._entries[name]
            self._retire(entry)
            if wait is not None:
                self._idle.wait_for(lambda: entry.uses == 0, wait)
            return _facts(entry)

    def pin(self, name: str, pinned: bool) -> AdapterFacts:
        """Keeps an adapter in memory, or no longer.

        Raises:
            ConfigError: There is no such adapter.
        """
        with self._lock:
            entry = self._find(name)
            entry.pinned = pinned
            self._shrink()
            return _facts(entry)

    def _find(self, name: str) -> _Entry:
        entry = self._entries.get(name)
        if entry is None:
            known = list(self._entries)
            listed = ", ".join(map(repr, known[:10])) or "there is none"
            message = f"{name!r} is not an adapter that is loaded ({listed})"
            raise ConfigError(Problem("request.adapter", message, nearest(name, known) if known else "load it first"))
        return entry

    def _retire(self, entry: _Entry) -> None:
        entry.retired = True
        if entry.uses == 0:
            entry.part = None
        else:
            self._retired.append(entry)

    def _release(self, entry: _Entry) -> None:
        with self._lock:
            entry.uses -= 1
            if entry.uses == 0:
                if entry.retired:
                    entry.part = None
                    self._retired.remove(entry)
                self._shrink()
                self._idle.notify_all()

    def _touch(self, entry: _Entry) -> None:
        self._clock += 1
        entry.used = self._clock

    def _shrink(self, but: _Entry | None = None) -> None:
        """Lets go of what nobody uses, the one that was used the longest ago first, down to the budget."""
        if self._budget is None:
            return
        held = sum(entry.nbytes for entry in self._entries.values() if entry.part is not None)
        unused = [
            e for e in self._entries.values() if e.part is not None and not e.uses and not e.pinned and e is not but
        ]
        for entry in sorted(unused, key=lambda entry: entry.used):
            if held <= self._budget:
                return
            entry.part = None
            held -= entry.nbytes


def _facts(entry: _Entry) -> AdapterFacts:
    return AdapterFacts(
        entry.name,
        entry.path,
        entry.digest,
        entry.method,
        entry.certificate,
        entry.notes,
        entry.pinned,
        entry.part is not None,
        entry.nbytes,
        entry.uses,
        entry.alone_because,
    )
