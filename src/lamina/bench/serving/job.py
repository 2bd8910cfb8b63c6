"""What a side is asked to serve, and what it answers: plain data that travels between processes as JSON.

This file and the rest of what a side's process imports need numpy and psutil alone: a peer may live in an environment
that has nothing else of lamina's.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class AdapterFacts:
    """An adapter that was made for a load.

    Attributes:
        name: What requests call it.
        path: Its folder.
        method: Name of its method.
        rank: LoRA's or DoRA's r; 0 for others.
        parameters: Numbers that a row's products with it read.
        virtual_tokens: Places of the cache that it puts before a sequence.
    """

    name: str
    path: str
    method: str
    rank: int
    parameters: int
    virtual_tokens: int


@dataclass(frozen=True)
class Job:
    """One side's work in one process.

    Attributes:
        side: Which contestant.
        model: Folder of the base's config, safetensors and tokenizer.
        source: What the user called the base, or the file that the folder was made from.
        prompts: A JSON file with a list of lists of token ids.
        dtype: What the base is held in: `bfloat16` or `float32`.
        adapters: What requests are spread over; empty for the bare base.
        on_disk: Whether they are too many to be kept in memory.
        concurrency: Streams of each closed loop, one loop after another.
        rate: Requests per second of an open loop, which takes the place of the closed ones; None for those.
        requests: Requests per stream in the measured window.
        max_new_tokens: Tokens of every answer.
        threads: Threads to compute with.
        seed: Of arrivals and of which adapter a request asks for.
    """

    side: str
    model: str
    source: str
    prompts: str
    dtype: str
    adapters: list[AdapterFacts]
    on_disk: bool
    concurrency: list[int]
    rate: float | None
    requests: int
    max_new_tokens: int
    threads: int
    seed: int

    def read_prompts(self) -> list[list[int]]:
        """The prompts' token ids."""
        return json.loads(Path(self.prompts).read_text(encoding="utf-8"))

    @property
    def most_streams(self) -> int:
        """The most requests that a closed loop has under way."""
        return max(self.concurrency)

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Job:
        """The inverse of `as_json`."""
        return cls(**{**value, "adapters": [AdapterFacts(**adapter) for adapter in value["adapters"]]})


@dataclass(frozen=True)
class Answer:
    """One request of the measured window. Times are in seconds since the window began.

    Attributes:
        adapter: Who answered; None for the bare base.
        prompt_tokens: Tokens of the prompt.
        asked: When it was asked; of an open loop, when it was due.
        times: When each token of the answer came.
    """

    adapter: str | None
    prompt_tokens: int
    asked: float
    times: list[float]

    @property
    def first_token_seconds(self) -> float:
        """From the request to the first token."""
        return self.times[0] - self.asked

    @property
    def between_seconds(self) -> list[float]:
        """From each token to the next."""
        return [later - earlier for earlier, later in zip(self.times, self.times[1:], strict=False)]


@dataclass(frozen=True)
class Window:
    """One load as it was measured.

    Attributes:
        concurrency: Streams; None for an open loop.
        rate: Requests per second of an open loop; None for a closed one.
        seconds: From the first request to the last token.
        other_cores: Cores that other processes kept busy meanwhile.
        answers: Every request.
    """

    concurrency: int | None
    rate: float | None
    seconds: float
    other_cores: float
    answers: list[Answer]

    @property
    def tokens(self) -> int:
        """Tokens of all answers."""
        return sum(len(answer.times) for answer in self.answers)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Window:
        """The inverse of `dataclasses.asdict`."""
        return cls(**{**value, "answers": [Answer(**answer) for answer in value["answers"]]})


@dataclass(frozen=True)
class SideRun:
    """What one process of one side measured.

    Attributes:
        side: Its name.
        settings: What the side chose, and the version of its library.
        adapters: Those that it served; a side that cannot serve a method leaves it out.
        windows: One for each load.
        peak_bytes: The most memory of its process, or of one that it started.
    """

    side: str
    settings: dict[str, Any] = field(default_factory=dict)
    adapters: list[str] = field(default_factory=list)
    windows: list[Window] = field(default_factory=list)
    peak_bytes: int = 0

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> SideRun:
        """The inverse of `as_json`."""
        return cls(**{**value, "windows": [Window.from_json(window) for window in value["windows"]]})
