"""`bench_serve`: puts the same load on lamina and on its peers in turn, each in a process of its own.

For each number of adapters, in each round, every side runs once, one after the other, so that changes in the machine's
speed affect all of them; the order rotates from round to round. The machine's rates are measured in between.
"""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch

from lamina import files
from lamina.bench.process import run_module
from lamina.bench.serving.adapters import METHODS, AdapterMaker
from lamina.bench.serving.job import AdapterFacts, Job, SideRun
from lamina.bench.serving.limit import (
    Rates,
    StepWork,
    adapter_work,
    mean_positions,
    measure_machine,
    step_limit,
    step_work,
)
from lamina.bench.serving.prompts import built_in_prompts, rendered_prompts
from lamina.bench.serving.reduce import Measured, build_report
from lamina.bench.serving.report import Failure, LeftOut, Load, ServeReport
from lamina.bench.serving.sides import OWN, find_side, side_names
from lamina.bench.serving.traffic import ALIKE
from lamina.bench.shapes import SHAPES, shape_folder
from lamina.chat.template import build_template
from lamina.errors import BenchError, ConfigError, Problem, nearest
from lamina.machine.hardware import choose_dtype, default_device, dtype_name
from lamina.models.load import load_base, load_tokenizer
from lamina.models.source import ModelSource, find_model
from lamina.progress import Notify

WORKER = "lamina.bench.serving.worker"


@dataclass(frozen=True)
class ServeSettings:
    """What to compare, and on what.

    Attributes:
        model: The base: an alias, a folder, a hub id, or a `.gguf` file.
        shape: One of `SHAPES`, with random weights, instead of a model.
        prompts: A `.jsonl` file; by default pieces of the quickstart's requests.
        adapters: Numbers of adapters, each a comparison of its own; 0 for the bare base.
        methods: Of the adapters: some of `METHODS`.
        concurrency: Streams of the closed loops.
        rate: Requests per second of an open loop instead; None for closed ones.
        requests: Requests per stream in the measured window.
        peers: Sides other than lamina; by default all that can run.
        max_new_tokens: Tokens of every answer.
        rounds: How often each side runs.
        dtype: `auto`, `bfloat16` or `float32`.
        seed: Of prompts, adapters, arrivals and random weights.
    """

    model: str = "smollm2-135m"
    shape: str | None = None
    prompts: str | None = None
    adapters: list[int] = field(default_factory=lambda: [0, 1, 8, 32, 200])
    methods: list[str] = field(default_factory=lambda: list(METHODS))
    concurrency: list[int] = field(default_factory=lambda: [1, 8, 32])
    rate: float | None = None
    requests: int = 2
    peers: list[str] | None = None
    max_new_tokens: int = 64
    rounds: int = 3
    dtype: str = "auto"
    seed: int = 0


def bench_serve(settings: ServeSettings, notify: Notify = lambda message: None) -> ServeReport:
    """Puts a load on lamina and on its peers, and compares.

    Args:
        settings: What to compare, and on what.
        notify: Told which side runs in which round, and what it gave.

    Raises:
        ConfigError: A setting is not allowed.
        BenchError: lamina's own side failed.
        DataError: The prompts cannot be read.
    """
    check_settings(settings)
    with tempfile.TemporaryDirectory() as work:
        return _Comparison(settings, Path(work), notify).run()


def check_settings(settings: ServeSettings) -> None:
    """Finds what is wrong before anything is loaded.

    Raises:
        ConfigError: With all of it.
    """
    problems = []
    for option, wanted, known in (
        ("--peers", settings.peers or [], side_names()),
        ("--methods", settings.methods, METHODS),
        ("--shape", [settings.shape] if settings.shape is not None else [], SHAPES),
        ("--dtype", [settings.dtype], ("auto", "bfloat16", "float32")),
    ):
        for name in wanted:
            if name not in known:
                message = f"{name!r} is not one of {', '.join(known)}"
                problems.append(Problem(option, message, nearest(name, known)))
    for option, numbers, least in (("--adapters", settings.adapters, 0), ("--concurrency", settings.concurrency, 1)):
        problems += [
            Problem(option, f"{number} is less than {least}", f"use {least} or more")
            for number in numbers
            if number < least
        ]
        if not numbers:
            problems.append(Problem(option, "names no number", "give one or more, separated by commas"))
    if not settings.methods:
        problems.append(Problem("--methods", "names no method", f"use some of {', '.join(METHODS)}"))
    if problems:
        raise ConfigError(problems)


