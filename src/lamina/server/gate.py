"""The gate, before every route: an id for each request, a key, a body that is not too large, one JSON error.

What is behind it needs a key, whatever its path and whether or not there is such a route; `/health` alone does not.
"""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lamina.server.answering import server_ended
from lamina.server.auth import Caller
from lamina.server.errors import ApiError, as_api_error
from lamina.server.service import Service
from lamina.server.streaming import ClientGone

# Needs no key.
OPEN = ("/health",)
# Needs a key of the scope admin, in every method.
ADMIN = "/v1/adapters"

_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_LOCAL_HOST = re.compile(r"(?i)(localhost|127(\.\d+){3}|\[::1\])(:\d+)?")


class Gate:
    """Middleware of the whole application."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
                return
            await self._app(scope, receive, send)
            return
        answer = _Answer(scope, send)
        try:
            await self._pass(scope, receive, answer)
        except ClientGone:
            answer.status = 499
        except asyncio.CancelledError:
            if not self._service.admission.draining:
                raise
            answer.status = 499  # the server ends, and the client has not taken its answer
        except Exception as error:
            if not isinstance(error, ApiError):
                self._service.log.failure("request_failed", error, request_id=answer.request_id)
            await answer.refuse(as_api_error(error), scope, receive)
        finally:
            self._note(scope, answer)

    async def _pass(self, scope: Scope, receive: Receive, answer: _Answer) -> None:
        headers = Headers(scope=scope)
        caller = self._caller(scope["path"], headers)
        answer.key = caller.id
        scope.setdefault("state", {}).update(caller=caller, request_id=answer.request_id)
        body = await self._body(headers, receive)
        if body and headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            # Which a page of another origin cannot send without asking first.
            raise ApiError(400, "the body must be JSON, with the header Content-Type: application/json", code="no_json")
        given = False

        async def receive_body() -> Message:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, receive_body, answer.send)

    def _caller(self, path: str, headers: Headers) -> Caller:
        """Who asks.

        Raises:
            ApiError: Nobody who may.
        """
        service = self._service
        if path in OPEN:
            return Caller("", "user")
        caller = service.keys.find(headers.get("authorization"))
        if caller is None:
            message = "the API key is missing or unknown. Send the header Authorization: Bearer KEY"
            raise ApiError(401, message, code="invalid_api_key", headers={"www-authenticate": "Bearer"})
        if not service.keys.are_needed and not _LOCAL_HOST.fullmatch(headers.get("host", "localhost")):
            # A page in a browser could reach a server without keys under a name of its own.
            message = "without keys, requests must be for localhost. Use http://127.0.0.1, or a server with keys"
            raise ApiError(403, message, code="host_not_allowed")
        if path.startswith(ADMIN) and caller.scope != "admin":
            raise ApiError(403, "this needs a key of the scope admin", code="admin_only")
        return caller

    async def _body(self, headers: Headers, receive: Receive) -> bytes:
        """The whole body.

        Raises:
            ApiError: It is too long, or does not come.
            ClientGone: Nor does the client.
        """
        limits, admission = self._service.limits, self._service.admission
        message = f"the body is longer than {limits.body_bytes} bytes"
        too_long = ApiError(413, message, code="body_too_large", headers={"connection": "close"})
        declared = headers.get("content-length", "")
        if declared.isdigit() and int(declared[:20]) > limits.body_bytes:
            raise too_long
        parts, length = [], 0
        try:
            async with asyncio.timeout(limits.body_seconds) as time_left:
                with admission.reading(time_left):
                    while True:
                        message = await receive()
                        if message["type"] == "http.disconnect":
                            raise ClientGone
                        parts.append(message.get("body", b""))
                        length += len(parts[-1])
                        if length > limits.body_bytes:
                            raise too_long
                        if not message.get("more_body", False):
                            return b"".join(parts)
        except TimeoutError:
            if admission.draining:
                raise server_ended() from None
            text = f"the body did not come within {limits.body_seconds:g} seconds"
            raise ApiError(400, text, code="body_timeout", headers={"connection": "close"}) from None

    def _note(self, scope: Scope, answer: _Answer) -> None:
        route: Any = scope.get("route")
        path = str(getattr(route, "path", "none"))
        self._service.metrics.http(path, answer.status)
        if path in OPEN:
            return
        self._service.log.write(
            "request",
            request_id=answer.request_id,
            method=scope["method"],
            path=scope["path"][:200],
            status=answer.status,
            seconds=round(time.monotonic() - answer.began, 4),
            key=answer.key,
        )


class _Answer:
    """What is sent for one request."""

    def __init__(self, scope: Scope, send: Send) -> None:
        given = Headers(scope=scope).get("x-request-id", "")
        self.request_id = given if _ID.fullmatch(given) else uuid.uuid4().hex
        self.began, self.key, self.status = time.monotonic(), "", 500
        self._send, self._started = send, False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._started, self.status = True, message["status"]
            MutableHeaders(scope=message)["x-request-id"] = self.request_id
        await self._send(message)

    async def refuse(self, error: ApiError, scope: Scope, receive: Receive) -> None:
        """Sends an error, if nothing was sent yet."""
        if not self._started:
            await error.response()(scope, receive, self.send)
