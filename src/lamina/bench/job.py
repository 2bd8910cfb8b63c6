"""The job of a side and its result, which are passed between processes as JSON."""

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
        side: Name of the side.
        model: Folder with the base's config, safetensors and tokenizer.
        rows: File written by `write_rows`.
        dtype: Dtype of the base: `bfloat16` or `float32`.
        max_length: Maximum length of a document in tokens.
        warmup: Number of steps at the start that are not timed; at least 1.
        rank: LoRA's r, on every linear layer except the head.
        alpha: LoRA's alpha.
        learning_rate: Learning rate, constant over the steps.
        max_grad_norm: Maximum norm for gradient clipping.
        seed: Seed of the adapter's random initialization.
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
        """The examples of each optimizer step, in order; they are the same for every side."""
        content = json.loads(Path(self.rows).read_text(encoding="utf-8"))
        examples = [
            EncodedExample(np.array(ids, np.int32), np.array(supervised, bool), row)
            for ids, supervised, row in content["examples"]
        ]
        return [[examples[index] for index in step] for step in content["steps"]]

    def as_json(self) -> dict[str, Any]:
        """Converts to plain data."""
        return dataclasses.asdict(self)


def write_rows(path: Path, batches: Sequence[Sequence[EncodedExample]]) -> None:
    """Writes tokenized rows, grouped by step, for the sides' processes."""
    examples = [example for batch in batches for example in batch]
    first = np.cumsum([0, *(len(batch) for batch in batches)]).tolist()
    content = {
        "examples": [[e.input_ids.tolist(), e.supervised.astype(int).tolist(), e.row] for e in examples],
        "steps": [list(range(a, b)) for a, b in itertools.pairwise(first)],
    }
    files.write_text(path, json.dumps(content))


@dataclass(frozen=True)
class Step:
    """The measurements of one optimizer step.

    Attributes:
        seconds: Wall time of the step, including building the batch, clipping and the update.
        loss: Mean loss over the step's supervised tokens.
        tokens: Number of tokens, without padding.
        supervised_tokens: Number of tokens in the loss.
        flops: Operations that the step requires (see `flops.py`).
        limit_seconds: Time of these operations at the speed of plain matrix products, measured around the step; None
            for a warmup step.
        other_cores: Number of cores that other processes kept busy. The threads of a side wait for each other, so
            losing half a core slows it down several times.
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
        """Share of the machine's limit: 1 would be a step of nothing but required products, at full speed."""
        return None if self.limit_seconds is None else self.limit_seconds / self.seconds

    def as_json(self) -> dict[str, Any]:
        """Converts to plain data."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Step:
        """Reads what `as_json` wrote."""
        return cls(**{**value, "flops": StepFlops(**value["flops"])})


@dataclass(frozen=True)
class SideRun:
    """The measurements of one process of one side.

    Attributes:
        side: Name of the side.
        settings: The side's settings, and the version of its library.
        warmup: Number of steps that are not timed.
        steps: All steps, including warmup.
        loaded_bytes: Memory after model, adapter and optimizer were created.
        peak_bytes: Peak memory.
    """

    side: str
    settings: dict[str, Any]
    warmup: int
    steps: list[Step]
    loaded_bytes: int
    peak_bytes: int

    @property
    def timed(self) -> list[Step]:
        """The timed steps."""
        return self.steps[self.warmup :]

    def as_json(self) -> dict[str, Any]:
        """Converts to plain data."""
        return {**vars(self), "steps": [step.as_json() for step in self.steps]}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> SideRun:
        """Reads what `as_json` wrote."""
        return cls(**{**value, "steps": [Step.from_json(step) for step in value["steps"]]})
