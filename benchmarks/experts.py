"""Tokens per second of LoRA on a mixture of experts, beside transformers and peft: one training step, on one core.

    python benchmarks/experts.py [--tokens 512] [--seconds 6] [--json]

Each shape is a Mixtral of two layers with random weights in float32, with 8 experts of which a token takes 2, and 64 of
which it takes 8. `experts` is LoRA of rank 16 on attention, experts and router; `attention` on attention alone, with
frozen experts. Both sides take the same documents, packed in one row, and do forward, backward and nothing else; sides
take turns. The factors are the same, and so is the loss, to 1e-4.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import peft
import torch
from rich.console import Console
from rich.table import Table
from transformers import MixtralConfig, MixtralForCausalLM, PreTrainedModel

from lamina.compute.fusion import fast_path
from lamina.config.methods.lora import LoraConfig
from lamina.methods.shared.base import inject

SHAPES = {
    "8 experts, 2 a token": {"num_local_experts": 8, "num_experts_per_tok": 2, "intermediate_size": 512},
    "64 experts, 8 a token": {"num_local_experts": 64, "num_experts_per_tok": 8, "intermediate_size": 128},
}
WIDTH, VOCABULARY, RANK = 256, 1024, 16
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
TARGETS = {"experts": "all-linear", "attention": ATTENTION}


def build(shape: dict[str, int]) -> PreTrainedModel:
    """A model of two layers, the same every time."""
    torch.manual_seed(0)
    heads = {"num_attention_heads": 8, "num_key_value_heads": 4, "num_hidden_layers": 2}
    config = MixtralConfig(hidden_size=WIDTH, vocab_size=VOCABULARY, **heads, **shape)  # pyright: ignore[reportArgumentType]
    return MixtralForCausalLM(config).float().requires_grad_(False)


def lamina_step(model: PreTrainedModel, targets: Any, ids: torch.Tensor, stack: ExitStack) -> Callable[[], float]:
    """A training step of lamina's."""
    inject(model, LoraConfig(r=RANK, target_modules=targets), seed=0)
    model.train()
    stack.enter_context(fast_path(model))
    positions = torch.arange(ids.shape[1])[None]

    def step() -> float:
        model.zero_grad()
        logits = model(input_ids=ids, position_ids=positions, document_lengths=[ids.shape[1]], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:])
        loss.backward()
        return float(loss)

    return step


def peft_step(model: PreTrainedModel, targets: Any, ids: torch.Tensor) -> Callable[[], float]:
    """A training step of transformers' with peft's adapter."""
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=RANK, lora_alpha=32, target_modules=targets))
    wrapped.train()

    def step() -> float:
        wrapped.zero_grad()
        logits = wrapped(input_ids=ids, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:])
        loss.backward()
        return float(loss)

    return step


def measure(tokens: int, seconds: float) -> list[dict[str, Any]]:
    """Measures every shape and every choice of targets: the median step of each side."""
    torch.set_num_threads(1)
    ids = torch.randint(0, VOCABULARY, (1, tokens), generator=torch.Generator().manual_seed(1))
    found = []
    for shape, sizes in SHAPES.items():
        for name, targets in TARGETS.items():
            with ExitStack() as stack:
                ours, theirs = lamina_step(build(sizes), targets, ids, stack), peft_step(build(sizes), targets, ids)
                losses = ours(), theirs()
                assert abs(losses[0] - losses[1]) < 1e-4, losses
                times: dict[str, list[float]] = {"lamina": [], "peft": []}
                until = time.perf_counter() + seconds
                while time.perf_counter() < until or len(times["peft"]) < 3:
                    for side, step in (("lamina", ours), ("peft", theirs)):
                        began = time.perf_counter()
                        step()
                        times[side].append(time.perf_counter() - began)
            rates = {side: tokens / statistics.median(each) for side, each in times.items()}
            ratio = rates["lamina"] / rates["peft"]
            found.append({"shape": shape, "targets": name, **rates, "ratio": ratio, "steps": len(times["peft"])})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    found = measure(arguments.tokens, arguments.seconds)
    if arguments.json:
        print(json.dumps(found, indent=2))
        return
    table = Table("shape", "LoRA on", "lamina, tokens/s", "transformers + peft", "ratio")
    for row in found:
        figures = (f"{row['lamina']:,.0f}", f"{row['peft']:,.0f}", f"{row['ratio']:.2f}")
        table.add_row(row["shape"], row["targets"], *figures)
    Console().print(table)


if __name__ == "__main__":
    main()
