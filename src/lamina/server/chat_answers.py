"""Answers of `/v1/chat/completions`: whole, or as chunks."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from lamina.chat.voice import Listener, Voice
from lamina.engine.generator import Piece
from lamina.server.job import Job
from lamina.server.logprobs import chat_logprobs
from lamina.server.tool_calls import CallReader, read_calls


def whole_answer(job: Job, reads_calls: bool) -> dict[str, Any]:
    """The answer to a conversation.

    Args:
        job: All answers of it are over.
        reads_calls: Whether there are functions that the model may have called.
    """
    voice, choices = job.ask.voice, []
    for index, answer in enumerate(job.answers):
        text, calls = answer.text if voice is None else voice.read(answer.text), []
        if reads_calls:
            text, calls = read_calls(text)
        message: dict[str, Any] = {"role": "assistant", "content": (text or None) if calls else text, "refusal": None}
        if calls:
            message["tool_calls"] = calls
        wanted = job.ask.sampling.logprobs is not None
        choices.append(
            {
                "index": index,
                "message": message,
                "logprobs": chat_logprobs(answer.logprobs, job.service.texts) if wanted else None,
                "finish_reason": "tool_calls" if calls else answer.finish_reason,
            }
        )
    return {**_head(job, "chat.completion"), "choices": choices, "usage": job.usage()}


async def chunks(
    job: Job, pieces: AsyncGenerator[tuple[int, Piece], None], reads_calls: bool, with_usage: bool
) -> AsyncGenerator[dict[str, Any], None]:
    """The same in chunks, as pieces come."""
    usage = {"usage": None} if with_usage else {}
    streams = {index: _Stream(job.ask.voice, reads_calls) for index in range(len(job.answers))}
    head: dict[str, Any] = {}
    async with aclosing(pieces):
        async for index, piece in pieces:
            head = head or _head(job, "chat.completion.chunk")
            thoughts = chat_logprobs(piece.logprobs, job.service.texts) if piece.logprobs else None
            for delta, reason in streams[index].deltas(piece):
                logprobs = thoughts if delta.keys() == {"content"} else None
                choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
                yield {**head, "choices": [choice], **usage}
    if with_usage:
        yield {**head, "choices": [], "usage": job.usage()}


class _Stream:
    """One answer in deltas."""

    def __init__(self, voice: Voice | None, reads_calls: bool) -> None:
        self._listener = None if voice is None else Listener(voice)
        self._calls = CallReader() if reads_calls else None
        self._begun = False

    def deltas(self, piece: Piece) -> list[tuple[dict[str, Any], str | None]]:
        """What a piece adds, each with the reason of the end if it is the last."""
        found: list[tuple[dict[str, Any], str | None]] = []
        if not self._begun:
            found.append(({"role": "assistant", "content": ""}, None))
            self._begun = True
        over, calls = piece.finish_reason is not None, []
        text = piece.text
        if self._listener is not None:
            text = self._listener.hear(text) + (self._listener.end() if over else "")
        if self._calls is not None:
            text = self._calls.hear(text)
            if over:
                rest, calls = self._calls.end()
                text += rest
        if text or piece.logprobs:
            found.append(({"content": text}, None))
        if calls:
            found.append(({"tool_calls": [{"index": place, **call} for place, call in enumerate(calls)]}, None))
        if over:
            found.append(({}, "tool_calls" if calls else piece.finish_reason))
        return found


def _head(job: Job, kind: str) -> dict[str, Any]:
    return {
        "id": job.id,
        "object": kind,
        "created": job.created,
        "model": job.ask.target.name,
        "system_fingerprint": job.fingerprint,
    }
