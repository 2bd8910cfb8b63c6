"""The gate: every route but one needs a key, bodies have bounds, and every answer has an id."""

from __future__ import annotations

import asyncio
import io
import json
import threading
from typing import Any

import pytest
from starlette.routing import BaseRoute

from lamina.server.app import build_app
from lamina.server.gate import OPEN
from tests.support.serving import ADMIN, USER, FakeEngine, ask_and_leave, build, chat_body, client_of


def every_route(routes: list[BaseRoute], below: str = "") -> list[tuple[str, str]]:
    """Method and path of every route of an application, whatever it is part of."""
    found: list[tuple[str, str]] = []
    for route in routes:
        inner = getattr(route, "routes", None) or getattr(getattr(route, "original_router", None), "routes", None)
        if inner:
            found += every_route(list(inner), below)
            continue
        path, methods = getattr(route, "path", None), getattr(route, "methods", None)
        assert path is not None and methods, f"a route of another kind: {route}"
        found += [(method, below + path) for method in sorted(methods)]
    return found


def routes_of(app: Any) -> list[tuple[str, str]]:
    return every_route(list(app.routes))


def test_every_route_needs_a_key_but_health() -> None:
    service = build()
    found = routes_of(build_app(service))
    paths = {path for _, path in found}
    assert paths >= {
        "/v1/models",
        "/v1/models/{model_id:path}",
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/adapters",
        "/v1/adapters/{name}",
        "/tokenize",
        "/health",
        "/ready",
        "/metrics",
        "/version",
        "/openapi.json",
    }
    assert {path for path in paths if path in OPEN} == {"/health"} == set(OPEN)
    for key in (None, "wrong-key", ""):
        client = client_of(service, key)
        for method, path in found:
            response = client.request(method, path.replace("{model_id:path}", "a").replace("{name}", "a"))
            if path == "/health":
                assert response.status_code == 200
                continue
            assert response.status_code == 401, (method, path)
            assert response.headers["www-authenticate"] == "Bearer"
            if method != "HEAD":
                assert response.json()["error"]["code"] == "invalid_api_key"


def test_paths_that_are_no_routes_need_a_key_too() -> None:
    client = client_of(build(), None)
    for path in ("/", "/docs", "/redoc", "/v1", "/v1/load_lora_adapter", "/health/", "//health", "/invocations"):
        assert client.get(path).status_code == 401, path


@pytest.mark.parametrize("header", ["Basic dXNlcg==", USER, f"bearer{USER}", f"Token {USER}", "Bearer", "Bearer \xff"])
def test_only_a_bearer_is_let_in(header: str) -> None:
    client = client_of(build(), None)
    assert client.get("/v1/models", headers={"authorization": header.encode("latin1")}).status_code == 401
    assert client.get("/v1/models", headers={"authorization": f"bearer {USER}"}).status_code == 200


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/adapters"),
        ("POST", "/v1/adapters"),
        ("DELETE", "/v1/adapters/a"),
        ("PATCH", "/v1/adapters/a"),
        ("GET", "/v1/adapters/anything/else"),
    ],
)
def test_adapters_are_for_the_scope_admin(method: str, path: str) -> None:
    service = build()
    refused = client_of(service, USER).request(method, path)
    assert refused.status_code == 403
    assert refused.json()["error"]["code"] == "admin_only"
    assert client_of(service, ADMIN).request(method, path).status_code != 403 or method == "POST"
    assert client_of(service, ADMIN).get("/v1/models").status_code == 200


def test_without_keys_only_requests_for_this_machine_are_taken() -> None:
    client = client_of(build(keys=None), None)
    assert client.get("/v1/adapters").status_code == 200
    for host in ("127.0.0.1:8000", "localhost", "[::1]:80", "127.1.2.3"):
        assert client.get("/v1/models", headers={"host": host}).status_code == 200
    for host in ("evil.example", "127.0.0.1.evil.example", "localhost.evil.example:8000"):
        refused = client.get("/v1/models", headers={"host": host})
        assert refused.status_code == 403
        assert refused.json()["error"]["code"] == "host_not_allowed"


def test_no_page_of_another_origin_is_let_in() -> None:
    headers = {"origin": "https://evil.example", "access-control-request-method": "POST"}
    response = client_of(build()).options("/v1/chat/completions", headers=headers)
    assert response.status_code == 405
    assert not [name for name in response.headers if name.startswith("access-control")]


