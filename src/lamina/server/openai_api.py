"""OpenAI's routes: models, conversations, completions; and the tokens of a prompt."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from lamina.engine.generator import Piece
from lamina.server import chat_answers
from lamina.server.ask import Ask, salt_of
from lamina.server.completion_answers import Echo, completion_chunks, whole_completion
from lamina.server.draws import answers_wanted, check_stream, guide_field, sampling_of
from lamina.server.errors import as_api_error, unknown_model
from lamina.server.job import Job
from lamina.server.prompts import chat_request, completion_requests, prompts_of, tokenize_request
from lamina.server.routing import Target
from lamina.server.schemas.chat import ChatBody
from lamina.server.schemas.completions import CompletionBody, TokenizeBody
from lamina.server.schemas.sampling import SamplingBody
from lamina.server.service import Service
from lamina.server.streaming import EventStream, unless_gone, with_errors

_STREAMS: dict[int | str, dict[str, Any]] = {200: {"content": {"application/json": {}, "text/event-stream": {}}}}


def openai_routes(service: Service) -> APIRouter:
    """The routes of a server."""
    router = APIRouter()

    @router.get("/v1/models")
    async def models(request: Request) -> JSONResponse:
        """Lists the base, the adapters and the aliases."""
        return JSONResponse({"object": "list", "data": _cards(service)})

    @router.get("/v1/models/{model_id:path}")
    async def model(model_id: str, request: Request) -> JSONResponse:
        """Tells of one."""
        for card in _cards(service):
            if card["id"] == model_id:
                return JSONResponse(card)
        raise unknown_model(model_id[:200], "is not served here")

    @router.post("/v1/chat/completions", responses=_STREAMS)
    async def chat(body: ChatBody, request: Request) -> Response:
        """Answers a conversation."""
        ask = await unless_gone(request.receive, service.call(_chat_ask, service, body, request))
        job, reads_calls = Job(service, ask), bool(ask.requests[0].tools)
        if body.stream:
            return await _streamed(job, request, lambda p: chat_answers.chunks(job, p, reads_calls, _usage(body)))
        await unless_gone(request.receive, job.complete())
        return JSONResponse(chat_answers.whole_answer(job, reads_calls))

    @router.post("/v1/completions", responses=_STREAMS)
    async def completions(body: CompletionBody, request: Request) -> Response:
        """Goes on from texts or tokens."""
        ask = await unless_gone(request.receive, service.call(_completion_ask, service, body, request))
        job, echo = Job(service, ask), _echo(service, body)
        if body.stream:
            return await _streamed(job, request, lambda p: completion_chunks(job, p, echo, _usage(body)))
        await unless_gone(request.receive, job.complete())
        return JSONResponse(whole_completion(job, echo))

    @router.post("/tokenize")
    async def tokenize(body: TokenizeBody, request: Request) -> JSONResponse:
        """Gives the tokens of a prompt."""
        target = _target(service, body.model, None, request)
        param = "prompt" if body.messages is None else "messages"

        def tokens() -> list[int]:
            try:
                return service.engine.tokenize(tokenize_request(body, service.template(target.adapter), target.adapter))
            except Exception as error:
                raise as_api_error(error, param) from error

        ids = await service.call(tokens)
        found: dict[str, Any] = {"count": len(ids), "max_model_len": service.room, "tokens": ids}
        if body.return_token_strs:
            found["token_strs"] = [service.texts.text(token) for token in ids]
        return JSONResponse(found)

    return router


async def _streamed(job: Job, request: Request, chunks: Any) -> Response:
    """A stream that begins with the first piece: what keeps a request from being answered is an error with a status."""
    pieces = job.pieces()
    first = await unless_gone(request.receive, anext(pieces))
    return EventStream(with_errors(chunks(_after(first, pieces))))


async def _after(
    first: tuple[int, Piece], pieces: AsyncGenerator[tuple[int, Piece], None]
) -> AsyncGenerator[tuple[int, Piece], None]:
    async with aclosing(pieces) as rest:
        yield first
        async for piece in rest:
            yield piece


def _chat_ask(service: Service, body: ChatBody, request: Request) -> Ask:
    target = _target(service, body.model, body.user, request)
    template = service.template(target.adapter)
    asked = chat_request(body, template, target.adapter)
    given = body.max_tokens is not None or body.max_completion_tokens is not None
    told = {"user": body.user, "metadata": body.metadata}
    ask = _ask(service, body, request, target, ("chatcmpl", [asked], "messages", given, told))
    # A guided answer is what its guide says, to the letter, as `lamina generate` has it.
    return ask if ask.sampling.guide is not None else replace(ask, voice=template.voice)


def _completion_ask(service: Service, body: CompletionBody, request: Request) -> Ask:
    target = _target(service, body.model, body.user, request)
    asked = completion_requests(body, service.template(target.adapter), target.adapter, service.limits)
    given = body.max_tokens is not None
    return _ask(service, body, request, target, ("cmpl", asked, "prompt", given, {"user": body.user}))


def _ask(
    service: Service,
    body: ChatBody | CompletionBody,
    request: Request,
    target: Target,
    rest: tuple[str, list[Any], str, bool, dict[str, Any]],
) -> Ask:
    check_stream(body)
    kind, asked, param, given, told = rest
    key = request.state.caller.id
    return Ask(
        kind=kind,
        target=target,
        sampling=sampling_of(body, service.defaults, service.limits, service.tokens),
        n=answers_wanted(body, service.limits),
        requests=asked,
        param=param,
        max_tokens_given=given,
        key=key,
        request_id=request.state.request_id,
        salt=salt_of(key, body.cache_salt, service.settings.isolate_keys),
        told={name: value for name, value in told.items() if value},
        guide_field=guide_field(body),
    )


def _target(service: Service, name: str, user: str | None, request: Request) -> Target:
    return service.router.find(name, list(service.engine.adapters), user, request.headers)


def _echo(service: Service, body: CompletionBody) -> Echo:
    if not body.echo:
        return Echo()
    texts = [prompt if isinstance(prompt, str) else service.texts.decode(prompt) for prompt in prompts_of(body)]
    return Echo(texts, body.max_tokens == 0)


def _usage(body: SamplingBody) -> bool:
    return bool(body.stream_options is not None and body.stream_options.include_usage)


def _cards(service: Service) -> list[dict[str, Any]]:
    """The base, adapters and aliases, as OpenAI lists models; `root` and `parent` as vLLM has them."""
    router = service.router
    head = {"object": "model", "created": service.created, "owned_by": "lamina"}
    cards = [{"id": router.base, **head, "root": service.root, "parent": None, "max_model_len": service.room}]
    for facts in service.engine.loaded():
        known = {"root": str(facts.path), "parent": router.base, "digest": facts.digest, "method": facts.method}
        cards.append({"id": facts.name, **head, **known, "max_model_len": service.room})
    for name, alias in router.aliases.items():
        cards.append({"id": name, **head, "root": None, "parent": router.base, "weights": alias.weights})
    return cards
