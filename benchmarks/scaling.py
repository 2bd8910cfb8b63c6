"""How a training step of lamina grows: time and memory as each dimension of the work grows alone.

A small Llama with random weights, one process a point. For each axis the script gives the exponent of growth (the slope
of the logarithms over all points) of time, of the operations that the mathematics needs, and of the memory that
training adds to the loaded model. On each of these axes the mathematics has a constant and a linear part, so an
exponent of up to 1 is what it allows; the exponent of the operations says how large the constant part is in them. (The
number of tokens stays the same on the axis of length, so attention grows in proportion to it.)

    python benchmarks/scaling.py [--axes tokens,rank,length,layers,vocabulary] [--plot docs/scaling.png] [--json]
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from transformers import LlamaConfig

from lamina.bench.job import Job, SideRun, write_rows
from lamina.bench.optional import optional
from lamina.bench.run import run_side
from lamina.bench.shapes import write_model
from lamina.data.example import EncodedExample

WARMUP = 2
GIB = 2**30


@dataclass(frozen=True)
class Work:
    """One point: a model's size and a step's.

    Attributes:
        tokens: Real tokens of a step.
        rank: LoRA's r.
        length: Tokens of each document.
        layers: Decoder layers.
        vocabulary: Tokens that the head tells apart.
    """

    tokens: int = 1024
    rank: int = 16
    length: int = 128
    layers: int = 4
    vocabulary: int = 8192


AXES: dict[str, tuple[int, ...]] = {
    "tokens": (512, 1024, 2048, 4096, 8192),
    "rank": (8, 16, 32, 64, 128),
    "length": (64, 128, 256, 512, 1024),
    "layers": (2, 4, 8, 16),
    "vocabulary": (8192, 32768, 131072, 262144),
}


@dataclass(frozen=True)
class Point:
    """What was measured.

    Attributes:
        axis: What grows.
        value: How large it was.
        seconds: The fastest of the timed steps: whatever else the machine does makes steps slower, never faster.
        gflop: What a step's mathematics needs.
        gemm_share: Of the machine's limit, see `lamina.bench.gemm`; the median of the steps.
        training_gib: Peak memory less what was there before the first step.
    """

    axis: str
    value: int
    seconds: float
    gflop: float
    gemm_share: float
    training_gib: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--axes", default=",".join(AXES), help=f"which of {', '.join(AXES)}")
    parser.add_argument("--steps", type=int, default=5, help="timed steps of each process, after two to warm up")
    parser.add_argument("--rounds", type=int, default=2, help="passes over all points")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--points", type=int, help="only so many points of each axis, from the smallest")
    parser.add_argument("--plot", type=Path, help="also draw it to this file")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    axes = args.axes.split(",")
    places = [(axis, value) for axis in axes for value in AXES[axis][: args.points]]
    runs: dict[tuple[str, int], list[SideRun]] = {place: [] for place in places}
    for number in range(args.rounds):
        for axis, value in places:
            runs[axis, value].append(measure(replace(Work(), **{axis: value}), args.steps, args.dtype))
            seconds = point_of(axis, value, runs[axis, value]).seconds
            print(f"round {number + 1}/{args.rounds}  {axis} {value}: {seconds:.3f} s", file=sys.stderr)
    points = [point_of(*place, found) for place, found in runs.items()]
    growth = {axis: exponents([point for point in points if point.axis == axis]) for axis in axes}
    if args.plot:
        plot(points, args.plot)
    if args.json:
        print(json.dumps({"points": [asdict(point) for point in points], "exponents": growth}))
    else:
        show(points, growth)


def measure(work: Work, steps: int, dtype: str) -> SideRun:
    """Trains a fresh model of that size in a process of its own."""
    config = LlamaConfig(
        vocab_size=work.vocabulary,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=work.layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=max(AXES["length"]),
        tie_word_embeddings=True,
    )
    rng = np.random.default_rng(0)
    lengths = [work.length] * (work.tokens // work.length)

    def document(length: int) -> EncodedExample:
        ids = rng.integers(0, work.vocabulary, length).astype(np.int32)
        return EncodedExample(ids, np.arange(length) >= length // 2, row=1)

    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder) / "model", config, seed=0)
        rows = Path(folder) / "rows.json"
        write_rows(rows, [[document(length) for length in lengths] for _ in range(steps + WARMUP)])
        job = Job(
            side="lamina",
            model=str(Path(folder) / "model"),
            rows=str(rows),
            dtype=dtype,
            max_length=work.length,
            warmup=WARMUP,
            rank=work.rank,
            alpha=2.0 * work.rank,
            learning_rate=2e-4,
            max_grad_norm=1.0,
            seed=0,
        )
        return run_side(job)


def point_of(axis: str, value: int, runs: Sequence[SideRun]) -> Point:
    """Reduces a point's processes to its figures."""
    steps = [step for run in runs for step in run.timed]
    return Point(
        axis=axis,
        value=value,
        seconds=min(step.seconds for step in steps),
        gflop=steps[0].flops.total / 1e9,
        gemm_share=statistics.median(step.share or 0.0 for step in steps),
        training_gib=statistics.median((run.peak_bytes - run.loaded_bytes) / GIB for run in runs),
    )


