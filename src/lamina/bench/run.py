"""`bench_train`: measures lamina and its peers in turn, on the same rows.

Rows are tokenized once and split into optimizer steps; every side takes the same steps in the same order. In each round
every side runs in a separate process, one after the other, so that changes in the machine's speed affect all of them.
The order rotates from round to round.
"""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from lamina.bench.job import Job, SideRun, write_rows
from lamina.bench.optional import INSTALL, is_installed
from lamina.bench.process import run_module
from lamina.bench.report import BenchReport, build_report
from lamina.bench.shapes import SHAPES, shape_folder
from lamina.bench.sides import OWN, find_side, side_names
from lamina.chat.template import build_template
from lamina.config import DataConfig
from lamina.data.dataset import build_dataset
from lamina.data.example import EncodedExample
from lamina.data.packing import plan_epoch
from lamina.data.side import Batches
from lamina.errors import BenchError, ConfigError, DataError, Problem, nearest
from lamina.machine.hardware import choose_dtype, default_device, dtype_name
from lamina.models.load import load_tokenizer
from lamina.models.source import ModelSource, find_model
from lamina.progress import Notify
from lamina.quickstart.task import build_task

# Steps before timing starts: the first ones include allocations and the set-up of kernels.
WARMUP = 2

# Steps that fill less of their token budget are left out if there are enough others, since a step has fixed costs.
FULL = 0.9

_QUICKSTART_ROWS = 680
_GIB = 2**30


@dataclass(frozen=True)
class BenchSettings:
    """Settings of `lamina bench train`.

    Attributes:
        model: The base: an alias, a folder, a hub id, or a `.gguf` file.
        shape: One of `SHAPES`, with random weights, instead of a model.
        data: A data file; by default the rows of the quickstart.
        columns: FIELD -> COLUMN of that file.
        peers: Sides other than lamina; by default all that are installed.
        steps: Timed steps of each process.
        rounds: How often each side runs.
        tokens_per_step: Maximum number of real tokens in an optimizer step.
        max_length: Longer rows are dropped.
        dtype: `auto`, `bfloat16` or `float32`.
        rank: LoRA's r.
        alpha: LoRA's alpha.
        learning_rate: Constant over the steps.
        seed: Seed of the order, the adapter, and random weights.
        python: Side -> interpreter to run it with, for peers that need another environment.
    """

    model: str = "smollm2-135m"
    shape: str | None = None
    data: str | None = None
    columns: dict[str, str] | None = None
    peers: list[str] | None = None
    steps: int = 6
    rounds: int = 3
    tokens_per_step: int = 2048
    max_length: int = 1024
    dtype: str = "auto"
    rank: int = 16
    alpha: float = 32.0
    learning_rate: float = 2e-4
    seed: int = 0
    python: dict[str, str] = field(default_factory=dict)


def bench_train(settings: BenchSettings, notify: Notify = lambda message: None) -> BenchReport:
    """Trains with lamina and its peers, and compares them.

    Args:
        settings: Settings of the comparison.
        notify: Called with a message when a side starts a round, and with its result.

    Raises:
        ConfigError: A side or a shape does not exist.
        BenchError: A peer that was asked for is not installed, or lamina's own side failed.
        DataError: The rows do not fill the steps.
    """
    check_settings(settings)
    sides, left_out = choose_sides(settings)
    for side, reason in left_out.items():
        notify(f"{side}: left out, {reason}")
    folder = _model_folder(settings, notify)
    batches = build_batches(settings, folder, notify)
    dtype = dtype_name(choose_dtype(settings.dtype, default_device()))
    runs: dict[str, list[SideRun]] = {side: [] for side in sides}
    failed: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as work:
        rows = Path(work) / "rows.json"
        write_rows(rows, batches)
        for number in range(settings.rounds):
            turn = number % len(sides)
            for side in [*sides[turn:], *sides[:turn]]:
                if side in failed:
                    continue
                prefix = f"round {number + 1}/{settings.rounds}  {side}"
                notify(f"{prefix} ...")
                began = time.perf_counter()
                try:
                    run = run_side(_job(settings, side, folder, rows, dtype), settings.python.get(side))
                except BenchError as error:
                    failed[side] = str(error)
                    notify(f"{prefix}: failed: {error}")
                    continue
                runs[side].append(run)
                notify(f"{prefix}: {_told(run)} ({time.perf_counter() - began:.0f} s)")
    if OWN in failed:
        raise BenchError(f"lamina's own side failed, so there is nothing to compare: {failed[OWN]}")
    about = {**vars(settings), "model": settings.shape or settings.model, "dtype": dtype, "warmup": WARMUP}
    return build_report(about, {side: found for side, found in runs.items() if found}, failed, left_out)


