"""A large data file: time and peak memory of encoding it, of starting from the cache, and of checking it.

Writes a file of synthetic conversations (words of real text in random order, 200 to 300 tokens a row), then runs each
side in a process of its own. The peer is `datasets.map` with the model's chat template and tokenizer, batched, in as
many processes as there are cores: its best settings. Both sides tokenize; only lamina also finds out which tokens are
supervised, splits and packs. With several rounds the sides take turns, and the ratio is the median of the rounds'. The
processor time of all of a side's processes is given too: it is less moved by what else the machine does.

    python benchmarks/data_scale.py TEXT.jsonl --rows 1000000 --folder FOLDER [--rounds N] [--skip-check] [--skip-peer]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

GIB = 2**30
_LAMINA = """
import json, sys, time
began = time.perf_counter()
from lamina.config import DataConfig
from lamina.data.dataset import build_dataset
from lamina.chat.template import build_template
from lamina.models.load import load_tokenizer
from lamina.models.source import find_model
template = build_template(load_tokenizer(find_model("smollm2-135m")))
ready = time.perf_counter()
config = DataConfig(train=sys.argv[1], eval=0.01)
data = build_dataset(config, template, 4, 0, lambda text: print(text, file=sys.stderr))
done = time.perf_counter()
print(json.dumps({"import_seconds": ready - began, "seconds": done - ready, "rows": data.report.files[0].rows,
    "tokens": data.report.train.tokens + data.report.eval.tokens, "packing": data.report.packing_efficiency}))
"""
_PEER = """
import json, sys, time
import datasets
from lamina.models.load import load_tokenizer
from lamina.models.source import find_model
tokenizer = load_tokenizer(find_model("smollm2-135m"))
def encode(batch):
    texts = tokenizer.apply_chat_template(batch["messages"], tokenize=False)
    return {"input_ids": tokenizer(texts, add_special_tokens=False, return_attention_mask=False).input_ids}
began = time.perf_counter()
rows = datasets.load_dataset("json", data_files=sys.argv[1], split="train", cache_dir=sys.argv[2])
read = time.perf_counter()
encoded = rows.map(encode, batched=True, batch_size=1000, num_proc=int(sys.argv[3]), remove_columns=rows.column_names)
done = time.perf_counter()
print(json.dumps({"seconds": done - began, "map_seconds": done - read, "rows": len(encoded)}))
"""


def write_rows(path: Path, source: Path, rows: int) -> None:
    """Conversations of words drawn from a text, so that tokens are as in real text and no row is like another."""
    words = np.array(" ".join(json.loads(line)["text"] for line in source.read_text().splitlines()).split())
    rng = np.random.default_rng(0)
    with path.open("w", encoding="utf-8") as file:
        for _ in range(rows):
            drawn = words[rng.integers(0, len(words), int(rng.integers(150, 220)))].tolist()
            cut = len(drawn) // 3
            turns = [
                {"role": "user", "content": " ".join(drawn[:cut])},
                {"role": "assistant", "content": " ".join(drawn[cut:])},
            ]
            file.write(json.dumps({"messages": turns}, ensure_ascii=False) + "\n")


def run(command: list[str], cache: Path) -> dict[str, Any]:
    """Runs a command: its JSON, its wall time, and the peak of the memory of all of its processes together."""
    environment = {**os.environ, "LAMINA_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
    began, peak, ended = time.perf_counter(), [0], threading.Event()
    before = _processor_seconds()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as child:

        def watch() -> None:
            while not ended.wait(0.2):
                peak[0] = max(peak[0], _resident(child.pid))

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        output, _ = child.communicate()
        ended.set()
    if child.returncode not in (0, 1) or not output.strip():
        sys.exit(f"{command[:4]} failed with {child.returncode}")
    wall, processor = time.perf_counter() - began, _processor_seconds() - before
    return {"wall_seconds": wall, "processor_seconds": processor, "peak_bytes": peak[0], **json.loads(output)}


def _processor_seconds() -> float:
    """Of all processes that were started here and have ended, with those that they started."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _resident(pid: int) -> int:
    """Private and shared memory of a process tree, shared pages counted once a process (PSS)."""
    total = 0
    try:
        parent = psutil.Process(pid)
        for process in (parent, *parent.children(recursive=True)):
            total += process.memory_full_info().pss
    except psutil.Error:
        pass
    return total


def measure(data: Path, args: argparse.Namespace) -> dict[str, Any]:
    """One round: each side once."""
    cache = args.folder / "cache"
    # Converted models and the like may stay, encoded rows not.
    shutil.rmtree(cache / "tokens", ignore_errors=True)
    found = {
        "lamina, first start": run([sys.executable, "-c", _LAMINA, str(data)], cache),
        "lamina, from the cache": run([sys.executable, "-c", _LAMINA, str(data)], cache),
    }
    if not args.skip_peer:
        peer_cache = args.folder / "peer"
        shutil.rmtree(peer_cache, ignore_errors=True)
        command = [sys.executable, "-c", _PEER, str(data), str(peer_cache), str(os.cpu_count())]
        found["datasets.map"] = run(command, cache)
        shutil.rmtree(peer_cache, ignore_errors=True)
    if not args.skip_check:
        command = [sys.executable, "-m", "lamina", "data", "check", str(data), "--json"]
        figures = run(command, cache)
        kept = ("wall_seconds", "processor_seconds", "peak_bytes")
        found["lamina data check"] = {key: figures[key] for key in kept}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="a .jsonl file with `text`, for words")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--skip-check", action="store_true")
    parser.add_argument("--skip-peer", action="store_true")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    data = args.folder / f"rows-{args.rows}.jsonl"
    if not data.is_file():
        write_rows(data, args.source, args.rows)
    rounds = [measure(data, args) for _ in range(args.rounds)]
    found = rounds[-1]
    found["rounds"] = rounds[:-1]
    if not args.skip_peer:
        found["rate_ratio"] = statistics.median(
            sides["datasets.map"]["seconds"] / sides["lamina, first start"]["seconds"] for sides in rounds
        )
    if args.json:
        print(json.dumps({"rows": args.rows, "bytes": data.stat().st_size, **found}))
        return
    table = Table("last round", "seconds", "rows/s", "processor seconds", "peak GiB")
    for name, figures in found.items():
        if isinstance(figures, dict):
            seconds = figures.get("seconds", figures["wall_seconds"])
            cells = (f"{seconds:.1f}", f"{args.rows / seconds:,.0f}", f"{figures['processor_seconds']:.1f}")
            table.add_row(name, *cells, f"{figures['peak_bytes'] / GIB:.2f}")
    console = Console()
    console.print(table)
    if not args.skip_peer:
        console.print(f"lamina's rate is {found['rate_ratio']:.2f}x datasets.map's (median)")


if __name__ == "__main__":
    main()