@pytest.mark.parametrize("declared", [True, False])
def test_a_body_that_is_too_long_is_refused(declared: bool) -> None:
    client = client_of(build(limits={"body_bytes": 1000}))
    content = json.dumps(chat_body(user="x" * 400, metadata={"a": "x" * 500})).encode()
    headers = {"content-type": "application/json"}
    sent = content if declared else iter([content[:500], content[500:]])
    response = client.post("/v1/chat/completions", content=sent, headers=headers)
    assert response.status_code == 413
    assert response.json()["error"]["code"] == "body_too_large"


def test_a_body_that_does_not_come_is_refused() -> None:
    service, sent = build(limits={"body_seconds": 0.05}), []
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/completions",
        "headers": [(b"authorization", f"Bearer {USER}".encode())],
        "query_string": b"",
    }

    async def receive() -> Any:
        if sent or receive_count.pop():
            await asyncio.sleep(60)
        return {"type": "http.request", "body": b"{", "more_body": True}

    async def send(message: Any) -> None:
        sent.append(message)

    receive_count = [True, False]
    asyncio.run(build_app(service)(scope, receive, send))
    assert sent[0]["status"] == 400
    assert json.loads(sent[1]["body"])["error"]["code"] == "body_timeout"


def test_ids_of_requests_are_given_back_if_they_are_some() -> None:
    client = client_of(build())
    assert client.get("/v1/models", headers={"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"
    for bad in ("a b", "x" * 200, "a\tb", ""):
        given = client.get("/v1/models", headers={"x-request-id": bad}).headers["x-request-id"]
        assert given != bad and len(given) == 32


def test_requests_are_logged_without_keys_or_words() -> None:
    log = io.StringIO()
    client = client_of(build(log=log))
    answered = client.post("/v1/chat/completions", json=chat_body())
    client.get("/health")
    (line,) = [json.loads(line) for line in log.getvalue().splitlines()]
    assert line["event"] == "request"
    assert (line["method"], line["path"], line["status"]) == ("POST", "/v1/chat/completions", 200)
    assert line["request_id"] == answered.headers["x-request-id"]
    assert USER not in log.getvalue() and "who are you" not in log.getvalue()


def test_failures_are_logged_with_where_they_came_from() -> None:
    log = io.StringIO()
    engine = FakeEngine(write=lambda request: [ValueError("of our own")])
    client_of(build(engine, log=log)).post("/v1/chat/completions", json=chat_body())
    failed = [line for line in map(json.loads, log.getvalue().splitlines()) if line["event"] == "request_failed"]
    assert "of our own" in failed[0]["error"]
    assert "Traceback" in failed[0]["traceback"]


def test_an_error_before_any_route_is_one_json_error(monkeypatch: pytest.MonkeyPatch) -> None:
    log = io.StringIO()
    service = build(log=log)

    def fails(*_: Any) -> None:
        raise RuntimeError("no router")

    monkeypatch.setattr(service.router, "find", fails)
    client = client_of(service)
    response = client.post("/tokenize", json={"model": "a", "prompt": "x"})
    assert response.status_code == 500
    assert response.json()["error"]["code"] == "internal"
    assert "no router" in log.getvalue()


def test_a_client_that_leaves_within_its_body_is_no_error() -> None:
    log = io.StringIO()
    service = build(log=log)
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"authorization", f"Bearer {USER}".encode())]
    scope = {"type": "http", "method": "POST", "path": "/tokenize", "headers": headers, "query_string": b""}
    asyncio.run(build_app(service)(scope, receive, send))
    assert sent == []
    assert json.loads(log.getvalue())["status"] == 499


def test_web_sockets_are_closed() -> None:
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(build_app(build())({"type": "websocket", "path": "/v1/models", "headers": []}, receive, send))
    assert sent == [{"type": "websocket.close", "code": 1008}]


def test_the_description_has_every_route_but_its_own() -> None:
    app = build_app(build())
    paths = {path.replace(":path", "") for _, path in routes_of(app)}
    assert paths - set(app.openapi()["paths"]) == {"/openapi.json"}


def test_a_client_that_leaves_is_noted() -> None:
    log = io.StringIO()
    engine = FakeEngine(hold=threading.Event())
    ask_and_leave(build(engine, log=log), "/v1/chat/completions", chat_body())
    assert json.loads(log.getvalue().splitlines()[-1])["status"] == 499
