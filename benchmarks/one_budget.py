"""Seventeen methods and settings under one budget: `lamina compare` on GSM8K, as the guides only quote it.

400 rows are trained on for two epochs in steps of 1,024 tokens, 100 more are held out for the evaluation loss, 100 rows
of the test file are answered and scored, and the loss on general text is taken before and after. What is finished is
not run again, so the same command goes on where it was stopped; two with different `--only` may run side by side in one
folder, and a last one without it writes the whole table.

    python benchmarks/one_budget.py gsm8k_train.jsonl --test gsm8k_test.jsonl --general wiki.txt --out FOLDER \
        [--only lora,full,...] [--json]
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from lamina.comparison.candidates import build_candidates
from lamina.comparison.compare import compare
from lamina.comparison.measure import Measuring
from lamina.comparison.report import columns

CANDIDATES: dict[str, list[str]] = {
    "lora": [],
    "q": ["method.target_modules=[q_proj]"],
    "qv": ["method.target_modules=[q_proj, v_proj]"],
    "qkv": ["method.target_modules=[q_proj, k_proj, v_proj]"],
    **{f"r{rank}": [f"method.r={rank}", f"method.lora_alpha={2 * rank}"] for rank in (4, 8, 32, 64)},
    "dora": ["method.type=dora"],
    "adalora": ["method.type=adalora"],
    "pissa": ["method.init_lora_weights=pissa"],
    "plus": ["train.loraplus_lr_ratio=16"],
    "bottleneck": ["method.type=bottleneck"],
    "ia3": ["method.type=ia3"],
    "prefix": ["method.type=prefix_tuning"],
    "prompt": ["method.type=prompt_tuning"],
    "full": ["method.type=full"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", help="GSM8K's training file")
    parser.add_argument("--test", required=True)
    parser.add_argument("--general", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", default=",".join(CANDIDATES), help="names, separated by commas")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    unknown = [name for name in args.only.split(",") if name not in CANDIDATES]
    if unknown:
        parser.error(f"no candidate is named {', '.join(unknown)}; there are {', '.join(CANDIDATES)}")
    values = {
        "data": {
            "train": args.rows,
            "columns": {"prompt": "question", "completion": "answer"},
            "max_rows": 500,
            "eval": 0.2,
            "max_length": 1024,
        },
        "train": {"num_train_epochs": 2, "per_device_train_batch_size": 1, "warmup_ratio": 0.1},
    }
    chosen = {name: CANDIDATES[name] for name in args.only.split(",")}
    measuring = Measuring(test=args.test, max_test_rows=100, general=args.general, general_pieces=24)
    candidates = build_candidates(values, args.out, named=chosen)
    found = compare(candidates, args.out, measuring, notify=lambda text: print(text, file=sys.stderr, flush=True))
    if args.json:
        print(json.dumps(found.as_json()))
        return
    shown = columns(found)
    table = Table(*(column.title for column in shown))
    for outcome in found.outcomes:
        table.add_row(*(column.text(outcome) for column in shown))
    Console().print(table)


if __name__ == "__main__":
    main()
