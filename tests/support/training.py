"""What the training tests share: a small data file and a configuration on the two-layer model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lamina.runs.events import Event, Note, OnEvent

WORDS = ("red", "green", "blue", "round", "square", "small", "large", "old", "new", "quick", "slow", "warm")


def write_rows(path: Path, count: int = 24) -> Path:
    """Prompts that name two words, answers that swap them."""
    rows = [
        {
            "prompt": f"{WORDS[i % 12]} {WORDS[(5 * i + 1) % 12]} {i}",
            "completion": f"{WORDS[(5 * i + 1) % 12]}!" * (1 + i % 3),
        }
        for i in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def settings(folder: Path, model: Path, name: str = "run", **changes: Any) -> dict[str, Any]:
    """A run of 12 steps with dropout, accumulation, evaluations and checkpoints."""
    data = folder / "rows.jsonl"
    if not data.exists():
        write_rows(data)
    values: dict[str, Any] = {
        "model": str(model),
        "data": {"train": str(data), "eval": 0.2, "max_length": 128, "packing": False},
        "method": {"type": "lora", "r": 4, "lora_alpha": 8, "lora_dropout": 0.1},
        "train": {
            "max_steps": 12,
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 2,
            "learning_rate": 5e-3,
            "warmup_ratio": 0.1,
            "eval_steps": 4,
            "save_steps": 3,
        },
        "dtype": "float32",
        "output_dir": str(folder / name),
    }
    for section, change in changes.items():
        values[section] = {**values.get(section, {}), **change} if isinstance(change, dict) else change
    return values


def notes_into(messages: list[str]) -> OnEvent:
    """A callback that keeps what notes say."""

    def on_event(event: Event) -> None:
        if isinstance(event, Note):
            messages.append(event.message)

    return on_event
