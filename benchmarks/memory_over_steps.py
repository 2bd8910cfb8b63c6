"""Whether memory grows with the steps: the peak of a run after 20 steps and after 200, for several spreads of lengths.

Each file is trained on in a process of its own: LoRA r=16 on every linear layer, rows packed to their natural lengths,
so that each micro-batch has documents of other lengths than the one before.

    python benchmarks/memory_over_steps.py FILE [FILE ...] [--model smollm2-135m] [--steps 200] [--tokens 1024] [--json]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

EARLY = 20
GIB = 2**30

TRAIN = """
import json, sys
import lamina

run = lamina.train(json.loads(sys.argv[1]))
steps = [json.loads(line) for line in run.metrics_path.read_text(encoding="utf-8").splitlines()]
report = json.loads(run.data_report_path.read_text(encoding="utf-8"))["train"]
peaks = {event["step"]: event["memory_bytes"] for event in steps if event["event"] == "step"}
print(json.dumps([peaks, report["shortest"], report["median"], report["longest"]]))
"""


def measure(file: Path, model: str, steps: int, tokens: int, folder: Path) -> dict[str, Any]:
    """Trains on one file, and gives the peaks of the process in bytes with the lengths of its rows in tokens."""
    config = {
        "model": model,
        "data": {"train": str(file), "eval": None, "max_length": tokens, "overlong": "split", "max_dropped": 1.0},
        "train": {"max_steps": steps, "per_device_train_batch_size": 1, "save_steps": 10 * steps},
        "output_dir": str(folder / file.stem),
    }
    command = [sys.executable, "-c", TRAIN, json.dumps(config)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    peaks, shortest, median, longest = json.loads(done.stdout.splitlines()[-1])
    early, late = peaks[str(EARLY)], peaks[str(steps)]
    lengths = {"shortest": shortest, "median": median, "longest": longest}
    return {"file": file.name, **lengths, "first": peaks["1"], "early": early, "late": late, "ratio": late / early}


def main() -> None:
    """Prints a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=1024, help="Real tokens of a step, at most.")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results = [
            measure(file, arguments.model, arguments.steps, arguments.tokens, Path(folder)) for file in arguments.files
        ]
    if arguments.json:
        print(json.dumps(results, indent=2))
        return
    late = f"step {arguments.steps}"
    table = Table("file", "tokens a row", "peak at step 1", f"at step {EARLY}", f"at {late}", f"{late} / step {EARLY}")
    for one in results:
        lengths = f"{one['shortest']} / {one['median']} / {one['longest']}"
        peaks = [f"{one[name] / GIB:.3f} GiB" for name in ("first", "early", "late")]
        table.add_row(one["file"], lengths, *peaks, f"{one['ratio']:.3f}")
    Console().print(table)


if __name__ == "__main__":
    main()
