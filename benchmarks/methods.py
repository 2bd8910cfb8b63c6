"""What each method costs: time of a training step and peak memory, as ratios to LoRA's.

The embedded model on documents of 160 random tokens, one process a method. LoRA runs before and after each other
method, because the machine's speed moves within seconds; a ratio is that of the medians of their steps.

    python benchmarks/methods.py [--methods dora,adalora,...] [--tokens 2048] [--json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from lamina.config import METHOD_CONFIGS

REFERENCE = "lora"
DOCUMENT = 160
GIB = 2**30

# Variants of a method, and fields that one cannot do without.
SETTINGS: dict[str, dict[str, Any]] = {
    "lora q,v": {"type": "lora", "target_modules": ["q_proj", "v_proj"]},
    "lora r=64": {"type": "lora", "r": 64},
    "lora r=128": {"type": "lora", "r": 128},
    "lora dropout": {"type": "lora", "lora_dropout": 0.05},
    "pissa": {"type": "lora", "init_lora_weights": "pissa_niter_4"},
    "peft": {"type": "peft", "peft_type": "HRA"},
}


@dataclass(frozen=True)
class Cost:
    """What a process measured.

    Attributes:
        method: Its name.
        seconds: Median time of a timed step.
        peak_bytes: Of the process.
        parameters: That are trained.
        fused: Decoder layers that ran fused.
        loss: Of the last step.
    """

    method: str
    seconds: float
    peak_bytes: int
    parameters: int
    fused: int
    loss: float


def measure(name: str, tokens: int, steps: int) -> Cost:
    """Trains for a few steps in this process."""
    import torch

    from lamina.compute.fusion import fast_path
    from lamina.config import Config
    from lamina.data.batch import build_batch
    from lamina.data.example import EncodedExample
    from lamina.losses.cross_entropy import CrossEntropy
    from lamina.machine.memory import peak_bytes
    from lamina.methods.shared.base import find_method, inject
    from lamina.methods.shared.counts import count_parameters
    from lamina.models.load import load_base
    from lamina.optim.build import build_optimizer
    from lamina.structure.head import find_head
    from lamina.training.step import training_step

    config = Config.model_validate(
        {"data": {"train": "unused"}, "method": SETTINGS.get(name, {"type": name}), "seed": 0}
    )
    base = load_base(config.model)
    rng = np.random.default_rng(0)
    vocabulary = base.model.config.get_text_config().vocab_size
    examples = [
        EncodedExample(
            rng.integers(0, vocabulary, DOCUMENT, dtype=np.int32), np.arange(DOCUMENT) >= DOCUMENT // 2, row=1
        )
        for _ in range(tokens // DOCUMENT)
    ]
    torch.manual_seed(0)
    injection = inject(base.model, config.method, config.seed)
    method = find_method(config.method.type)
    injection = method.prepare(injection, [build_batch([example]).input_ids for example in examples])
    hooks, head = method.hooks(injection, 1000), find_head(base.model)
    optimizer = build_optimizer(config.train, injection.tensors())
    parameters = list(injection.tensors().values())
    base.model.train()
    seconds, loss = [], 0.0
    with fast_path(base.model, longest=max(map(len, examples))) as fusion:
        for step in range(1, steps + 3):
            began = time.perf_counter()
            parts = (base.model, head, CrossEntropy(), optimizer, parameters)
            result = training_step(*parts, [examples], 1e-4, 1.0, step, hooks, layout=fusion.layout)
            seconds.append(time.perf_counter() - began)
            loss = result.loss
    return Cost(
        name,
        statistics.median(seconds[2:]),
        peak_bytes(base.model.device),
        count_parameters(parameters),
        fusion.fused,
        loss,
    )


def in_process(name: str, args: argparse.Namespace) -> Cost:
    """The same in a process of its own."""
    command = [sys.executable, __file__, "--one", name, "--tokens", str(args.tokens), "--steps", str(args.steps)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return Cost(**json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", help="separated by commas; all of them by default")
    parser.add_argument("--tokens", type=int, default=2048, help="of a step")
    parser.add_argument("--steps", type=int, default=3, help="timed steps, after two to warm up")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(asdict(measure(args.one, args.tokens, args.steps))))
        return
    names = args.methods.split(",") if args.methods else [*METHOD_CONFIGS, *(n for n in SETTINGS if n != "peft")]
    rows = []
    before = in_process(REFERENCE, args)
    for name in names:
        if name == REFERENCE:
            continue
        try:
            cost = in_process(name, args)
        except subprocess.CalledProcessError:
            print(f"{name}: failed", file=sys.stderr)
            continue
        after = in_process(REFERENCE, args)
        reference = (before.seconds + after.seconds) / 2
        rows.append({**asdict(cost), "time": cost.seconds / reference, "memory": cost.peak_bytes / after.peak_bytes})
        print(f"{name}: {rows[-1]['time']:.2f}x the time, {rows[-1]['memory']:.2f}x the memory", file=sys.stderr)
        before = after
    if args.json:
        print(json.dumps({"reference": asdict(before), "methods": rows}))
        return
    table = Table("method", "trained", "layers fused", "time of a step", "peak memory")
    table.add_row(REFERENCE, f"{before.parameters:,}", str(before.fused), "1", f"1 ({before.peak_bytes / GIB:.2f} GiB)")
    for row in rows:
        figures = (f"{row['parameters']:,}", str(row["fused"]), f"{row['time']:.2f}", f"{row['memory']:.2f}")
        table.add_row(row["method"], *figures)
    Console().print(table)


if __name__ == "__main__":
    main()
