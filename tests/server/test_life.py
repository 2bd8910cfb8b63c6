"""The life of a server: clients that leave, queues that are full, time that runs out, and signals."""

from __future__ import annotations

import contextlib
import io
import json
import signal
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from lamina.errors import ConfigError
from lamina.server.life import bind, url_of
from lamina.server.settings import ServeSettings
from tests.support.serving import USER, FakeEngine, ask_and_leave, build, chat_body, client_of, listening
from tests.support.waiting import wait_for

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
HEADERS = {"authorization": f"Bearer {USER}"}


def held() -> FakeEngine:
    """An engine that answers when it is let."""
    return FakeEngine(hold=threading.Event())


def is_idle(service: Any) -> Callable[[], bool]:
    return lambda: not service.admission.running and service.admission.waiting == 0


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "body", "count"),
    [
        (CHAT, chat_body(n=2), 2),
        (COMPLETIONS, {"model": "a", "prompt": ["x", "y", "z"]}, 3),
    ],
)
def test_a_client_that_leaves_before_the_first_token(path: str, body: Any, count: int, stream: bool) -> None:
    engine = held()
    service = build(engine)
    sent = ask_and_leave(service, path, {**body, "stream": stream})
    assert sent.status is None
    wait_for(lambda: len(engine.cancelled) == count)
    assert is_idle(service)()


def test_a_client_that_leaves_within_a_stream() -> None:
    engine = FakeEngine(write=lambda request: "x" * 1000, pause=0.005)
    service = build(engine)
    sent = ask_and_leave(service, CHAT, chat_body(stream=True))
    assert sent.status == 200
    wait_for(lambda: len(engine.cancelled) == 1)
    assert is_idle(service)()
    assert len(sent.messages) < 500


def test_clients_that_leave_over_a_socket() -> None:
    engine = held()
    service = build(engine, port=0)
    with listening(service) as (url, _):
        for number, stream in enumerate((False, True), start=1):
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(f"{url}{CHAT}", json=chat_body(stream=stream), headers=HEADERS, timeout=0.2)
            wait_for(lambda number=number: len(engine.cancelled) == number)
        wait_for(is_idle(service))
        assert engine.hold is not None
        engine.hold.set()
        with httpx.stream("POST", f"{url}{CHAT}", json=chat_body(stream=True), headers=HEADERS) as stream:
            assert next(stream.iter_lines()).startswith("data: ")
        wait_for(is_idle(service))
        assert httpx.post(f"{url}{CHAT}", json=chat_body(), headers=HEADERS).status_code == 200


def test_a_server_whose_engine_has_ended_is_not_ready() -> None:
    engine = FakeEngine()
    client = client_of(build(engine))
    assert client.get("/ready").status_code == 200
    engine.is_alive = False
    refused = client.get("/ready")
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "engine_ended")
    assert client.get("/health").status_code == 200


def test_the_log_has_the_folder_that_a_name_meant_when_the_request_began(tmp_path: Path) -> None:
    engine, log = held(), tmp_path / "log.jsonl"
    service = build(engine, port=0, log_requests=str(log))
    with listening(service) as (url, _), ThreadPoolExecutor(1) as pool:
        running = pool.submit(httpx.post, f"{url}{CHAT}", json=chat_body(), headers=HEADERS)
        wait_for(lambda: len(engine.asked) == 1)
        engine.load("a", "runs/another")
        assert engine.hold is not None
        engine.hold.set()
        assert running.result().status_code == 200
    record = json.loads(log.read_text().splitlines()[-1])
    assert record["adapter"] == {"name": "a", "path": str(Path("runs/a").absolute())}


def test_a_full_queue_is_told_with_a_time() -> None:
    engine = held()
    service = build(engine, limits={"queue": 3}, port=0)
    with listening(service) as (url, _), ThreadPoolExecutor(4) as pool:
        first = pool.submit(httpx.post, f"{url}{CHAT}", json=chat_body(n=3), headers=HEADERS)
        wait_for(lambda: service.admission.waiting == 3)
        refused = httpx.post(f"{url}{CHAT}", json=chat_body(), headers=HEADERS)
        assert refused.status_code == 429
        assert refused.json()["error"]["type"] == "rate_limit_error"
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        assert httpx.get(f"{url}/ready", headers=HEADERS).status_code == 200
        assert engine.hold is not None
        engine.hold.set()
        assert first.result().status_code == 200
        assert httpx.post(f"{url}{CHAT}", json=chat_body(), headers=HEADERS).status_code == 200


def test_a_request_that_weighs_more_than_the_queue_is_taken_when_it_is_empty() -> None:
    service = build(limits={"queue": 1})
    assert client_of(service).post(CHAT, json=chat_body(n=4)).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_takes_too_long_is_an_error_that_is_not_tried_again(stream: bool) -> None:
    engine = held()
    service = build(engine, limits={"request_seconds": 0.05})
    response = client_of(service).post(CHAT, json=chat_body(stream=stream))
    assert response.status_code == 504
    assert response.json()["error"]["code"] == "timeout"
    assert response.headers["x-should-retry"] == "false"
    assert len(engine.cancelled) == 1
    assert is_idle(service)()


def test_a_stream_that_takes_too_long_ends_with_an_error() -> None:
    engine = FakeEngine(write=lambda request: "x" * 1000, pause=0.05)
    service = build(engine, limits={"request_seconds": 2.0})  # time for the first piece, on a busy machine too
    response = client_of(service).post(CHAT, json=chat_body(stream=True))
    assert response.status_code == 200
    last = json.loads(response.text.strip().split("\n\n")[-1].removeprefix("data: "))
    assert last["error"]["code"] == "timeout"


