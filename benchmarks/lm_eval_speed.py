"""lm-eval's tasks through lamina's engine beside its own HFLM: the same tasks, model and precision, and their times.

Tasks are made on the spot in the form of MMLU, ARC, HellaSwag and GSM8K, with questions about as long as theirs; rows
of GSM8K itself if a file of them is given.

    python benchmarks/lm_eval_speed.py [--model smollm2-135m] [--rows 40] [--dtype bfloat16] [--gsm8k FILE.jsonl] \
        [--batch-size 8] [--json]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import datasets.config
from lm_eval.evaluator import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from rich.console import Console
from rich.table import Table
from tests.support.lm_eval_tasks import TASKS, write_tasks

from lamina.engine.engine import Engine
from lamina.evaluation.benchmarks.run import run_benchmarks


def main() -> None:
    """Runs each task by both, and prints the times."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m", help="alias, folder or hub id")
    parser.add_argument("--rows", type=int, default=40, help="of each task")
    parser.add_argument("--words", type=int, default=48, help="of a question, about")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--gsm8k", type=Path, help="a .jsonl file with question and answer")
    parser.add_argument("--batch-size", type=int, default=8, help="of HFLM")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    arguments = parser.parse_args()
    datasets.disable_progress_bars()
    lines = [json.loads(line) for line in arguments.gsm8k.read_text().splitlines()] if arguments.gsm8k else None
    with tempfile.TemporaryDirectory() as folder, Engine(arguments.model, dtype=arguments.dtype) as engine:
        tasks = write_tasks(Path(folder), arguments.rows, lines and lines[: arguments.rows], arguments.words)
        datasets.config.HF_DATASETS_CACHE = Path(folder) / "cache"
        run_benchmarks(engine, ["local_arc"], include_path=tasks, limit=1)  # kernels are compiled, files are read
        results = [_measure(engine, task, tasks, arguments.batch_size) for task in TASKS]
    if arguments.json:
        json.dump({"model": arguments.model, "dtype": arguments.dtype, "tasks": results}, sys.stdout)
        return
    table = Table("task", "lamina s", "HFLM s", "times as fast", "lamina", "HFLM", title=f"{arguments.model}")
    for each in results:
        values = ["  ".join(f"{value:.4f}" for value in each[side].values()) for side in ("metrics", "hflm_metrics")]
        times = [f"{each[side]:.1f}" for side in ("seconds", "hflm_seconds")]
        table.add_row(each["task"], *times, f"{each['hflm_seconds'] / each['seconds']:.1f}", *values)
    Console().print(table)


def _measure(engine: Engine, task: str, tasks: Path, batch_size: int) -> dict[str, Any]:
    began = time.perf_counter()
    (ours,) = run_benchmarks(engine, [task], include_path=tasks)
    seconds = time.perf_counter() - began
    language_model = HFLM(pretrained=engine.model, tokenizer=engine.template.tokenizer, batch_size=batch_size)  # type: ignore[arg-type]
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    began = time.perf_counter()
    theirs: Any = simple_evaluate(language_model, tasks=[task], task_manager=manager, bootstrap_iters=0)
    hflm_seconds = time.perf_counter() - began
    found = theirs["results"][task]
    return {
        "task": task,
        "seconds": seconds,
        "hflm_seconds": hflm_seconds,
        "metrics": dict(ours.metrics),
        "hflm_metrics": {name: found.get(name, found.get(f"{name},none")) for name in ours.metrics},
    }


if __name__ == "__main__":
    main()
