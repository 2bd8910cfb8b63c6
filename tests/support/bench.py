"""What the benchmark tests share: rows on disk, a job over them, and processes as if they had been measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from lamina.bench.flops import StepFlops
from lamina.bench.job import Job, SideRun, Step, write_rows
from lamina.data.example import EncodedExample

LENGTHS = ((17, 40, 9), (30, 31), (5, 12, 33, 8))


def examples(lengths: tuple[int, ...], vocabulary: int = 100) -> list[EncodedExample]:
    """Documents of random tokens; the last third of each is supervised."""
    rng = np.random.default_rng(sum(lengths))
    return [
        EncodedExample(
            rng.integers(0, vocabulary, length).astype(np.int32), np.arange(length) >= length - length // 3, row
        )
        for row, length in enumerate(lengths, start=1)
    ]


def job(side: str, model: Path, folder: Path, **changes: Any) -> Job:
    """Three steps on the two-layer model, one of them to warm up."""
    rows = folder / "rows.json"
    write_rows(rows, [examples(lengths) for lengths in LENGTHS])
    settings: dict[str, Any] = {
        "dtype": "float32",
        "max_length": 64,
        "warmup": 1,
        "rank": 4,
        "alpha": 8.0,
        "learning_rate": 1e-2,
        "max_grad_norm": 1.0,
        "seed": 3,
    }
    return Job(side=side, model=str(model), rows=str(rows), **{**settings, **changes})


def measured(side: str, seconds: list[float], *, limit: float = 1.0, peak: int = 300, loss: float = 2.0) -> SideRun:
    """A process whose first step is a warm-up step; every step has 100 tokens, 40 of them in the loss."""
    flops = StepFlops(10.0, 8.0, 2.0, 1.0, 4.0)
    steps = [
        Step(time, loss - number / 10, 100, 40, flops, None if number == 0 else limit)
        for number, time in enumerate(seconds)
    ]
    return SideRun(side, {"version": "1"}, 1, steps, loaded_bytes=100, peak_bytes=peak)


def write_file(path: Path, count: int = 40) -> Path:
    """Prompts and completions as JSON lines, under other column names."""
    rows = [{"question": f"say {i}", "answer": f"{i}!" * (1 + i % 3)} for i in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
