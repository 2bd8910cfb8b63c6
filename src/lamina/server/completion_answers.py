"""Answers of `/v1/completions`: whole, or as chunks; with the prompt and what the model thought of it, if asked.

Special tokens are left out of an answer's text, as in vLLM, but not out of its tokens, nor of a prompt, which is echoed
as it was sent. A guided answer is what its guide says, to the letter.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from lamina.engine.generator import Piece, TokenLogprobs
from lamina.server.job import Answer, Job
from lamina.server.logprobs import completion_logprobs
from lamina.server.plain import PlainText, SpecialTexts


@dataclass(frozen=True)
class Echo:
    """What an answer begins with, and whether it ends there.

    Attributes:
        prompts: The prompts as texts; None if they are not asked for.
        is_all: Whether no answer is asked for, only what the model thinks of the prompts.
    """

    prompts: list[str] | None = None
    is_all: bool = False


def whole_completion(job: Job, echo: Echo) -> dict[str, Any]:
    """The answer to prompts; all answers of the job are over."""
    choices, special = [], _special(job)
    for index, answer in enumerate(job.answers):
        if echo.is_all:
            answer.text, answer.token_ids, answer.logprobs, answer.finish_reason = "", [], [], "length"
        before = "" if echo.prompts is None else echo.prompts[index // job.ask.n]
        choices.append(
            {
                "index": index,
                "text": before + (answer.text if special is None else special.removed(answer.text)),
                "logprobs": _logprobs(job, index, answer, echo)[0],
                "finish_reason": answer.finish_reason,
            }
        )
    return {**_head(job), "choices": choices, "usage": job.usage(prompts_alone=echo.is_all)}


async def completion_chunks(
    job: Job, pieces: AsyncGenerator[tuple[int, Piece], None], echo: Echo, with_usage: bool
) -> AsyncGenerator[dict[str, Any], None]:
    """The same in chunks, as pieces come."""
    usage: dict[str, Any] = {"usage": None} if with_usage else {}
    begun: dict[int, int] = {}
    special = _special(job)
    plain = {} if special is None else {index: PlainText(special) for index in range(len(job.answers))}
    head: dict[str, Any] = {}
    async with aclosing(pieces):
        async for index, piece in pieces:
            head = head or _head(job)
            part = Answer()
            part.take(piece)
            if echo.is_all:
                part.text, part.token_ids, part.logprobs = "", [], []
                part.finish_reason = part.finish_reason and "length"
            is_first = index not in begun
            text = plain[index].hear(part.text, part.finish_reason is not None) if plain else part.text
            if is_first and echo.prompts is not None:
                text = echo.prompts[index // job.ask.n] + text
            begin = begun.get(index, 0)
            logprobs, begun[index] = _logprobs(job, index, part, echo if is_first else Echo(), begin)
            if text or part.token_ids or part.finish_reason is not None or is_first:
                choice = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": part.finish_reason}
                yield {**head, "choices": [choice], **usage}
    if with_usage:
        yield {**head, "choices": [], "usage": job.usage(prompts_alone=echo.is_all)}


def _special(job: Job) -> SpecialTexts | None:
    """What the texts of answers leave out; None for nothing."""
    return None if job.ask.sampling.guide is not None else job.service.texts.special


def _logprobs(job: Job, index: int, answer: Answer, echo: Echo, begin: int = 0) -> tuple[dict[str, Any] | None, int]:
    """What the model thought of a part of a choice, and where the part ends in the choice's text."""
    if job.ask.sampling.logprobs is None:
        return None, begin
    texts = job.service.texts
    ids, found = list(answer.token_ids), list[TokenLogprobs | None](answer.logprobs)
    if echo.prompts is not None and answer.prompt is not None:
        ids = [*job.prompts[index // job.ask.n], *ids]
        found = [None, *answer.prompt.logprobs, *found]
    own = range(len(ids) - len(answer.token_ids), len(ids))
    left_out = set[int]() if job.ask.sampling.guide is not None else {at for at in own if ids[at] in texts.special_ids}
    shown = completion_logprobs(ids, found, texts, begin, left_out)
    return shown, begin + sum(len(token) for at, token in enumerate(shown["tokens"]) if at not in left_out)


def _head(job: Job) -> dict[str, Any]:
    return {
        "id": job.id,
        "object": "text_completion",
        "created": job.created,
        "model": job.ask.target.name,
        "system_fingerprint": job.fingerprint,
    }
