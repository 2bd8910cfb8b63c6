"""Loads adapters into an engine while streams run: how long a load takes, and what the streams notice of it.

    python benchmarks/hot_load.py [--streams 16] [--loads 40] [--rank 16] [--model smollm2-135m]

Trains a few adapters for two steps each (LoRA on all linear layers, with lock and probes), starts the streams, and
loads the adapters in turn, each under a name of its own, which is unloaded after the next load. The first load of each
adapter replays its probes; later ones know its digest. Prints one JSON object: milliseconds from call to ready; between
two tokens of a stream while nothing is loaded, while a known and while a new adapter is; and the memory of the process.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import threading
import time
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import lamina
from lamina.engine.engine import Engine
from lamina.engine.generator import Piece, Request
from lamina.engine.sampling import Sampling
from lamina.machine.memory import current_bytes

# Tokens of an answer; a stream asks anew when it has one.
ANSWER = 256
# Small, so that all of it has been in use before memory is compared.
CACHE_BYTES = 160 * 2**20
CPU = torch.device("cpu")
_WORDS = ["amber", "birch", "cedar", "dune", "ember", "fjord", "grove", "heath", "inlet", "jetty", "knoll", "ledge"]


def trained(folder: Path, model: str, rank: int, count: int) -> list[Path]:
    """Adapters that differ in their seed."""
    rows = [{"prompt": f"What follows {word}?", "completion": f"After {word} comes {word[::-1]}."} for word in _WORDS]
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    paths = []
    for seed in range(count):
        path = folder / f"run-{seed}"
        lamina.train(
            {
                "model": model,
                "data": {"train": str(data)},
                "method": {"type": "lora", "r": rank},
                "train": {"max_steps": 2, "learning_rate": 1e-3},
                "output_dir": str(path),
                "seed": seed,
            }
        )
        paths.append(path)
    return paths


class Streams:
    """Requests that are answered without end, and when each of their pieces came."""

    def __init__(self, engine: Engine, count: int, adapter: str | None) -> None:
        self._engine, self._adapter = engine, adapter
        self._stopped = threading.Event()
        self.ends, self.waits = array("d"), array("d")
        self._last = [0.0] * count
        self._tickets: list[Any] = [self._begin(number) for number in range(count)]

    def _begin(self, number: int) -> Any:
        words = random.Random(number).choices(_WORDS, k=12)
        request = Request(
            prompt=" ".join(words),
            adapter=self._adapter,
            sampling=Sampling(temperature=1.0, max_tokens=ANSWER, min_tokens=ANSWER, seed=number),
        )

        def deliver(piece: Piece | BaseException) -> None:
            now = time.perf_counter()
            if self._last[number]:
                self.ends.append(now)
                self.waits.append(now - self._last[number])
            self._last[number] = now
            if isinstance(piece, Piece) and piece.finish_reason is not None and not self._stopped.is_set():
                self._last[number] = 0.0
                self._tickets[number] = self._begin(number)

        return self._engine.submit(request, deliver)

    def close(self) -> None:
        """Cancels all of them."""
        self._stopped.set()
        for ticket in self._tickets:
            ticket.cancel()


def spread(seconds: Sequence[float]) -> dict[str, float]:
    """Milliseconds: median, 95th and 99th percentile, largest."""
    ordered = sorted(1e3 * value for value in seconds)
    at = lambda share: ordered[min(len(ordered) - 1, int(share * len(ordered)))]  # noqa: E731
    figures = {"p50": statistics.median(ordered), "p95": at(0.95), "p99": at(0.99), "largest": ordered[-1]}
    return {key: round(value, 1) for key, value in figures.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--loads", type=int, default=40)
    parser.add_argument("--adapters", type=int, default=4)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--gap", type=float, default=0.3, help="seconds between two loads")
    parser.add_argument("--runs", type=Path, help="keep the trained adapters here, and use those that are there")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as aside:
        folder = given.runs or Path(aside)
        folder.mkdir(parents=True, exist_ok=True)
        paths = sorted(folder.glob("run-*")) or trained(folder, given.model, given.rank, given.adapters)
        print(json.dumps(measure(given, paths), indent=2))


def measure(given: argparse.Namespace, paths: list[Path]) -> dict[str, Any]:
    """The figures."""
    size = (paths[0] / "adapter" / "adapter_model.safetensors").stat().st_size
    with Engine(given.model, cache_bytes=CACHE_BYTES) as engine:
        begun = time.perf_counter()
        engine.load("first", paths[0])
        idle = time.perf_counter() - begun
        streams = Streams(engine, given.streams, None)
        time.sleep(8.0)
        warm = len(streams.waits)
        time.sleep(3.0)
        quiet = streams.waits[warm:]
        loads: list[tuple[float, float]] = []
        memory = [current_bytes(CPU)]
        for number in range(given.loads):
            begun = time.perf_counter()
            engine.load(f"hot-{number}", paths[(number + 1) % len(paths)])
            loads.append((begun, time.perf_counter()))
            if number:
                engine.unload(f"hot-{number - 1}")
            memory.append(current_bytes(CPU))
            time.sleep(given.gap)
        streams.close()
    seconds = [ended - begun for begun, ended in loads]
    new = len(paths) - 1
    early = memory[max(1, len(memory) // 10)]
    return {
        "adapter_bytes": size,
        "streams": given.streams,
        "loads": given.loads,
        "first_load_idle_ms": round(1e3 * idle, 1),
        "load_new_ms": spread(seconds[:new]),
        "load_known_ms": spread(seconds[new:]),
        "between_tokens_ms": {
            "no_load": spread(quiet),
            "known": spread(_within(streams, loads[new:])),
            "new": spread(_within(streams, loads[:new])),
        },
        "memory_bytes": {"early": early, "end": memory[-1], "ratio": round(memory[-1] / early, 4)},
    }


def _within(streams: Streams, loads: list[tuple[float, float]]) -> list[float]:
    """The waits that have a part in common with a load."""
    waits = zip(streams.ends, streams.waits, strict=True)
    return [wait for at, wait in waits if any(begun < at and at - wait < ended for begun, ended in loads)]


if __name__ == "__main__":
    main()
