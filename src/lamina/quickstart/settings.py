"""The quickstart's configuration and data file, which `lamina verify` also uses by default."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lamina import files
from lamina.quickstart.task import Request

_LORA = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"}


def quickstart_settings(
    model: str, train_file: Path, out: Path, seed: int, overrides: Iterable[str] = ()
) -> dict[str, Any]:
    """Returns the configuration for `load_config`.

    With overrides of the method or the optimizer, it has no learning rate, since the quickstart's would not suit them.
    """
    keys = {override.partition("=")[0].strip() for override in overrides}
    another = keys & {"method", "method.type", "train.optim"}
    return {
        "model": model,
        # The unseen requests are answered after training, which is more informative than their loss.
        "data": {"train": str(train_file), "eval": None, "max_length": 256, "packing": False},
        "method": {"type": "lora", **({} if another else _LORA)},
        "train": {
            "num_train_epochs": 1.0,
            "per_device_train_batch_size": 8,
            **({} if another else {"learning_rate": 1.5e-3}),
            "lr_scheduler_type": "cosine",
            "warmup_ratio": 0.1,
        },
        "output_dir": str(out),
        "seed": seed,
    }


def write_rows(path: Path, requests: list[Request]) -> None:
    """Writes requests as rows of a data file."""
    lines = [json.dumps({"messages": request.messages()}, ensure_ascii=False) for request in requests]
    files.write_text(path, "\n".join(lines) + "\n")