def test_a_request_that_cannot_be_submitted_cancels_the_others() -> None:
    engine = held()
    real = engine.submit

    def submit(request: Any, deliver: Any) -> Any:
        if request.choice == 2:
            raise ValueError("not this one")
        return real(request, deliver)

    engine.submit = submit  # type: ignore[method-assign]
    service = build(engine)
    assert client_of(service).post(CHAT, json=chat_body(n=3)).status_code == 500
    wait_for(lambda: len(engine.cancelled) == 2)
    assert is_idle(service)()


def test_a_signal_lets_what_is_running_finish_and_takes_no_more() -> None:
    engine, log = held(), io.StringIO()
    service = build(engine, log=log, port=0)
    with listening(service) as (url, server), ThreadPoolExecutor(4) as pool:
        running = pool.submit(httpx.post, f"{url}{CHAT}", json=chat_body(), headers=HEADERS, timeout=20)
        wait_for(lambda: len(engine.asked) == 1)
        server.handle_exit(signal.SIGTERM, None)
        wait_for(lambda: service.admission.draining)
        for path, body in (("/ready", None), (CHAT, chat_body())):
            refused = httpx.request("POST" if body else "GET", f"{url}{path}", json=body, headers=HEADERS)
            assert refused.status_code == 503
            assert refused.json()["error"]["code"] == "draining"
            assert refused.headers["retry-after"]
        assert httpx.get(f"{url}/health").status_code == 200
        assert engine.hold is not None
        engine.hold.set()
        assert running.result().status_code == 200
        wait_for(lambda: server.should_exit)
    events = {line["event"]: line for line in map(json.loads, log.getvalue().splitlines())}
    assert events["draining"]["signal"] == "SIGTERM"
    assert events["ending"]["finished"] is True


@pytest.mark.parametrize("stream", [False, True])
def test_what_does_not_finish_in_time_gets_an_error(stream: bool) -> None:
    engine = held()
    service = build(engine, port=0, drain_seconds=0.1)
    with listening(service) as (url, server), ThreadPoolExecutor(1) as pool:
        body = chat_body(stream=stream)
        running = pool.submit(httpx.post, f"{url}{CHAT}", json=body, headers=HEADERS, timeout=20)
        wait_for(lambda: len(engine.asked) == 1)
        server.handle_exit(signal.SIGINT, None)
        assert running.result().status_code == 503
        wait_for(lambda: len(engine.cancelled) == 1)


def test_a_second_signal_does_not_wait() -> None:
    engine = held()
    service = build(engine, port=0, drain_seconds=60)
    with listening(service) as (url, server), ThreadPoolExecutor(1) as pool:
        running = pool.submit(httpx.post, f"{url}{CHAT}", json=chat_body(), headers=HEADERS, timeout=20)
        wait_for(lambda: len(engine.asked) == 1)
        began = time.monotonic()
        server.handle_exit(signal.SIGTERM, None)
        server.handle_exit(signal.SIGTERM, None)
        assert running.result().status_code == 503
    assert time.monotonic() - began < 10


def test_a_body_that_is_still_on_its_way_does_not_keep_a_server_from_its_end() -> None:
    log = io.StringIO()
    service = build(log=log, port=0)
    with listening(service) as (url, server):
        with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=10) as connection:
            head = f"POST {COMPLETIONS} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {USER}\r\n"
            connection.sendall(f"{head}content-type: application/json\r\ncontent-length: 100\r\n\r\n{{".encode())
            time.sleep(0.2)
            began = time.monotonic()
            server.handle_exit(signal.SIGTERM, None)
            received = b""
            while part := connection.recv(65_536):
                received += part
        assert time.monotonic() - began < 3
        assert received.startswith(b"HTTP/1.1 503 ") and b'"code":"draining"' in received
    (request,) = [line for line in map(json.loads, log.getvalue().splitlines()) if line["event"] == "request"]
    assert request["status"] == 503


def test_nothing_that_a_client_sends_ends_the_server() -> None:
    service = build(port=0)
    with listening(service) as (url, _):
        host, port = "127.0.0.1", int(url.rpartition(":")[2])
        for sent in (
            b"\x00\x01\x02\r\n\r\n",
            b"GET / HTTP/9.9\r\n\r\n",
            b"POST /v1/completions HTTP/1.1\r\ncontent-length: -5\r\n\r\n",
            b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
            b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n",
            b"GET / HTTP/1.1\r\nhost: x\r\n" + b"a: b\r\n" * 20_000 + b"\r\n",
            b"",
        ):
            with socket.create_connection((host, port), timeout=5) as connection:
                received = b""
                with contextlib.suppress(OSError):
                    connection.sendall(sent)
                    connection.shutdown(socket.SHUT_WR)
                    while part := connection.recv(65_536):
                        received += part
                head, _, body = received.partition(b"\r\n\r\n")
                assert not head or json.loads(body)["error"]["code"] in ("invalid_http", "invalid_api_key")
        assert httpx.post(f"{url}{CHAT}", json=chat_body(), headers=HEADERS).status_code == 200


def test_addresses_that_cannot_be_listened_at() -> None:
    with bind(ServeSettings(port=0)) as listener:
        listener.listen()
        taken = listener.getsockname()[1]
        assert url_of(listener, "127.0.0.1") == f"http://127.0.0.1:{taken}"
        assert url_of(listener, "::1") == f"http://[::1]:{taken}"
        with pytest.raises(ConfigError, match=f"--port: 127.0.0.1:{taken}"):
            bind(ServeSettings(port=taken))
    with pytest.raises(ConfigError, match="--host: 'no"):
        bind(ServeSettings(host="no.such.host.invalid", port=0))
