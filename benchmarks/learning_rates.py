"""Which learning rate is best for each method: evaluation loss after one short run for each of several rates.

Rates are of the series 1, 3, 10, 30, ...: first that next to the method's default and its two neighbors, then further
ones for as long as the best is the last on its side. Every run sees the same rows in the same order. Runs that were
finished are not run again, so the same command goes on where it was stopped.

    python benchmarks/learning_rates.py ROWS.jsonl --column prompt=question --column completion=answer --out FOLDER \
        [--methods lora,dora,...] [--steps 40] [--tokens 1024] [--json]
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lamina.comparison.candidates import build_candidates
from lamina.comparison.compare import compare
from lamina.config import METHOD_CONFIGS, load_config

# `bitfit` needs biases, which the embedded model has not; `peft` is many methods.
METHODS = [name for name in METHOD_CONFIGS if name not in ("bitfit", "peft")]
VARIANTS = {
    "pissa": ["method.type=lora", "method.init_lora_weights=pissa"],
    "loraplus": ["method.type=lora", "train.loraplus_lr_ratio=16"],
}
FURTHEST = 4  # steps of the series from the default


def rate_at(place: int) -> float:
    """The series: 0 -> 1, 1 -> 3, 2 -> 10, -1 -> 0.3."""
    return float(f"{'3' if place % 2 else '1'}e{place // 2}")


def place_of(rate: float) -> int:
    """Where in the series a rate is, or the nearest to it."""
    return round(2 * math.log10(rate))


def default_of(method: str) -> float:
    """The default learning rate of a method or a variant."""
    changes = VARIANTS.get(method, [f"method.type={method}"])
    return load_config({"data": {"train": "unused"}}, changes).train.peak_learning_rate


def losses_of(method: str, values: dict[str, Any], out: Path) -> dict[float, float]:
    """Rate -> evaluation loss; a run that failed counts as infinite."""
    losses: dict[int, float] = {}

    def measure(place: int) -> None:
        name = f"{method}-{rate_at(place):.0e}"
        changes = [*VARIANTS.get(method, [f"method.type={method}"]), f"train.learning_rate={rate_at(place)}"]
        candidates = build_candidates(values, out, named={name: changes})
        (outcome,) = compare(candidates, out, notify=lambda text: print(text, file=sys.stderr, flush=True)).outcomes
        losses[place] = math.inf if outcome.eval_loss is None else outcome.eval_loss

    centre = place_of(default_of(method))
    for place in (centre, centre - 1, centre + 1):
        measure(place)
    while True:
        best = min(losses, key=lambda place: losses[place])
        beyond = best - 1 if best == min(losses) else best + 1
        if beyond in losses or abs(beyond - centre) > FURTHEST:
            return {rate_at(place): losses[place] for place in sorted(losses)}
        measure(beyond)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows")
    parser.add_argument("--column", action="append", default=[], help="FIELD=COLUMN, such as prompt=question")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--methods", default=",".join(METHODS), help="separated by commas; also " + ", ".join(VARIANTS))
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--tokens", type=int, default=1024, help="of a step")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    data = {"train": args.rows, "max_rows": 500, "eval": 0.2, "max_length": args.tokens}
    if args.column:
        data["columns"] = dict(pair.split("=", 1) for pair in args.column)
    train = {"max_steps": args.steps, "per_device_train_batch_size": 1, "warmup_ratio": 0.1}
    values = {"data": data, "train": train}
    found = {method: losses_of(method, values, args.out) for method in args.methods.split(",")}
    if args.json:
        print(json.dumps(found))
        return
    table = Table("method", "default", "best", "evaluation loss by learning rate")
    for method, losses in found.items():
        best = min(losses, key=lambda rate: losses[rate])
        each = ", ".join(f"{rate:.0e}: {loss:.4f}" for rate, loss in losses.items())
        table.add_row(method, f"{default_of(method):.0e}", f"{best:.0e}", each)
    Console().print(table)


if __name__ == "__main__":
    main()