def exponents(points: list[Point]) -> dict[str, float]:
    """Slopes of the logarithms, by least squares: 1 is growth in proportion, 0 is none."""
    grown = np.log([point.value for point in points])

    def slope(figure: str) -> float:
        values = [max(getattr(point, figure), 1e-9) for point in points]
        return float(np.polyfit(grown, np.log(values), 1)[0]) if len(points) > 1 else math.nan

    return {figure: slope(figure) for figure in ("seconds", "gflop", "training_gib")}


def show(points: list[Point], growth: dict[str, dict[str, float]]) -> None:
    """Prints both tables."""
    table = Table("", "", "s a step", "GFLOP", "GEMM limit", "training memory, GiB")
    for point in points:
        table.add_row(
            point.axis,
            f"{point.value:,}",
            f"{point.seconds:.3f}",
            f"{point.gflop:,.1f}",
            f"{point.gemm_share:.0%}",
            f"{point.training_gib:.3f}",
        )
    Console().print(table)
    table = Table("grows with its power of", "time", "operations", "training memory")
    for axis, found in growth.items():
        table.add_row(axis, *(f"{found[figure]:.2f}" for figure in ("seconds", "gflop", "training_gib")))
    Console().print(table)


def plot(points: list[Point], path: Path) -> None:
    """Draws time beside the operations, and memory below, for each axis, in logarithms."""
    optional("matplotlib").use("Agg")
    pyplot: Any = optional("matplotlib.pyplot")
    axes = list(dict.fromkeys(point.axis for point in points))
    figure, panels = pyplot.subplots(2, len(axes), figsize=(3.2 * len(axes), 6), layout="constrained", squeeze=False)
    for column, axis in enumerate(axes):
        found = [point for point in points if point.axis == axis]
        values = [point.value for point in found]
        time, memory = panels[0][column], panels[1][column]
        time.loglog(values, [point.seconds for point in found], "o-", label="time of a step, s")
        # The operations, laid through the last point: time that lies above them to its left grows more slowly.
        per = found[-1].seconds / found[-1].gflop
        time.loglog(values, [point.gflop * per for point in found], "--", label="as the operations grow")
        memory.loglog(values, [max(point.training_gib, 1e-3) for point in found], "o-C2", label="training memory, GiB")
        time.set_title(axis)
        for panel in (time, memory):
            panel.set_xticks(values, [f"{value:,}" for value in values], fontsize=7)
            panel.minorticks_off()
    panels[0][0].legend(fontsize=8)
    panels[1][0].legend(fontsize=8)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
