"""Adapters out of a registry: references become folders, and aliases are followed while the server runs.

A thread looks every few seconds where each alias points. A new version is loaded under the same name; the engine checks
its lock and its probes, and switches at once, while running requests finish with the old one. If it cannot be loaded,
the old one goes on answering, and `/ready`, `/metrics` and the log say so.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from lamina.engine.store import AdapterFacts
from lamina.registry.names import is_reference, parse
from lamina.registry.registry import Registry
from lamina.server.settings import ServeSettings


class Log(Protocol):
    """Where events go."""

    def write(self, event: str, **values: Any) -> None:
        """Writes an event."""
        ...


@dataclass
class Followed:
    """An alias that is followed.

    Attributes:
        name: What requests call it.
        ref: The alias, such as `support@prod`.
        version: What answers now, such as `support:7`.
        digest: That version's digest.
        error: Why the version that the alias points at now does not answer; None if it does.
    """

    name: str
    ref: str
    version: str
    digest: str
    error: str | None = None

    def as_json(self) -> dict[str, Any]:
        """As plain data."""
        return dict(vars(self))


@dataclass(frozen=True)
class Placed:
    """Settings whose references are folders.

    Attributes:
        settings: With folders in the place of references.
        model_name: What requests call the adapter that was named in place of the base, where that was a reference.
        follower: Follows aliases; None if there are none.
    """

    settings: ServeSettings
    model_name: str | None = None
    follower: Follower | None = None


def place(settings: ServeSettings) -> Placed:
    """Finds the folders of all references, in the registry of the settings or the default one.

    Raises:
        ConfigError: A reference names no version.
        RegistryError: There is no registry, or a version's files are missing or damaged.
    """
    wanted = {name: path for name, path in settings.adapters.items() if is_reference(path)}
    model = settings.model if settings.model is not None and is_reference(settings.model) else None
    if not wanted and model is None:
        return Placed(settings)
    registry = Registry(settings.registry, create=False)
    followed: list[Followed] = []

    def folder(name: str, ref: str) -> str:
        version = registry.find(ref)
        if parse(ref).alias is not None:
            followed.append(Followed(name, ref, version.ref, version.digest))
        return str(registry.folder(f"{version.name}@{version.digest}"))

    changes: dict[str, Any] = {"adapters": {**settings.adapters, **{n: folder(n, ref) for n, ref in wanted.items()}}}
    if model is not None:
        changes["model"] = folder(model, model)
    follower = Follower(registry, followed, settings.follow_seconds) if followed else None
    if follower is None:
        registry.close()
    return Placed(settings.model_copy(update=changes), model, follower)


class Follower:
    """Follows aliases in a thread of its own."""

    def __init__(self, registry: Registry, followed: list[Followed], seconds: float) -> None:
        """
        Args:
            registry: Where they are.
            followed: What answers at the start.
            seconds: How often to look.
        """
        self.followed = followed
        self._registry, self._seconds = registry, seconds
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(
        self,
        load: Callable[[str, Path], Future[AdapterFacts]],
        log: Log,
        count: Callable[[str, str], None] = lambda name, outcome: None,
    ) -> None:
        """Begins to look.

        Args:
            load: Loads an adapter under a name, in the thread in which adapters are loaded.
            log: Where events go.
            count: Called with a name and `switched` or `failed`.
        """

        def watch() -> None:
            while not self._stop.wait(self._seconds):
                for one in self.followed:
                    self._check(one, load, log, count)

        self._thread = threading.Thread(target=watch, name="lamina-follow", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends it; a load that has begun is finished."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        self._registry.close()

    def as_json(self) -> list[dict[str, Any]]:
        """Where each alias is, as plain data."""
        return [one.as_json() for one in self.followed]

    def _check(
        self,
        one: Followed,
        load: Callable[[str, Path], Future[AdapterFacts]],
        log: Log,
        count: Callable[[str, str], None],
    ) -> None:
        try:
            version = self._registry.find(one.ref)
            if version.digest == one.digest:
                one.error = None
                return
            facts = load(one.name, self._registry.folder(f"{version.name}@{version.digest}")).result()
        except Exception as error:  # whatever it is, what answers goes on
            text = f"{type(error).__name__}: {error}"[:2000]
            if text != one.error and not self._stop.is_set():
                log.write("alias_failed", name=one.name, alias=one.ref, answers=one.version, error=text)
                count(one.name, "failed")
                one.error = text
            return
        before, one.version, one.digest, one.error = one.version, version.ref, version.digest, None
        log.write("alias_followed", name=one.name, alias=one.ref, before=before, after=version.ref, digest=facts.digest)
        count(one.name, "switched")
