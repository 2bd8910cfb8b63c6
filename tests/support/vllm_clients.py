"""Clients of a `VllmEngine` in tests: many requests at once, and what each was told."""

from __future__ import annotations

import threading
from collections.abc import Callable

from lamina.engine.generator import Piece, Request
from lamina.engine.sampling import Sampling
from lamina.server.vllm.engine import VllmEngine

Open = Callable[..., VllmEngine]


def ask(adapter: str | None = None, text: str = "red green 1", tokens: int = 8) -> Request:
    """A request for so many tokens."""
    return Request(prompt=text, adapter=adapter, sampling=Sampling(max_tokens=tokens, ignore_stop_tokens=True))


class Clients:
    """Many requests at once, and what each was told."""

    def __init__(self, engine: VllmEngine, requests: list[Request]) -> None:
        self.got: list[list[Piece | BaseException]] = [[] for _ in requests]
        self.over = threading.Semaphore(0)
        for number, request in enumerate(requests):
            engine.submit(request, lambda piece, number=number: self._take(number, piece))

    def _take(self, number: int, piece: Piece | BaseException) -> None:
        self.got[number].append(piece)
        if isinstance(piece, BaseException) or piece.finish_reason is not None:
            self.over.release()

    def begun(self) -> set[int]:
        return {number for number, pieces in enumerate(self.got) if pieces}

    def lost(self) -> set[int]:
        return {number for number, pieces in enumerate(self.got) if isinstance(pieces[-1], BaseException)}

    def wait(self) -> None:
        for _ in self.got:
            assert self.over.acquire(timeout=20)

    def texts(self) -> set[str]:
        whole = [pieces for number, pieces in enumerate(self.got) if number not in self.lost()]
        return {"".join(piece.text for piece in pieces if isinstance(piece, Piece)) for pieces in whole}
