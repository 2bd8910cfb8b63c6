"""What adapters cost a step of generation: milliseconds of one step for 32 rows, bare and with an adapter each.

The kernels alone are timed, without scheduler or sampling: `lamina bench serve` times the whole. Weights are random.
Loads take turns, step by step, and the lower quartile is printed, since other work can only add to a step.

    python benchmarks/mixed_step.py --width 576 --inner 1536 --heads 9 --key-heads 3 --layers 30
    python benchmarks/mixed_step.py --width 2048 --inner 5632 --heads 32 --key-heads 4 --layers 6
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from lamina.compute.decoding import AdapterForms, Decoder, build_decoder
from lamina.compute.decoding.decoder import Rows
from lamina.config import METHOD_CONFIGS
from lamina.methods.shared.base import inject
from lamina.models.copies import shared_copy

ROWS, POSITION, BLOCKS = 32, 100, 8

# Adapters of the rows, in turn; None is the bare base.
LOADS: dict[str, list[dict[str, Any] | None]] = {
    "bare": [None],
    "lora": [{"type": "lora", "r": 16}],
    "ia3": [{"type": "ia3"}, *[None] * 7],
    "mixed": [
        {"type": "lora", "r": 16},
        {"type": "dora", "r": 8},
        {"type": "lora", "r": 4},
        {"type": "ia3"},
        {"type": "lora", "r": 64},
        None,
        {"type": "lora", "r": 8},
        {"type": "lora", "r": 32},
    ],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("width", 576), ("inner", 1536), ("heads", 9), ("key-heads", 3), ("layers", 30)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--vocabulary", type=int, default=2000)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--loads", default=",".join(LOADS), help="separated by commas; the first is compared with")
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=args.vocabulary,
        hidden_size=args.width,
        intermediate_size=args.inner,
        num_hidden_layers=args.layers,
        num_attention_heads=args.heads,
        num_key_value_heads=args.key_heads,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, args.dtype)).eval().requires_grad_(False)
    decoder = build_decoder(model)
    if not isinstance(decoder, Decoder):
        raise SystemExit(f"the kernels do not run this model: {decoder}")
    decoder.allocate(ROWS * BLOCKS)
    names = args.loads.split(",")
    loads = {name: [adapter_of(model, decoder, LOADS[name], row) for row in range(ROWS)] for name in names}
    times: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(args.steps + 2):
        for name, adapters in loads.items():
            rows = rows_of(decoder, adapters)
            begin = time.perf_counter()
            decoder.step(rows)
            times[name].append(1000 * (time.perf_counter() - begin))
    found = {name: statistics.quantiles(each[2:], n=4)[0] for name, each in times.items()}
    if args.json:
        print(json.dumps(found))
        return
    for name, milliseconds in found.items():
        print(f"{name:8} {milliseconds:8.1f} ms  {milliseconds / found[names[0]]:.2f}x")


def adapter_of(model: Any, decoder: Decoder, kinds: list[dict[str, Any] | None], row: int) -> AdapterForms | None:
    """An adapter of a row's own, with random numbers."""
    kind = kinds[row % len(kinds)]
    if kind is None:
        return None
    injection = inject(shared_copy(model), METHOD_CONFIGS[kind["type"]].model_validate(kind), row)
    with torch.no_grad():
        for tensor in injection.tensors().values():
            tensor += 0.02 * torch.randn(tensor.shape)
    return decoder.forms(injection.row_forms())


def rows_of(decoder: Decoder, adapters: list[AdapterForms | None]) -> Rows:
    """One new token for each of so many sequences."""
    count = len(adapters)
    return Rows(
        decoder.embed(torch.arange(5, 5 + count)).contiguous(),
        np.full(count, POSITION, dtype=np.int64),
        np.arange(count, dtype=np.int64),
        np.arange(count * BLOCKS, dtype=np.int32).reshape(count, BLOCKS),
        [(row, row + 1, adapter) for row, adapter in enumerate(adapters)],
        np.arange(count, dtype=np.int64),
    )


if __name__ == "__main__":
    main()
