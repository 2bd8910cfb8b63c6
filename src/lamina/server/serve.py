"""`serve`: from settings to a server that runs."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from lamina.engine.engine import Engine
from lamina.engine.serving import Serving
from lamina.engine.subject import Subject, find_subject
from lamina.errors import ConfigError, Problem
from lamina.progress import Notify
from lamina.server.auth import Keys, read_keys
from lamina.server.follow import Placed, place
from lamina.server.life import bind, run
from lamina.server.logs import EventLog, Lines
from lamina.server.routing import Router
from lamina.server.service import Service
from lamina.server.settings import ServeSettings
from lamina.server.vllm.engine import VllmEngine
from lamina.server.vllm.open import open_vllm_engine


@dataclass(frozen=True)
class Ready:
    """A server that takes requests.

    Attributes:
        url: Where.
        models: What requests may name.
    """

    url: str
    models: list[str]


def serve(settings: ServeSettings, ready: Callable[[Ready], None], notify: Notify = lambda message: None) -> None:
    """Serves until SIGTERM or SIGINT.

    Args:
        settings: Of the server.
        ready: Called once requests are taken.
        notify: Called with sentences for people.

    Raises:
        AdapterError, CertificateError, ConfigError, ModelError, RegistryError, StorageError: It cannot begin.
    """
    if settings.model is None:
        raise ConfigError(Problem("model", "is not given", "name one: lamina serve MODEL, or model: in the file"))
    keys = read_keys(settings)
    listener = bind(settings)
    try:
        placed = place(settings)
        subject, settings = _subject(placed, notify), placed.settings
        with open_engine(subject, settings, notify) as engine:
            service = build_service(cast(Serving, engine), subject, settings, keys)
            _tell_defaults(engine, notify)
            if placed.follower is not None:
                service.follow(placed.follower)
            try:
                run(service, listener, lambda url: ready(Ready(url, _names(service))))
            finally:
                service.close()
    finally:
        listener.close()


def _subject(placed: Placed, notify: Notify) -> Subject:
    """What is served; an adapter of the registry keeps the name that it was asked for by."""
    subject = find_subject(placed.settings.model or "", notify)
    if placed.model_name is None or subject.adapter is None:
        return subject
    return replace(subject, adapter=(placed.model_name, subject.adapter[1]))


def open_engine(subject: Subject, settings: ServeSettings, notify: Notify) -> Engine | VllmEngine:
    """Loads a base and its adapters.

    Raises:
        AdapterError, CertificateError, ConfigError, ModelError: They cannot be used.
    """
    adapters: dict[str, Any] = dict(settings.adapters)
    if subject.adapter is not None:
        name, path = subject.adapter
        if name in adapters:
            raise ConfigError(Problem("adapters", f"{name!r} is also the name of MODEL", "rename it"))
        adapters = {name: path, **adapters}
    if settings.engine == "vllm":
        return _open_vllm(subject, adapters, settings, notify)
    return Engine(
        subject.load(dtype=settings.dtype, notify=notify),
        adapters,
        most_running=settings.max_running,
        notify=notify,
    )


def _open_vllm(subject: Subject, adapters: dict[str, Any], settings: ServeSettings, notify: Notify) -> VllmEngine:
    if subject.quantization is not None:
        message = "vllm holds no base as this adapter was trained on it, in 4 or 8 bits"
        raise ConfigError(Problem("engine", message, "use lamina's engine, or serve the adapter merged: lamina merge"))
    own = settings.vllm
    return open_vllm_engine(
        subject.base,
        adapters,
        urls=own.urls,
        replicas=own.replicas,
        arguments=own.arguments,
        adapter_folder=None if own.adapter_folder is None else Path(own.adapter_folder),
        dtype=subject.dtype if settings.dtype == "auto" else settings.dtype,
        notify=notify,
    )


def build_service(
    engine: Serving, subject: Subject, settings: ServeSettings, keys: Keys, log: EventLog | None = None
) -> Service:
    """Builds what is served before an engine.

    Raises:
        ConfigError: Names contradict each other.
        StorageError: A file for requests or shadows cannot be opened.
    """
    router = Router(settings.name or subject.name, settings, list(engine.adapters))
    requests = None if settings.log_requests is None else Lines(settings.log_requests)
    shadows = {file: Lines(file) for file in sorted({shadow.file for shadow in settings.shadow})}
    service = Service(
        engine, settings, router, keys, log or EventLog(), subject.base, requests, shadows, int(time.time())
    )
    if requests is not None:
        packed = None if subject.quantization is None else subject.quantization.model_dump()
        head = {"type": "server", "base": subject.base, "dtype": settings.dtype, "quantization": packed}
        head["adapters"] = {facts.name: str(facts.path.absolute()) for facts in engine.loaded()}
        requests.add({**head, "created": service.created, "engine": service.digest, "parts": dict(engine.parts)})
    return service


def _names(service: Service) -> list[str]:
    return [service.router.base, *service.engine.adapters, *service.router.aliases]


def _tell_defaults(engine: Engine | VllmEngine, notify: Notify) -> None:
    own = engine.default_sampling()
    names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
    drawn = ", ".join(f"{name} {getattr(own, name):g}" for name in names)
    notify(f"Requests that do not say are drawn as the model's generation_config.json says: {drawn}")
    if isinstance(engine, Engine) and engine.slow_because is not None:
        notify(f"The base runs by transformers' own code: {engine.slow_because}")
