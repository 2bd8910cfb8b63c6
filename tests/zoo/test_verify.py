"""`lamina verify` passes on every architecture on which `lamina train` does: `make zoo`."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

import lamina
from tests.support.architectures import ARCHITECTURES, build_architecture
from tests.support.models_zoo import build_tokenizer

WORDS = ["river", "stone", "blue", "seven", "walks", "quickly", "under", "bridge", "and", "then", "lamp", "salt"]


def config(folder: Path, name: str) -> dict[str, Any]:
    """A run of two steps of a fresh model on rows of nonsense."""
    model, data, rng = folder / "model", folder / "rows.jsonl", random.Random(3)
    build_architecture(name).save_pretrained(model)
    build_tokenizer().save_pretrained(model)
    rows = [
        {"prompt": " ".join(rng.choices(WORDS, k=rng.randint(3, 9))), "completion": " ".join(rng.choices(WORDS, k=5))}
        for _ in range(24)
    ]
    data.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return {
        "model": str(model),
        "data": {"train": str(data), "eval": None, "max_length": 96},
        "dtype": "float32",
        "method": {"type": "lora", "r": 3},
        "train": {"max_steps": 2, "per_device_train_batch_size": 4},
        "output_dir": str(folder / "run"),
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_verify_passes_where_train_does(name: str, tmp_path: Path) -> None:
    values = config(tmp_path, name)
    run = lamina.train(values)
    assert run.summary is not None
    result = lamina.verify(values)
    assert result.passed, [check for check in result.checks if check.passed is False]
