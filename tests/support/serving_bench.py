"""What tests of `lamina bench serve` measure: targets that answer at once, and windows with known times."""

from __future__ import annotations

import time
from pathlib import Path

from lamina.bench.serving.job import AdapterFacts, Answer, Job, Window
from lamina.bench.serving.limit import StepLimit
from lamina.bench.serving.load import Event
from lamina.bench.serving.reduce import Measured
from lamina.bench.serving.traffic import Ask


class Echo:
    """Answers every request with so many tokens, one for each call of `events`, and notes how many were under way."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens
        self.left: dict[int, int] = {}
        self.asked: list[Ask] = []
        self.most = 0

    def ask(self, ask: Ask) -> None:
        self.asked.append(ask)
        self.left[ask.number] = self.tokens
        self.most = max(self.most, len(self.left))

    def events(self, patience: float) -> list[Event]:
        events = []
        for number in list(self.left):
            self.left[number] -= 1
            events.append(Event(number, time.perf_counter(), 1, self.left[number] == 0))
            if not self.left[number]:
                del self.left[number]
        return events


def job(side: str, model: Path, prompts: Path, **changes: object) -> Job:
    """A small closed loop of one and of two streams."""
    values: dict[str, object] = {
        "side": side,
        "model": str(model),
        "source": str(model),
        "prompts": str(prompts),
        "dtype": "float32",
        "adapters": [],
        "on_disk": False,
        "concurrency": [1, 2],
        "rate": None,
        "requests": 1,
        "max_new_tokens": 4,
        "threads": 1,
        "seed": 0,
    }
    return Job.from_json({**values, **changes})


def window(seconds: float, streams: int | None = 2, adapter: str | None = None, rate: float | None = None) -> Window:
    """Two answers of five tokens each, evenly over the time; the first token comes after a fifth of it."""
    times = [seconds * step / 5 for step in range(1, 6)]
    return Window(streams, rate, seconds, 0.0, [Answer(adapter, 10, 0.0, times) for _ in range(2)])


def measured(seconds: float, adapters: list[AdapterFacts] | None = None) -> Measured:
    """The same, with a limit of 100 tokens a second."""
    served = adapters or []
    name = served[0].name if served else None
    return Measured(window(seconds, adapter=name), served, StepLimit(0.02, 0.01, 2), 1000, {"version": "1"})
