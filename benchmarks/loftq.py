"""What LoftQ gains before any training: loss on real text by rounds, beside the base in 16 bits and in plain NF4.

    python benchmarks/loftq.py TEXT [--model smollm2-135m] [--ranks 16,64] [--rounds 1,2,5,10] [--pieces 64] [--json]

TEXT: .txt, or .jsonl with `text`. Bases are kept in the user's cache like every quantized one.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lamina.compute.fusion import fast_path
from lamina.config.methods.lora import LoftqConfig, LoraConfig
from lamina.config.quantization import QuantizationConfig
from lamina.evaluation.forgetting import general_pieces
from lamina.losses.cross_entropy import CrossEntropy
from lamina.methods.shared.base import find_method, inject
from lamina.models.load import Base, load_base
from lamina.quantization.report import RoundingReport
from lamina.structure.head import find_head
from lamina.training.step import evaluate_loss

LENGTH = 512


def loss_of(base: Base, text: Path, pieces: int) -> float:
    """Mean loss over the tokens of the first pieces of the text."""
    documents, head = general_pieces(text, base.tokenizer, LENGTH, pieces), find_head(base.model)
    with fast_path(base.model, longest=LENGTH) as path:
        return evaluate_loss(base.model, head, CrossEntropy(), documents, 8, layout=path.layout).loss


def with_loftq(model: str, config: LoraConfig, quantization: QuantizationConfig) -> Base:
    """A quantized base with the adapter that LoftQ begins with."""
    base = load_base(model, quantization=quantization, plan_loftq=find_method(config.type).plan_loftq(config))
    inject(base.model, config, seed=0)
    return base


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--bits", type=int, default=4, choices=(4, 8))
    parser.add_argument("--ranks", default="16,64")
    parser.add_argument("--rounds", default="1,2,5,10")
    parser.add_argument("--pieces", type=int, default=64, help=f"of {LENGTH} tokens at most")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    quantization = QuantizationConfig(bits=args.bits)
    found: list[dict[str, Any]] = []

    def note(name: str, base: Base) -> None:
        error = RoundingReport(base.rounding_errors, base.packing).after if base.packing else 0.0
        found.append({"base": name, "error": error, "loss": loss_of(base, args.text, args.pieces)})
        print(json.dumps(found[-1]), file=sys.stderr, flush=True)

    note("16 bits", load_base(args.model))
    note(f"{args.bits} bits", load_base(args.model, quantization=quantization))
    for r in map(int, args.ranks.split(",")):
        for rounds in map(int, args.rounds.split(",")):
            config = LoraConfig(
                r=r, lora_alpha=2 * r, init_lora_weights="loftq", loftq_config=LoftqConfig(loftq_iter=rounds)
            )
            note(f"{args.bits} bits, LoftQ r={r}, {rounds} rounds", with_loftq(args.model, config, quantization))
    if args.json:
        print(json.dumps(found))
        return
    table = Table("base", "error of the weights", "loss at step 0")
    for row in found:
        table.add_row(row["base"], f"{row['error']:.2%}", f"{row['loss']:.4f}")
    Console().print(table)


if __name__ == "__main__":
    main()
