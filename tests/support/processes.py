"""What the tests of runs in several processes share: settings by method, and what must not depend on their number."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lamina.runs import Run
from lamina.runs.events import Evaluation, Step
from tests.support.training import settings

METHODS: dict[str, dict[str, Any]] = {
    "lora": {"type": "lora", "r": 4, "lora_dropout": 0.05},
    "dora": {"type": "dora", "r": 4, "lora_dropout": 0.05},
    "adalora": {"type": "adalora", "init_r": 6, "target_r": 3, "lora_dropout": 0.05},
    "ia3": {"type": "ia3"},
    "prefix": {"type": "prefix_tuning", "num_virtual_tokens": 4},
}


def values(folder: Path, model: Path, name: str, method: str, dtype: str = "float32", **changes: Any) -> dict[str, Any]:
    """Six steps with packing, accumulation and dropout."""
    train = {"gradient_accumulation_steps": 4, "max_steps": 6, "per_device_train_batch_size": 1, "eval_steps": 3}
    base = settings(folder, model, name, data={"packing": True, "max_length": 96}, train=train, dtype=dtype)
    return {**base, "method": METHODS[method], **changes}


def what_it_gave(run: Run) -> dict[str, Any]:
    """What must not depend on the number of processes."""
    summary = run.summary
    assert summary is not None
    return {
        "digest": summary.adapter_digest,
        "losses": [(event.step, event.loss, event.grad_norm, event.metrics) for event in run.events(Step)],
        "evaluations": [(event.step, event.eval_loss, event.metrics) for event in run.events(Evaluation)],
        "tokens": (summary.tokens, summary.supervised_tokens),
    }