class _Comparison:
    """One call of `bench_serve`."""

    def __init__(self, settings: ServeSettings, work: Path, notify: Notify) -> None:
        self.settings, self.work, self.notify = settings, work, notify
        self.dtype = dtype_name(choose_dtype(settings.dtype, default_device()))
        source = None if settings.shape is not None else find_model(settings.model, notify)
        self.folder = source.folder if source else shape_folder(settings.shape or "", settings.seed, notify)
        self.step: StepWork = step_work(self.folder, self.dtype)
        self.measured: dict[tuple[str, Load], list[Measured]] = {}
        self.failed: dict[tuple[str, int], str] = {}
        self.left_out: dict[tuple[str, int], str] = {}

    def run(self) -> ServeReport:
        """Everything."""
        settings = self.settings
        prompts = self._write_prompts()
        maker = None
        peers = side_names() if settings.peers is None else settings.peers
        names = list(dict.fromkeys([OWN, *peers]))
        for count in settings.adapters:
            if count and maker is None:
                self.notify("Making adapters ...")
                base = load_base(str(self.folder), self.dtype, torch.device("cpu"))
                maker = AdapterMaker(base, self.work / "adapters", settings.methods, settings.seed)
            adapters = [] if maker is None else maker.first(count)
            jobs = self._jobs(names, adapters, prompts)
            for number in range(settings.rounds):
                self._round(number, count, jobs)
        about = {
            **vars(settings),
            "model": settings.shape or settings.model,
            "dtype": self.dtype,
            "peers": [name for name in names if name != OWN],
        }
        failed = [Failure(side, count, error) for (side, count), error in self.failed.items()]
        left_out = [LeftOut(side, count, reason) for (side, count), reason in self.left_out.items()]
        return build_report(about, self.measured, failed, left_out)

    def _jobs(self, names: list[str], adapters: list[AdapterFacts], prompts: Path) -> list[Job]:
        """Those of the sides that can do them."""
        jobs = []
        for name in names:
            job = self._job(name, adapters, prompts)
            reason = find_side(name).refuses(job)
            if reason is None:
                jobs.append(job)
            else:
                self.left_out[name, len(adapters)] = reason
                self.notify(f"{name}, {len(adapters)} adapters: left out, {reason}")
        return jobs

    def _round(self, number: int, count: int, jobs: list[Job]) -> None:
        turn = number % len(jobs)
        before = measure_machine(self.step, self.dtype)
        for job in [*jobs[turn:], *jobs[:turn]]:
            if (job.side, count) in self.failed:
                continue
            prefix = f"{count} adapters, round {number + 1}/{self.settings.rounds}  {job.side}"
            self.notify(f"{prefix} ...")
            began = time.perf_counter()
            try:
                run = run_side(job)
            except BenchError as error:
                if job.side == OWN:
                    raise BenchError(f"lamina's own side failed, so there is nothing to compare: {error}") from None
                self.failed[job.side, count] = str(error)
                self.notify(f"{prefix}: failed: {error}")
                continue
            after = measure_machine(self.step, self.dtype)
            self._note(job, run, Rates((before.read + after.read) / 2, (before.products + after.products) / 2))
            before = after
            told = ", ".join(f"{window.tokens / window.seconds:,.0f}" for window in run.windows)
            self.notify(f"{prefix}: {told} tokens/s ({time.perf_counter() - began:.0f} s)")

    def _note(self, job: Job, run: SideRun, rates: Rates) -> None:
        served = [adapter for adapter in job.adapters if adapter.name in run.adapters]
        for window in run.windows:
            limit = None
            if window.concurrency is not None:
                added = adapter_work(served, window.concurrency, self.dtype)
                limit = step_limit(self.step, added, rates, window.concurrency, mean_positions(window))
            load = Load(len(job.adapters), window.concurrency, window.rate)
            one = Measured(window, served, limit, run.peak_bytes, run.settings)
            self.measured.setdefault((job.side, load), []).append(one)

    def _job(self, side: str, adapters: list[AdapterFacts], prompts: Path) -> Job:
        settings = self.settings
        return Job(
            side=side,
            model=str(self.folder),
            source=settings.shape or settings.model,
            prompts=str(prompts),
            dtype=self.dtype,
            adapters=adapters,
            on_disk=len(adapters) > ALIKE,
            concurrency=settings.concurrency,
            rate=settings.rate,
            requests=settings.requests,
            max_new_tokens=settings.max_new_tokens,
            threads=torch.get_num_threads(),
            seed=settings.seed,
        )

    def _write_prompts(self) -> Path:
        settings, vocabulary = self.settings, self.step.use.vocabulary
        template = build_template(load_tokenizer(ModelSource(str(self.folder), self.folder)))
        if settings.prompts is not None:
            prompts = rendered_prompts(Path(settings.prompts), template, vocabulary)
        else:
            # So many that a process asks none twice.
            count = sum(streams * (1 + settings.requests) for streams in settings.concurrency)
            prompts = built_in_prompts(template, count + 8, vocabulary, settings.seed)
        path = self.work / "prompts.json"
        files.write_text(path, json.dumps(prompts))
        return path


def run_side(job: Job) -> SideRun:
    """Runs one side in a separate process.

    Raises:
        BenchError: It failed; the message is the end of what it wrote.
    """
    return SideRun.from_json(run_module(WORKER, job.as_json(), find_side(job.side).interpreter()))
