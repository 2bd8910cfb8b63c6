"""What a side is asked to do, and what it answers: plain data that travels between processes as JSON."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from lamina import files
from lamina.bench.flops import StepFlops
from lamina.data.example import EncodedExample


@dataclass(frozen=True)
class Job:
    """One side's work in one process.

    Attributes:
        side: Which contestant; the name of its file in `sides/`.
        model: Folder of the base's config, safetensors and tokenizer.
        rows: File written by `write_rows`.
        dtype: What the base is held in: `bfloat16` or `float32`.
        max_length: Longest document in tokens; a step holds a whole number of these.
        warmup: Steps at the start that are taken but not timed; at least 1.
        rank: LoRA's r, on every linear layer but the head.
        alpha: LoRA's alpha.
        learning_rate: Constant over the steps.
        max_grad_norm: Gradients are clipped to it.
        seed: Of the adapter's random start.
    """

    side: str
    model: str
    rows: str
    dtype: str
    max_length: int
    warmup: int
    rank: int
    alpha: float
    learning_rate: float
    max_grad_norm: float
    seed: int

    @cached_property
    def batches(self) -> list[list[EncodedExample]]:
        """The examples of each optimizer step, in order: the same for every side."""
        content = json.loads(Path(self.rows).read_text(encoding="utf-8"))
        examples = [
            EncodedExample(np.array(ids, np.int32), np.array(supervised, bool), row)
            for ids, supervised, row in content["examples"]
        ]
        return [[examples[index] for index in step] for step in content["steps"]]

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        return dataclasses.asdict(self)


def write_rows(path: Path, batches: Sequence[Sequence[EncodedExample]]) -> None:
    """Writes tokenised rows and the steps that they go into, for the sides' processes."""
    examples = [example for batch in batches for example in batch]
    first = np.cumsum([0, *(len(batch) for batch in batches)]).tolist()
    content = {
        "examples": [[e.input_ids.tolist(), e.supervised.astype(int).tolist(), e.row] for e in examples],
        "steps": [list(range(a, b)) for a, b in itertools.pairwise(first)],
    }
    files.write_text(path, json.dumps(content))


@dataclass(frozen=True)
class Step:
    """One optimizer step as it was measured.

    Attributes:
        seconds: Wall time of forward, backward, clipping and update, and of making the batch.
        loss: Mean over the step's supervised tokens.
        tokens: Real tokens; padding does not count.
        supervised_tokens: Those in the loss.
        flops: What the step's mathematics needs (see `flops.py`).
        limit_seconds: What that takes at the rate of plain matrix products measured around the step; None for a
            warm-up step.
        other_cores: Cores that other processes kept busy meanwhile; two threads of a side wait for each other, so even
            half a core taken away slows it down several times over.
    """

    seconds: float
    loss: float
    tokens: int
    supervised_tokens: int
    flops: StepFlops
    limit_seconds: float | None
    other_cores: float = 0.0

    @property
    def share(self) -> float | None:
        """Of the machine's limit: 1 would be a step that does nothing but needed products, at full rate."""
        return None if self.limit_seconds is None else self.limit_seconds / self.seconds

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Step:
        """The inverse of `as_json`."""
        return cls(**{**value, "flops": StepFlops(**value["flops"])})


@dataclass(frozen=True)
class SideRun:
    """What one process of one side measured.

    Attributes:
        side: Its name.
        settings: What the side chose, and the version of its library.
        warmup: How many of the steps are not timed.
        steps: Every step, warm-up included.
        loaded_bytes: Memory once model, adapter and optimizer were there.
        peak_bytes: The most memory until the end.
    """

    side: str
    settings: dict[str, Any]
    warmup: int
    steps: list[Step]
    loaded_bytes: int
    peak_bytes: int

    @property
    def timed(self) -> list[Step]:
        """The steps that count."""
        return self.steps[self.warmup :]

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        return {**vars(self), "steps": [step.as_json() for step in self.steps]}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> SideRun:
        """The inverse of `as_json`."""
        return cls(**{**value, "steps": [Step.from_json(step) for step in value["steps"]]})
