"""What the verification tests share: a configuration on a two-layer model, with dropout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.support.models_zoo import build_model, build_tokenizer
from tests.support.training import write_rows


def tiny_config(folder: Path, family: str = "llama", dtype: str = "float32", **changes: Any) -> dict[str, Any]:
    """A configuration on a model that is written to `folder`; its `output_dir` must never be touched."""
    model = folder / family
    build_model(family, vocab_size=len(build_tokenizer())).save_pretrained(model)
    build_tokenizer().save_pretrained(model)
    return {
        "model": str(model),
        "data": {"train": str(write_rows(folder / "rows.jsonl")), "max_length": 128},
        "method": {"type": "lora", "r": 4, "lora_alpha": 8, "lora_dropout": 0.1},
        "train": {"learning_rate": 5e-3},
        "dtype": dtype,
        "output_dir": str(folder / "run"),
        **changes,
    }
