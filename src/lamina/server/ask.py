"""`Ask`: what a body asks, before it is let in, and the requests to the engine that come of it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from lamina.chat.voice import Voice
from lamina.engine.generator import Request
from lamina.engine.sampling import Sampling
from lamina.server.routing import Target


@dataclass(frozen=True)
class Ask:
    """What a body asks, before anything is tokenized.

    Attributes:
        kind: The beginning of the answer's id.
        target: Who answers.
        sampling: How.
        n: Answers to each prompt.
        requests: A request for each prompt.
        param: The field of the prompts, for errors.
        max_tokens_given: Whether the request says how long answers may be.
        key: The id of the caller's key.
        request_id: Of the HTTP request.
        salt: Cached prefixes are shared within it.
        told: What else is logged, such as the user.
        voice: Reads the answers of a conversation; None leaves them as they are written.
        guide_field: The field that says what answers must be, for errors.
    """

    kind: str
    target: Target
    sampling: Sampling
    n: int
    requests: Sequence[Request]
    param: str
    max_tokens_given: bool
    key: str
    request_id: str
    salt: str = ""
    told: Mapping[str, Any] = field(default_factory=dict)
    voice: Voice | None = None
    guide_field: str = "response_format"

    def to_engine(self, ids: Sequence[int], longest: int, adapter: str | None) -> list[Request]:
        """The requests for the answers to one prompt.

        Args:
            ids: The prompt.
            longest: Tokens that an answer has room for.
            adapter: Who answers; None is the bare base.
        """
        most = min(self.sampling.max_tokens, longest)
        sampling = replace(self.sampling, max_tokens=most, min_tokens=min(self.sampling.min_tokens, most))
        return [
            Request(token_ids=ids, adapter=adapter, sampling=sampling, choice=choice, salt=self.salt)
            for choice in range(self.n)
        ]


def salt_of(key: str, given: str | None, isolate: bool) -> str:
    """What keeps cached prefixes apart: the caller's key, and what the request says."""
    own = key if isolate else ""
    return hashlib.sha256(f"{own}\0{given or ''}".encode()).hexdigest()[:32] if own or given else ""
