"""The application: the gate, the routes, and one shape of errors."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from lamina.server.adapters_api import adapter_routes
from lamina.server.errors import ApiError
from lamina.server.gate import Gate
from lamina.server.openai_api import openai_routes
from lamina.server.schemas.base import as_bad_request
from lamina.server.service import Service
from lamina.version import __version__

_STATUS = {
    400: "The request cannot be answered as it is.",
    401: "The API key is missing or unknown.",
    403: "The key does not allow this.",
    404: "There is no such model.",
    413: "The body is too long.",
    429: "Too many answers wait to begin.",
    500: "The server failed.",
    503: "The server is ending.",
    504: "The answer took too long.",
}
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}


def build_app(service: Service) -> FastAPI:
    """Builds the application of a server."""
    app = FastAPI(
        title="lamina", version=__version__, docs_url=None, redoc_url=None, redirect_slashes=False, lifespan=None
    )
    responses: dict[int | str, dict[str, Any]] = {
        status: {"description": text, "content": {"application/json": {"schema": _ERROR}}}
        for status, text in _STATUS.items()
    }
    app.include_router(openai_routes(service), responses=responses)
    app.include_router(adapter_routes(service), responses=responses)
    _add_own_routes(app, service, responses)
    app.add_middleware(Gate, service=service)
    app.add_exception_handler(ApiError, _on_api_error)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.openapi = lambda: _described(app)  # pyright: ignore[reportAttributeAccessIssue]
    return app


def _add_own_routes(app: FastAPI, service: Service, responses: dict[int | str, dict[str, Any]]) -> None:
    @app.get("/health")
    async def health() -> JSONResponse:
        """Tells that the process lives."""
        return JSONResponse({"status": "ok"})

    @app.get("/ready", responses=responses)
    async def ready() -> JSONResponse:
        """Tells whether requests are taken."""
        if service.admission.draining:
            raise ApiError(503, "the server is ending", code="draining", headers={"retry-after": "1"})
        if not service.engine.is_alive:
            message = "the engine has ended, so nothing can be answered. Start the server again"
            raise ApiError(503, message, code="engine_ended", headers={"x-should-retry": "false"})
        following = {} if service.follower is None else {"following": service.follower.as_json()}
        return JSONResponse({"status": "ready", **following})

    @app.get("/version", responses=responses)
    async def version() -> JSONResponse:
        """Tells lamina's version, and what answers come from."""
        return JSONResponse({"version": __version__, "engine": service.digest, "parts": dict(service.engine.parts)})

    @app.get("/metrics", responses={**responses, 200: {"content": {"text/plain": {}}}})
    async def metrics() -> Response:
        """Gives counters for Prometheus."""
        return Response(await service.call(service.metrics.text), media_type="text/plain; version=0.0.4")


def _described(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI description, with the key, and without status 422, which is never sent."""
    if app.openapi_schema is None:
        schema = FastAPI.openapi(app)
        schema["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        schema["security"] = [{"key": []}]
        for path, methods in schema["paths"].items():
            for operation in methods.values():
                operation["responses"].pop("422", None)
                if path == "/health":
                    operation["security"] = []
        for unused in ("HTTPValidationError", "ValidationError"):
            schema["components"]["schemas"].pop(unused, None)
        app.openapi_schema = schema
    return app.openapi_schema


async def _on_api_error(request: Request, error: Any) -> Response:
    return error.response()


async def _on_invalid(request: Request, error: Any) -> Response:
    return as_bad_request(error.errors()).response()


async def _on_http_error(request: Request, error: Any) -> Response:
    """Starlette's own errors: no such route, no such method, a body that cannot be parsed."""
    words = {404: f"there is no route {request.url.path[:200]}", 405: f"{request.method} is not allowed here"}
    message = words.get(error.status_code, str(error.detail))
    status = 400 if error.status_code == 422 else error.status_code
    return ApiError(status, message, code="http", headers=error.headers).response()
