"""`Job`: one request that was let in: its prompts as tokens, its answers as they come, what is counted and logged."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from lamina.engine.generator import Piece, PromptFacts, Request, TokenLogprobs
from lamina.server.answering import Answering
from lamina.server.ask import Ask
from lamina.server.errors import as_api_error
from lamina.server.fingerprint import fingerprint, sampling_values
from lamina.server.prompts import check_room
from lamina.server.service import Service
from lamina.server.shadow import send_shadow


@dataclass
class Answer:
    """One answer so far.

    Attributes:
        text: What the model wrote.
        token_ids: Its tokens.
        logprobs: Of its tokens, if they were asked for.
        prompt: What became of the prompt.
        finish_reason: Why it ended; None before.
        digest: Of the adapter that answers.
    """

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    prompt: PromptFacts | None = None
    finish_reason: str | None = None
    digest: str | None = None
    last: float = 0.0

    def take(self, piece: Piece) -> None:
        """Goes on by a piece."""
        self.text += piece.text
        self.token_ids += piece.token_ids
        self.logprobs += piece.logprobs
        self.prompt = piece.prompt or self.prompt
        self.finish_reason, self.digest = piece.finish_reason, piece.digest


class Job:
    """The answers to what was asked.

    Attributes:
        id: Of the answer.
        created: When, in seconds since 1970.
        ask: What was asked.
        prompts: Its prompts as tokens.
        answers: So far: the n of the first prompt, then those of the second.
    """

    def __init__(self, service: Service, ask: Ask) -> None:
        self.service, self.ask = service, ask
        self.id, self.created = f"{ask.kind}-{uuid.uuid4().hex}", int(time.time())
        self.prompts: list[list[int]] = []
        self.answers = [Answer() for _ in range(len(ask.requests) * ask.n)]
        self._waiting = len(self.answers)
        self._path: str | None = None
        self._answering = Answering(service.engine, service.pool, service.limits.request_seconds)

    @property
    def fingerprint(self) -> str:
        """Of the answers; known once one has begun."""
        digest = next((answer.digest for answer in self.answers if answer.token_ids or answer.finish_reason), None)
        return fingerprint(self.service.digest, digest, self.ask.sampling)

    async def pieces(self) -> AsyncGenerator[tuple[int, Piece], None]:
        """Does all of it: pieces with the numbers of their answers.

        Raises:
            ApiError: It cannot be answered, or not in time.
        """
        service, answering = self.service, self._answering
        service.admission.admit(self._waiting)
        service.admission.running.add(answering)
        try:
            requests = await self._requests()
            self._path = self._path_now()
            await answering.start(requests)
            async with aclosing(answering.pieces()) as pieces:
                async for number, piece in pieces:
                    self._note(self.answers[number], piece)
                    yield number, piece
            self._finish()
        except Exception as error:
            known = as_api_error(error, self.ask.param, self.ask.guide_field)
            if known.status == 500:
                service.log.failure("request_failed", error, request_id=self.ask.request_id)
            if known is error:
                raise
            raise known from error
        finally:
            answering.cancel()
            service.admission.begun(self._waiting)
            self._waiting = 0
            service.admission.running.discard(answering)

    async def complete(self) -> None:
        """Waits for all answers."""
        async with aclosing(self.pieces()) as pieces:
            async for _ in pieces:
                pass

    def usage(self, *, prompts_alone: bool = False) -> dict[str, Any]:
        """Tokens of prompts and answers; without those of answers that nobody asked for."""
        prompt = sum(map(len, self.prompts))
        answered = 0 if prompts_alone else sum(len(answer.token_ids) for answer in self.answers)
        facts = [self.answers[number].prompt for number in range(0, len(self.answers), self.ask.n)]
        cached = sum(fact.cached for fact in facts if fact is not None)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": answered,
            "total_tokens": prompt + answered,
            "prompt_tokens_details": {"cached_tokens": cached},
        }

    def record(self) -> dict[str, Any]:
        """What the log of requests keeps."""
        ask = self.ask
        adapter = None if ask.target.adapter is None else {"name": ask.target.adapter, "path": self._path}
        return {
            "type": "answer",
            "id": self.id,
            "request_id": ask.request_id,
            "created": self.created,
            "key": ask.key,
            **ask.told,
            "asked": ask.target.asked,
            "model": ask.target.name,
            "adapter": adapter,
            "fingerprint": self.fingerprint,
            "sampling": sampling_values(ask.sampling),
            "prompts": self.prompts,
            "n": ask.n,
            "answers": [
                {
                    "digest": answer.digest,
                    "token_ids": answer.token_ids,
                    "text": answer.text,
                    "finish_reason": answer.finish_reason,
                }
                for answer in self.answers
            ],
        }

    def _path_now(self) -> str | None:
        """Returns the folder that the adapter's name means now: another may have the name when the answer is over."""
        if self.ask.target.adapter is None:
            return None
        found = (facts.path for facts in self.service.engine.loaded() if facts.name == self.ask.target.adapter)
        return next((str(path.absolute()) for path in found), None)

    async def _requests(self) -> list[Request]:
        """The requests to the engine, as tokens."""
        ask, service = self.ask, self.service
        self.prompts = await service.call(lambda: [service.engine.tokenize(request) for request in ask.requests])
        requests = []
        for ids in self.prompts:
            service.metrics.prompt(ask.target.name, len(ids))
            longest = check_room(ids, ask.sampling.max_tokens, ask.max_tokens_given, service.room, ask.param)
            requests += ask.to_engine(ids, longest, ask.target.adapter)
        return requests

    def _note(self, answer: Answer, piece: Piece) -> None:
        now, name, metrics = time.monotonic(), self.ask.target.name, self.service.metrics
        if answer.last:
            metrics.between(name, now - answer.last)
        else:
            seconds = now - self._answering.began
            self._waiting -= 1
            self.service.admission.begun(1, seconds)
            metrics.first(name, seconds)
        answer.last = now
        answer.take(piece)
        if piece.finish_reason is not None:
            metrics.answer(name, len(answer.token_ids), piece.finish_reason)

    def _finish(self) -> None:
        service, ask = self.service, self.ask
        service.metrics.whole(ask.target.name, time.monotonic() - self._answering.began)
        shadow = service.router.shadow_of(ask.target, ask.request_id)
        if service.requests is None and shadow is None:
            return
        record = self.record()
        if service.requests is not None:
            service.write(service.requests, record)
        if shadow is not None and not service.admission.draining:
            task = asyncio.get_running_loop().create_task(send_shadow(service, ask, record, shadow))
            service.tasks.add(task)
            task.add_done_callback(service.tasks.discard)
