"""Which learning rate and beta suit each loss over answers: held-out figures after one short run for each.

At the first beta, rates are of the series 1, 3, 10, 30, ...: first that next to the default and its two neighbors, then
further ones for as long as the best is the last on its side. The other betas are tried at the best rate. The best is
the highest share of exact answers on held-out requests of the quickstart's task, and among equals the highest margin.
Every run starts from the same fine-tuned adapter (ORPO from the base) and sees the same rows in the same order. Runs
that were finished are not run again.

    python benchmarks/preference_rates.py --out FOLDER [--losses dpo,kto,simpo,orpo,cpo] [--rows 300] [--json]
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lamina.config.losses import LOSS_CONFIGS
from lamina.config.methods.lora import LoraConfig
from lamina.runs import Run
from learning_rates import FURTHEST, place_of, rate_at
from preference_shows import begun, preference_settings, scored, train

BETAS = {
    "dpo": (0.1, 0.03, 0.3),
    "kto": (0.1, 0.03, 0.3),
    "simpo": (2.0, 1.0, 5.0),
    "orpo": (0.1, 0.3),
    "cpo": (0.1, 0.03, 0.3),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--losses", default=",".join(BETAS), help="separated by commas")
    parser.add_argument("--start-rows", type=int, default=240)
    parser.add_argument("--rows", type=int, default=300)
    parser.add_argument("--eval-rows", type=int, default=100)
    parser.add_argument("--asked-rows", type=int, default=300)
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--set", action="append", default=[], help="KEY=VALUE, for all runs but the start")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    files, start = begun(args)
    rows = [{"loss": "start", "beta": "", "rate": "", **scored("start", start, files)}]
    for name in args.losses.split(","):
        rows += sweep(args, name, None if name == "orpo" else start, files)
    if args.json:
        print(json.dumps(rows))
        return
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    Console(width=180).print(table)


def sweep(args: argparse.Namespace, name: str, start: Run | None, files: dict[str, Path]) -> list[dict[str, Any]]:
    """One row for each rate at the first beta, in order, and one for each other beta at the best of them."""

    def measure(place: int, beta: float) -> dict[str, Any]:
        values = preference_settings(args, files, labels=name == "kto")
        values["train"] = {**values["train"], "learning_rate": rate_at(place)}
        values["loss"] = {"type": name, "beta": beta}
        run = train(args, f"{name}-beta={beta:g}-rate={rate_at(place):.0e}", values, start)
        row = {"loss": name, "beta": beta, "rate": f"{rate_at(place):.0e}", **scored(name, run, files, start)}
        print(json.dumps(row), file=sys.stderr, flush=True)
        return row

    first, *others = BETAS[name]
    centre = place_of(LoraConfig.learning_rate * LOSS_CONFIGS[name].learning_rate_factor)
    found = {place: measure(place, first) for place in (centre, centre - 1, centre + 1)}
    while True:
        best = max(found, key=lambda place: (found[place]["exact"], float(found[place]["margin"] or 0)))
        beyond = best - 1 if best == min(found) else best + 1
        if beyond in found or abs(beyond - centre) > FURTHEST:
            break
        found[beyond] = measure(beyond, first)
    return [*(found[place] for place in sorted(found)), *(measure(best, beta) for beta in others)]


if __name__ == "__main__":
    main()
