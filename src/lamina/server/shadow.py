"""Shadows: a copy of a request is answered by another adapter once the first answer is over, and both are stored."""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import replace
from typing import Any

from lamina.engine.generator import Request
from lamina.server.answering import Answering
from lamina.server.ask import Ask
from lamina.server.fingerprint import fingerprint
from lamina.server.prompts import check_room
from lamina.server.service import Service
from lamina.server.settings import ShadowSettings

# Copies that are answered at once; more are left out, since they must not be in the way of requests.
MOST_AT_ONCE = 16


async def send_shadow(service: Service, ask: Ask, record: dict[str, Any], shadow: ShadowSettings) -> None:
    """Answers a copy of a request and stores both answers. Whatever goes wrong, only the copy is without an answer.

    Args:
        service: The server.
        ask: The request, answered.
        record: Its record.
        shadow: Who answers the copy, and where both go.
    """
    if len(service.tasks) > MOST_AT_ONCE or service.admission.waiting > service.limits.queue // 2:
        service.metrics.shadow("left_out")
        return
    answering = Answering(service.engine, service.pool, service.limits.request_seconds)
    service.admission.running.add(answering)
    try:
        second = await _answer(service, ask, shadow, answering)
        service.metrics.shadow("answered")
    except Exception as error:
        second = {"model": shadow.to, "error": str(error)}
        service.metrics.shadow("failed")
        service.log.write("shadow_failed", request_id=ask.request_id, shadow=shadow.to, error=str(error))
    finally:
        answering.cancel()
        service.admission.running.discard(answering)
    service.write(service.shadows[shadow.file], {**record, "type": "shadow", "shadow": second})


async def _answer(service: Service, ask: Ask, shadow: ShadowSettings, answering: Answering) -> dict[str, Any]:
    adapter = None if shadow.to == service.router.base else shadow.to
    prompts = await service.call(_prompts, service, ask, adapter)
    requests: list[Request] = []
    for ids in prompts:
        longest = check_room(ids, ask.sampling.max_tokens, False, service.room, ask.param)
        requests += ask.to_engine(ids, longest, adapter)
    answers = [{"digest": None, "token_ids": [], "text": "", "finish_reason": None} for _ in requests]
    await answering.start(requests)
    async with aclosing(answering.pieces()) as pieces:
        async for number, piece in pieces:
            answer = answers[number]
            answer["text"] += piece.text
            answer["token_ids"] += piece.token_ids
            answer |= {"digest": piece.digest, "finish_reason": piece.finish_reason}
    return {
        "model": shadow.to,
        "fingerprint": fingerprint(service.digest, answers[0]["digest"], ask.sampling),
        "prompts": prompts,
        "answers": answers,
    }


def _prompts(service: Service, ask: Ask, adapter: str | None) -> list[list[int]]:
    """The request's prompts as the shadow's own template renders them, with the same reasoning switched on or off."""
    switch = service.template(adapter).switch
    found = []
    for request in ask.requests:
        values = list((request.template_kwargs or {}).values())
        kwargs = {switch: values[0]} if switch and values else None
        found.append(service.engine.tokenize(replace(request, adapter=adapter, template_kwargs=kwargs)))
    return found
