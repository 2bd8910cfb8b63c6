"""`/v1/adapters`: adapters that come and go, for keys of the scope admin. Paths stay inside the adapter root."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path as FilePath
from typing import Any

from fastapi import APIRouter
from starlette.responses import JSONResponse

from lamina.engine.store import AdapterFacts
from lamina.server.errors import ApiError, as_api_error, bad_request, unknown_model
from lamina.server.schemas.adapters import LoadBody, PinBody
from lamina.server.service import Service
from lamina.server.settings import NAME


def adapter_routes(service: Service) -> APIRouter:
    """The routes of a server."""
    router = APIRouter(prefix="/v1/adapters")

    @router.get("")
    async def listed() -> JSONResponse:
        """Lists the adapters that are loaded."""
        return JSONResponse({"object": "list", "data": [_as_json(facts) for facts in service.engine.loaded()]})

    @router.post("")
    async def load(body: LoadBody) -> JSONResponse:
        """Loads an adapter, once its lock and its probes are checked; a name that is taken gets the new one."""
        if body.name == service.router.base or body.name in service.router.aliases:
            raise bad_request("name", f"{body.name!r} is the name of the base or of an alias. Choose another")
        path = await service.administer(lambda: inside_root(service.settings.adapter_root, body.path))

        def read() -> AdapterFacts:
            try:
                return service.engine.load(body.name, path, pin=body.pin)
            except Exception as error:
                raise as_api_error(error, "path") from error

        facts = await service.administer(read)
        service.log.write("adapter_loaded", name=facts.name, digest=facts.digest, path=str(path))
        return JSONResponse(_as_json(facts))

    @router.patch("/{name}")
    async def pin(name: str, body: PinBody) -> JSONResponse:
        """Keeps an adapter in memory, or no longer."""
        _check_loaded(service, name)
        return JSONResponse(_as_json(await _changed(service, lambda: service.engine.pin(name, body.pin))))

    @router.delete("/{name}")
    async def unload(name: str) -> JSONResponse:
        """Takes an adapter away; what it is answering is finished."""
        _check_loaded(service, name)
        if (user := service.router.uses(name)) is not None:
            raise bad_request("name", f"{user} needs {name!r}. Take it out of the configuration first")
        facts = await _changed(service, lambda: service.engine.unload(name))
        service.log.write("adapter_unloaded", name=name, digest=facts.digest)
        return JSONResponse({**_as_json(facts), "deleted": True})

    return router


def inside_root(root: str | None, path: str) -> FilePath:
    """The real path of a folder inside the adapter root; relative ones begin there.

    Raises:
        ApiError: There is no root, or the path leads out of it.
    """
    if root is None:
        message = "adapters cannot be loaded over HTTP: the server was started without --adapter-root"
        raise ApiError(403, message, param="path", code="no_adapter_root")
    top = FilePath(root).resolve()
    try:
        found = (top / path).resolve(strict=True)
    except (OSError, ValueError, RuntimeError):
        found = None
    if found is None or not found.is_relative_to(top) or found == top or not found.is_dir():
        # The same words in any case, so that nobody learns what else is on the disk.
        raise bad_request("path", f"there is no folder {path[:200]!r} inside the adapter root", "path_not_allowed")
    for below in (found, *found.rglob("*")):
        if not below.resolve().is_relative_to(top):
            raise bad_request("path", f"{path[:200]!r} holds a link out of the adapter root", "path_not_allowed")
    return found


async def _changed(service: Service, change: Any) -> AdapterFacts:
    try:
        return await service.administer(change)
    except Exception as error:
        raise as_api_error(error, "name") from error


def _check_loaded(service: Service, name: str) -> None:
    if not re.fullmatch(NAME, name) or name not in service.engine.adapters:
        error = unknown_model(name[:200], "is not an adapter that is loaded")
        raise ApiError(404, error.message.replace("model:", "name:", 1), param="name", code="adapter_not_found")


def _as_json(facts: AdapterFacts) -> dict[str, Any]:
    certificate = None
    if facts.certificate is not None:
        given = asdict(facts.certificate)
        certificate = {name: value for name, value in given.items() if value == value}
    return {
        "object": "adapter",
        "name": facts.name,
        "path": str(facts.path),
        "digest": facts.digest,
        "method": facts.method,
        "certificate": certificate,
        "notes": list(facts.notes),
        "pinned": facts.pinned,
        "in_memory": facts.in_memory,
        "bytes": facts.nbytes,
        "requests": facts.requests,
        "alone_because": facts.alone_because,
    }
