"""`AdapterTable`: which adapter a name means now, and how many requests each is answering."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from lamina.adapters.certificate import Certificate
from lamina.chat.template import ChatTemplate
from lamina.errors import ConfigError, Problem, nearest
from lamina.server.vllm.certify import Sealed


@dataclass
class Entry:
    """One adapter under one name, as it was loaded.

    Attributes:
        name: What requests call it.
        label: What vLLM's servers call it: a name of its own for every loading, so that none gives an older one's.
        sealed: What was checked.
        notes: What its lock says.
        certificate: Of the servers that it was loaded to; None for an adapter without probes.
        template: Renders its conversations, as in its training; None for the engine's.
        uses: Requests that it is answering.
        is_retired: Whether its name means another one, or nothing.
    """

    name: str
    label: str
    sealed: Sealed
    notes: tuple[str, ...] = ()
    certificate: Certificate | None = None
    template: ChatTemplate | None = None
    uses: int = 0
    is_retired: bool = False


class AdapterTable:
    """Adapters by name. Safe to use from several threads."""

    def __init__(self, gone: Callable[[Entry], None]) -> None:
        """
        Args:
            gone: Called once no name means an adapter any more and its last request has ended. It must not block.
        """
        self._gone = gone
        self._idle = threading.Condition()
        self._entries: dict[str, Entry] = {}

    def names(self) -> list[str]:
        """The names, in the order in which they were first loaded."""
        with self._idle:
            return list(self._entries)

    def entries(self) -> list[Entry]:
        """What the names mean."""
        with self._idle:
            return list(self._entries.values())

    def add(self, entry: Entry) -> None:
        """Lets an adapter answer under its name, at once for new requests; running ones keep what was there before."""
        with self._idle:
            before = self._entries.get(entry.name)
            self._entries[entry.name] = entry
        if before is not None:
            self._retire(before)

    def find(self, name: str) -> Entry:
        """What a name means.

        Raises:
            ConfigError: Nothing.
        """
        with self._idle:
            return self._find(name)

    def acquire(self, name: str) -> Entry:
        """Begins a use of what a name means, to be ended by `release`.

        Raises:
            ConfigError: It means nothing.
        """
        with self._idle:
            entry = self._find(name)
            entry.uses += 1
            return entry

    def release(self, entry: Entry) -> None:
        """Ends a use."""
        with self._idle:
            entry.uses -= 1
            is_gone = entry.is_retired and not entry.uses
            self._idle.notify_all()
        if is_gone:
            self._gone(entry)

    def remove(self, name: str, wait: float | None = None) -> Entry:
        """Takes a name away. What is being answered is finished.

        Args:
            name: The name.
            wait: Seconds to wait for the last use to end; None returns at once.

        Raises:
            ConfigError: It means nothing.
        """
        with self._idle:
            entry = self._find(name)
            del self._entries[name]
        self._retire(entry)
        if wait is not None:
            with self._idle:
                self._idle.wait_for(lambda: not entry.uses, wait)
        return entry

    def _retire(self, entry: Entry) -> None:
        with self._idle:
            entry.is_retired = True
            is_gone = not entry.uses
        if is_gone:
            self._gone(entry)

    def _find(self, name: str) -> Entry:
        entry = self._entries.get(name)
        if entry is None:
            known = list(self._entries)
            message = f"{name!r} is not an adapter that is loaded ({', '.join(map(repr, known)) or 'there is none'})"
            raise ConfigError(Problem("request.adapter", message, nearest(name, known) if known else "load it first"))
        return entry
