"""Errors as clients see them: one JSON body with a status that says who can mend it.

Official clients try again by themselves after 408, 409, 429 and 500 or more, so these are kept for what may pass; what
would fail again says so in `x-should-retry`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse

from lamina.errors import AdapterError, CertificateError, ConfigError, DataError, LaminaError, NewerVersionError

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
    504: "server_error",
}

# Fields of `Sampling` and `Request` that clients call by other names.
_NAMES = {
    "ignore_stop_tokens": "ignore_eos",
    "adapter": "model",
    "token_ids": "prompt",
}


class ApiError(Exception):
    """Ends a request.

    Attributes:
        status: HTTP status.
        message: What is wrong, what is allowed, and a fix.
        param: The field.
        code: A word for programs.
        headers: Further headers of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """The JSON body."""
        kind = _TYPES.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """The answer."""
        return Plain(self.body(), self.status, headers=self.headers)


class Plain(JSONResponse):
    """JSON in ASCII, so that whatever a client sent can be quoted."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode("ascii")


def bad_request(param: str | None, message: str, code: str | None = None) -> ApiError:
    """The error of a request that cannot be answered as it is."""
    return ApiError(400, f"{param}: {message}" if param else message, param=param, code=code)


def unknown_model(name: str, message: str) -> ApiError:
    """The error of a model that is not there."""
    return ApiError(404, f"model: {name!r} {message}", param="model", code="model_not_found")


def as_api_error(error: BaseException, param: str | None = None, guide: str = "response_format") -> ApiError:
    """What a client is told of an error of the engine's.

    Args:
        error: The error.
        param: The field that it is of, if the error does not say.
        guide: The field that says what the answer must be.
    """
    if isinstance(error, ApiError):
        return error
    if isinstance(error, ConfigError):
        problem = error.problems[0]
        place, _, name = problem.field.rpartition(".")
        name = {**_NAMES, "guide": guide}.get(name, name) if place in ("sampling", "request") else name
        if problem.field == "request.adapter":
            return ApiError(404, f"model: {problem.message}. {problem.fix}", param="model", code="model_not_found")
        return ApiError(400, f"{name}: {str(problem).partition(': ')[2]}", param=name)
    if isinstance(error, CertificateError):
        return ApiError(400, str(error), param="path", code="certificate_failed")
    if isinstance(error, AdapterError | NewerVersionError):
        if param == "path":
            return ApiError(400, str(error), param=param, code="adapter_refused")
        return ApiError(500, str(error), code="adapter_unusable", headers={"x-should-retry": "false"})
    if isinstance(error, DataError):
        return ApiError(400, str(error), param=param)
    if isinstance(error, LaminaError):
        return ApiError(500, str(error), code="engine_error")
    return ApiError(500, "the server failed; its log has the reason under this answer's x-request-id", code="internal")
