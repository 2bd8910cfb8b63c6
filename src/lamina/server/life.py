"""The life of a server's process: it listens, says when it is ready, and on a signal finishes what it has begun."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Callable
from types import FrameType

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from lamina.errors import ConfigError, Problem, StorageError
from lamina.server.app import build_app
from lamina.server.errors import ApiError
from lamina.server.service import Service
from lamina.server.settings import ServeSettings

# Seconds for the last bytes to reach clients once everything is answered or ended.
_LAST_SECONDS = 5


def bind(settings: ServeSettings) -> socket.socket:
    """Takes the address, before anything is loaded; nobody can connect yet.

    Raises:
        ConfigError: It is no address of this machine, or it is taken.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        found = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise ConfigError(Problem("--host", f"{settings.host!r} is no address ({error})", "use 127.0.0.1")) from None
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
    except OSError as error:
        found.close()
        reason = StorageError.wrap(error, f"{settings.host}:{settings.port}", "listening").args[0]
        fix = "choose another --port, or 0 for a free one"
        raise ConfigError(Problem("--port", reason.partition(" Fix: ")[0], fix)) from None
    return found


def url_of(listener: socket.socket, host: str) -> str:
    """Where a server is reached."""
    return f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"


def run(service: Service, listener: socket.socket, ready: Callable[[str], None]) -> None:
    """Serves until SIGTERM or SIGINT; then finishes what is running, for `drain_seconds` at most.

    Args:
        service: What is served.
        listener: A socket that is bound.
        ready: Called with the URL once requests are taken.
    """
    build_server(service, listener, ready).run(sockets=[listener])


def build_server(service: Service, listener: socket.socket, ready: Callable[[str], None]) -> Server:
    """Builds the server that `run` runs."""
    config = uvicorn.Config(
        build_app(service),
        http=_Protocol,
        ws="none",
        lifespan="off",
        loop="asyncio",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=_LAST_SECONDS,
    )
    url = url_of(listener, service.settings.host)
    return Server(config, service, url, ready)


class _Protocol(H11Protocol):
    """uvicorn's, which answers what is no HTTP with the same JSON error as everything else."""

    def send_400_response(self, msg: str) -> None:
        error = ApiError(400, "the request is no valid HTTP", code="invalid_http").response()
        headers = [*error.raw_headers, (b"connection", b"close")]
        for event in (
            h11.Response(status_code=400, headers=headers, reason=b"Bad Request"),
            h11.Data(data=bytes(error.body)),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event))
        self.transport.close()


class Server(uvicorn.Server):
    """uvicorn's, which ends when what is running has been answered, and leaves the process alive."""

    def __init__(
        self, config: uvicorn.Config, service: Service, url: str, ready: Callable[[str], None] = lambda url: None
    ) -> None:
        super().__init__(config)
        self._service, self._url, self._ready = service, url, ready
        self._loop: asyncio.AbstractEventLoop | None = None
        self._hurry = asyncio.Event()
        self._ending: asyncio.Task[None] | None = None
        self._signals: list[str] = []

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._loop = asyncio.get_running_loop()
        self._service.log.write("ready", url=self._url)
        if self._signals:
            self._end()
        else:
            self._ready(self._url)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal ends the server in good order, the second at once."""
        self._signals.append(signal.Signals(sig).name)
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self._end)

    def _end(self) -> None:
        if self._ending is None:
            self._ending = asyncio.get_running_loop().create_task(self._drain())
        else:
            self._hurry.set()

    async def _drain(self) -> None:
        admission, log = self._service.admission, self._service.log
        admission.draining = True
        log.write("draining", signal=self._signals[0], running=len(admission.running))
        finished = await admission.idle(self._service.settings.drain_seconds, self._hurry)
        log.write("ending", finished=finished, running=len(admission.running))
        admission.end_all()
        self.should_exit = True
