"""Training speed and memory of lamina beside a bare peft loop, on the same rows, model, rank and precision.

Each side runs in processes of its own, in turns, so that the machine's mood meets both; the table gives medians and the
median of the pairwise ratios. Speeds are real (non-padding) tokens per second of forward, backward and optimizer step.

    python benchmarks/train_speed.py [--data FILE.jsonl --column prompt=question --column completion=answer]
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lamina.config import Config, load_config
from lamina.quickstart.task import build_task

RANK, ALPHA, LEARNING_RATE = 16, 32, 2e-4
SIDES = ("lamina", "peft")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="rows to train on; by default the quickstart's")
    parser.add_argument("--column", action="append", default=[], help="FIELD=COLUMN")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--steps", type=int, default=10, help="timed steps of each process, after two to warm up")
    parser.add_argument("--batch", type=int, default=8, help="examples in a step")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        print(json.dumps({"lamina": run_lamina, "peft": run_peft}[args.side](args)))
        return
    with tempfile.TemporaryDirectory() as folder:
        if not args.data:
            args.data = str(Path(folder) / "rows.jsonl")
            rows = [json.dumps({"messages": request.messages()}) for request in build_task(0, 400, 10).train]
            Path(args.data).write_text("\n".join(rows))
        results = [{side: in_its_own_process(args, side) for side in SIDES} for _ in range(args.rounds)]
    report(args, results)


def in_its_own_process(args: argparse.Namespace, side: str) -> dict[str, Any]:
    command = [sys.executable, __file__, "--side", side, "--data", args.data, "--model", args.model]
    command += ["--steps", str(args.steps), "--batch", str(args.batch)]
    for column in args.column:
        command += ["--column", column]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{side} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def report(args: argparse.Namespace, results: list[dict[str, Any]]) -> None:
    def median(side: str, figure: str) -> float:
        return statistics.median(result[side][figure] for result in results)

    def ratio(figure: str) -> float:
        return statistics.median(result["lamina"][figure] / result["peft"][figure] for result in results)

    figures = ("tokens_per_second", "peak_memory_bytes", "last_loss")
    table = {side: {figure: median(side, figure) for figure in figures} for side in SIDES}
    ratios = {figure: ratio(figure) for figure in figures}
    if args.json:
        print(json.dumps({"medians": table, "ratios": ratios, "rounds": results}))
        return
    shown = Table("", "real tokens/s", "peak memory", "loss of the last step")
    for side, row in table.items():
        memory = f"{row['peak_memory_bytes'] / 2**30:.2f} GiB"
        shown.add_row(side, f"{row['tokens_per_second']:.0f}", memory, f"{row['last_loss']:.4f}")
    shown.add_row(
        "ratio",
        f"{ratios['tokens_per_second']:.2f}x",
        f"{ratios['peak_memory_bytes']:.2f}x",
        f"{ratios['last_loss']:.3f}",
    )
    Console().print(shown)


def config_of(args: argparse.Namespace, out: str) -> Config:
    columns = dict(pair.split("=", 1) for pair in args.column) or None
    return load_config(
        {
            "model": args.model,
            "data": {"train": args.data, "eval": None, "columns": columns, "packing": False},
            "method": {"type": "lora", "r": RANK, "lora_alpha": ALPHA},
            "train": {"per_device_train_batch_size": args.batch, "learning_rate": LEARNING_RATE},
            "output_dir": out,
        }
    )


def batches_of(args: argparse.Namespace) -> tuple[Any, list[list[Any]]]:
    """The base, and the same batches for both sides."""
    from lamina.data.dataset import build_dataset
    from lamina.data.packing import plan_epoch
    from lamina.data.template import build_template
    from lamina.models.load import load_base

    config = config_of(args, "unused")
    base = load_base(args.model)
    data = build_dataset(config.data, build_template(base.tokenizer), args.batch, config.seed)
    plan = plan_epoch([len(e) for e in data.train], args.batch, config.data.max_length, False, config.seed, 0)
    batches = [[data.train[index] for index in indices] for indices in plan][: args.steps + 2]
    return base, batches


def timed(args: argparse.Namespace, batches: list[list[Any]], step: Any) -> dict[str, Any]:
    tokens, seconds, loss = 0, 0.0, 0.0
    for number, batch in enumerate(batches):
        began = time.perf_counter()
        loss = step(batch)
        if number >= 2:
            seconds += time.perf_counter() - began
            tokens += sum(len(example) for example in batch)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"tokens_per_second": tokens / seconds, "peak_memory_bytes": peak, "last_loss": loss}


def run_lamina(args: argparse.Namespace) -> dict[str, Any]:
    from lamina.methods.base import inject
    from lamina.models.head import find_head
    from lamina.ops.attention import packed_attention
    from lamina.optim.build import build_optimizer
    from lamina.training.step import training_step

    base, batches = batches_of(args)
    config = config_of(args, "unused")
    head = find_head(base.model)
    parameters = list(inject(base.model, config.method, config.seed).tensors().values())
    optimizer = build_optimizer(config.train, parameters)
    base.model.train()

    def step(batch: list[Any]) -> float:
        return training_step(base.model, head, optimizer, parameters, [batch], LEARNING_RATE, 1.0).loss

    with packed_attention(base.model):
        return timed(args, batches, step)


def run_peft(args: argparse.Namespace) -> dict[str, Any]:
    """What a careful user writes by hand: padded to the longest of the batch, adapters in float32, fused AdamW."""
    import numpy as np
    import peft
    import torch

    base, batches = batches_of(args)
    settings = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM")
    torch.manual_seed(0)
    model = peft.get_peft_model(base.model, settings)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.0, fused=True)
    model.train()

    def step(batch: list[Any]) -> float:
        longest = max(len(example) for example in batch)
        ids = np.zeros((len(batch), longest), dtype=np.int64)
        mask, labels = np.zeros_like(ids), np.full_like(ids, -100)
        for row, example in enumerate(batch):
            ids[row, : len(example)] = example.input_ids
            mask[row, : len(example)] = 1
            labels[row, : len(example)] = np.where(example.supervised, example.input_ids, -100)
        tensors = {"input_ids": ids, "attention_mask": mask, "labels": labels}
        loss = model(**{name: torch.from_numpy(value) for name, value in tensors.items()}, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return timed(args, batches, step)


if __name__ == "__main__":
    main()