def check_settings(settings: BenchSettings) -> None:
    """Checks the settings before anything is loaded.

    Raises:
        ConfigError: There are problems; it lists all of them.
    """
    known, problems = side_names(), []
    for option, names in (("--peers", settings.peers or []), ("--python", settings.python)):
        for name in names:
            if name not in known:
                hint = nearest(name, known) or f"use {', '.join(known)}"
                problems.append(Problem(option, f"{name!r} is not a side", hint))
    if settings.shape is not None and settings.shape not in SHAPES:
        hint = nearest(settings.shape, SHAPES) or f"use {', '.join(SHAPES)}"
        problems.append(Problem("--shape", f"{settings.shape!r} is not a shape", hint))
    if settings.dtype not in ("auto", "bfloat16", "float32"):
        problems.append(Problem("--dtype", f"{settings.dtype!r} is not one of auto, bfloat16, float32"))
    if problems:
        raise ConfigError(problems)


def choose_sides(settings: BenchSettings) -> tuple[list[str], dict[str, str]]:
    """Returns the sides that run, lamina first, and those that are left out, with the reason.

    Raises:
        BenchError: A peer was asked for by name and cannot run here.
    """
    sides, left_out = [OWN], {}
    for name in [name for name in settings.peers or side_names() if name != OWN]:
        reason = _missing(name, settings)
        if reason is None:
            sides.append(name)
        elif settings.peers:
            raise BenchError(f"{name} cannot run here: {reason}")
        else:
            left_out[name] = reason
    return list(dict.fromkeys(sides)), left_out


def _missing(name: str, settings: BenchSettings) -> str | None:
    side = find_side(name)
    if side.NEEDS_CUDA and default_device().type != "cuda":
        return "it needs a CUDA device."
    if name in settings.python:  # the packages of that environment are checked when the side runs
        return None
    for package in side.REQUIRES:
        if not is_installed(package):
            return f"{package} is not installed. Fix: {INSTALL[package]}."
    return None


def _model_folder(settings: BenchSettings, notify: Notify) -> Path:
    if settings.shape is not None:
        return shape_folder(settings.shape, settings.seed, notify)
    return find_model(settings.model, notify).folder


def build_batches(settings: BenchSettings, folder: Path, notify: Notify) -> list[list[EncodedExample]]:
    """Returns the examples of each optimizer step, including warmup.

    Raises:
        DataError: There are too few rows for the steps.
    """
    notify("Tokenizing the rows ...")
    tokenizer = load_tokenizer(ModelSource(str(folder), folder))
    with tempfile.TemporaryDirectory() as work:
        path = settings.data
        if path is None:
            requests = build_task(settings.seed, _QUICKSTART_ROWS, 10).train
            path = str(Path(work) / "rows.jsonl")
            Path(path).write_text("\n".join(json.dumps({"messages": request.messages()}) for request in requests))
        config = DataConfig(
            train=path, eval=None, columns=settings.columns, max_length=settings.max_length, max_dropped=1.0
        )
        examples = build_dataset(config, build_template(tokenizer), 1, settings.seed).train
    plan = plan_epoch(examples.lengths, 1, settings.tokens_per_step, True, settings.seed, epoch=0)
    wanted = settings.steps + WARMUP
    full = [batch for batch in plan if examples.lengths[batch].sum() >= FULL * settings.tokens_per_step]
    chosen = list(Batches(examples, (full if len(full) >= wanted else plan)[:wanted]))
    if len(chosen) < wanted:
        raise DataError(
            f"{settings.data or 'the built-in rows'}: {len(examples)} rows fill {len(chosen)} steps of "
            f"{settings.tokens_per_step} tokens, and {settings.steps} timed steps with {WARMUP} before them need "
            f"{wanted}. Fix: lower --steps or --tokens-per-step, or give more rows."
        )
    vocabulary = _vocabulary(folder)
    return [[EncodedExample(e.input_ids % vocabulary, e.supervised, e.row) for e in batch] for batch in chosen]


def _vocabulary(folder: Path) -> int:
    return int(json.loads((folder / "config.json").read_text(encoding="utf-8"))["vocab_size"])


def _job(settings: BenchSettings, side: str, folder: Path, rows: Path, dtype: str) -> Job:
    return Job(
        side=side,
        model=str(folder),
        rows=str(rows),
        dtype=dtype,
        max_length=settings.max_length,
        warmup=WARMUP,
        rank=settings.rank,
        alpha=settings.alpha,
        learning_rate=settings.learning_rate,
        max_grad_norm=1.0,
        seed=settings.seed,
    )


def run_side(job: Job, python: str | None = None) -> SideRun:
    """Runs one side in a separate process.

    Args:
        job: The side's job.
        python: The interpreter; by default this one.

    Raises:
        BenchError: The process failed; the message has the end of its output.
    """
    return SideRun.from_json(run_module("lamina.bench.worker", job.as_json(), python))


def _told(run: SideRun) -> str:
    tokens, seconds = (sum(getattr(step, name) for step in run.timed) for name in ("tokens", "seconds"))
    losses = f"loss {run.steps[0].loss:.4f} -> {run.steps[-1].loss:.4f}"
    return f"{tokens / seconds:,.0f} tokens/s, {run.peak_bytes / _GIB:.2f} GiB, {losses}"
