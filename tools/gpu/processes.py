"""Proofs of runs in several processes, one for each GPU: the same adapter as from one, whole bases or a divided one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml
from tests.support.verification import tiny_config
from tools.gpu.record import Failed, Lacking
from tools.gpu.worker import Here

from lamina.config import load_config
from lamina.distributed.launch import launch
from lamina.runs import Run
from lamina.runs.summary import Summary
from lamina.verification.processes import many_is_one

STEPS, MOST = 6, 8


def processes(here: Here) -> None:
    """The last checkpoint of one process and of several, and the adapters of `ddp` and `fsdp`."""
    count = 2 if here.small else min(MOST, torch.cuda.device_count())
    if count < 2:
        raise Lacking("a second GPU, since NCCL takes one process for each")
    folder = here.out / "processes"
    folder.mkdir(parents=True, exist_ok=True)
    settings = tiny_config(folder, "llama", "float32" if here.small else "bfloat16")
    settings["train"] = {**settings["train"], "max_steps": STEPS, "gradient_accumulation_steps": 2 * count}
    for measure in many_is_one(load_config(settings), folder, count):
        here.record.prove(f"{count} processes: {measure.what}", measure.difference, measure.tolerance)
    found = {strategy: _trained(folder, settings, strategy, count) for strategy in ("ddp", "fsdp")}
    same = found["ddp"].adapter_digest == found["fsdp"].adapter_digest
    here.record.prove("fsdp and ddp give different adapters", float(not same))
    for strategy, summary in found.items():
        here.record.tell(f"{strategy}: tokens/s", summary.tokens_per_second)
        here.record.tell(f"{strategy}: seconds in communication", summary.communication_seconds)
        here.record.tell(f"{strategy}: largest peak memory, MB", summary.peak_memory_bytes / 1e6)


def _trained(folder: Path, settings: dict[str, Any], strategy: str, count: int) -> Summary:
    values = {**settings, "output_dir": str(folder / strategy), "distributed": {"strategy": strategy}}
    path = folder / f"{strategy}.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    if code := launch(["train", str(path)], count, logs=folder / f"{strategy}-logs"):
        raise Failed(f"{strategy} in {count} processes ended with exit code {code}")
    summary = Run(folder / strategy).summary
    assert summary is not None
    return summary
