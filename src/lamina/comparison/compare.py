"""`compare`: trains each candidate with the same budget, on the same rows in the same order, and compares them.

    OUT/candidates/NAME/   a run directory for each candidate, as from `lamina train`
    OUT/rungs/1/NAME/      with `screen`: runs with a share of the steps, which select the candidates that continue
    OUT/configs, logs/     the configuration and the log of each process
    OUT/measured/NAME.json scores and losses other than the evaluation loss, with the digest of what they were measured
    on OUT/compare.json, compare.html

Every candidate trains in a separate process, so that its peak memory is its own, and its failure does not affect
others: here or on a cluster, one after the other or many at once (`fleet/`). Measuring is divided in the same way.
Repeating the command continues a comparison: finished runs are not repeated, and interrupted runs resume from their
checkpoint.

Successive halving (Jamieson and Talwalkar 2016, arXiv:1502.07943; `screen`): with n candidates, all train for 1 / 3^k
of the steps, where 3^k is the largest power of three that is at most n. The best third (rounded up) by evaluation loss
is trained again for three times as many, and so on up to all steps. Each rung has its own complete learning rate
schedule.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lamina import files
from lamina.comparison.candidates import Candidate
from lamina.comparison.measure import Job, Measured, Measuring
from lamina.comparison.report import BaseFigures, Comparison, Outcome, write_html
from lamina.config import Config
from lamina.config.methods.lora import LoraConfig
from lamina.errors import ConfigError, Problem
from lamina.fleet.executor import Executor, Placement, Settled, start_executor
from lamina.fleet.fleet import told, training_task
from lamina.fleet.pool import Result, run_tasks
from lamina.fleet.task import Task
from lamina.progress import Notify
from lamina.runs import Run
from lamina.runs.summary import Summary
from lamina.signals import StopRequest, stop_on_signals

# One in ETA candidates continues from a rung of `screen`, with ETA times the steps.
ETA = 3

_HERE = Placement()


def compare(
    candidates: Sequence[Candidate],
    out: str | Path,
    measuring: Measuring | None = None,
    *,
    screen: bool = False,
    placement: Placement = _HERE,
    notify: Notify = lambda message: None,
) -> Comparison:
    """Trains, measures, and writes `compare.json` and `compare.html` into `out` after every candidate.

    Args:
        candidates: From `build_candidates`, with the same `out`.
        out: The comparison's folder.
        measuring: What to measure in addition to the evaluation loss.
        screen: Whether to use successive halving instead of training every candidate to the end.
        placement: Where candidates are trained and measured, and how many at once.
        notify: Called with messages on the progress.

    Returns:
        The comparison, including failed candidates with their errors.

    Raises:
        ConfigError: `screen` with too few candidates or without an evaluation loss; or an unknown executor.
        Interrupted: A signal came; finished runs are kept.
        FleetError: The executor's cluster cannot be used.
    """
    measuring = measuring or Measuring()
    if screen:
        _check_screen(candidates)
    shares = rung_shares(len(candidates)) if screen else [1.0]
    with start_executor(placement, Path(out)) as executor, stop_on_signals() as stop:
        fleet = _Fleet(executor, placement.settled(executor, len(candidates)), notify, stop)
        return _Comparer(candidates, Path(out), measuring, shares, fleet).run()


def rung_shares(candidates: int) -> list[float]:
    """Computes the shares of the steps in each rung of successive halving; the last one is 1.

    >>> rung_shares(9), rung_shares(5)
    ([0.1111111111111111, 0.3333333333333333, 1.0], [0.3333333333333333, 1.0])
    """
    rungs = 0
    while ETA ** (rungs + 1) <= candidates:
        rungs += 1
    return [1.0 / ETA**rung for rung in range(rungs, -1, -1)]


def shortened(config: Config, share: float, output_dir: Path) -> Config:
    """Shortens a configuration to a share of its steps, including all settings that are given in steps."""
    steps, epochs = config.train.max_steps, config.train.epochs
    length = {"max_steps": max(1, math.ceil(steps * share))} if steps else {"num_train_epochs": (epochs or 0.0) * share}
    length["warmup_steps"] = math.ceil(config.train.warmup_steps * share)
    return config.model_copy(
        update={
            "train": config.train.model_copy(update=length),
            "method": config.method.shortened(share),
            "output_dir": str(output_dir),
        }
    )


def stored_as(config: Config) -> str:
    """Describes how a run stores its base; empty if it is not quantized.

    >>> from lamina.config import load_config
    >>> stored_as(load_config({"data": {"train": "a.jsonl"}, "quantization": {"bits": 4}}))
    '4 bits (nf4)'
    """
    if config.quantization is None:
        return ""
    bits = config.quantization.bits
    kind = f"4 bits ({config.quantization.quant_type})" if bits == 4 else f"{bits} bits"
    return f"{kind}, LoftQ" if _loftq(config) is not None else kind


def _loftq(config: Config) -> dict[str, Any] | None:
    """Returns the method's settings if the base is quantized with LoftQ, which depends on them."""
    uses_it = isinstance(config.method, LoraConfig) and config.method.init_lora_weights == "loftq"
    return config.method.model_dump(mode="json") if uses_it else None


def _check_screen(candidates: Sequence[Candidate]) -> None:
    problems = []
    if len(candidates) < ETA:
        message = f"eliminates none of {len(candidates)} candidates; it needs at least {ETA}"
        problems.append(Problem("--screen", message, "train them all, without it"))
    if any(candidate.config.data.eval is None for candidate in candidates):
        problems.append(Problem("--screen", "decides by the evaluation loss, but data.eval is null", "set data.eval"))
    losses = [candidate.config.loss.model_dump(mode="json") for candidate in candidates]
    types = sorted({loss["type"] for loss in losses})
    fields = [f"loss.{name}" for name in losses[0] if any(loss.get(name) != losses[0][name] for loss in losses)]
    if fields:
        differ = f"have different losses: {', '.join(types)}" if len(types) > 1 else f"differ in {', '.join(fields)}"
        message = f"decides by the evaluation loss, which is another function where the candidates {differ}"
        problems.append(Problem("--screen", message, "train them all, without it"))
    if problems:
        raise ConfigError(problems)


@dataclass(frozen=True)
class _Fleet:
    """Where this comparison's tasks run."""

    executor: Executor
    settled: Settled
    notify: Notify
    stop: StopRequest

    def run(self, tasks: Sequence[Task]) -> Iterator[Result]:
        return run_tasks(tasks, self.executor, self.settled, self.notify, self.stop)


@dataclass(frozen=True)
class _Wanted:
    """Something to measure: a candidate or its base, with the digest of everything that the result depends on."""

    stem: str
    key: str
    job: Job
    path: Path

    def found(self) -> Measured | None:
        """Returns the result, if it was measured before."""
        before = json.loads(self.path.read_text(encoding="utf-8")) if self.path.is_file() else {}
        return Measured.from_json(before["measured"]) if before.get("key") == self.key else None

    def task(self, out: Path) -> Task:
        log = out.resolve() / "logs" / f"measure-{self.stem}.log"
        given = json.dumps(self.job.as_json())
        arguments = ("-m", "lamina.comparison.measure")
        return Task(f"measuring {self.stem}", arguments, log, Path.cwd(), given=given)


class _Comparer:
    """One run of `compare` in this process."""

    def __init__(
        self, candidates: Sequence[Candidate], out: Path, measuring: Measuring, shares: list[float], fleet: _Fleet
    ) -> None:
        self.out = out
        self.measuring = measuring
        self.shares = shares
        self.fleet = fleet
        self.candidates = list(candidates)
        self.outcomes = {
            c.name: Outcome(c.name, c.config.method.type, c.changes, c.notes, base=BaseFigures(stored_as(c.config)))
            for c in candidates
        }

    def run(self) -> Comparison:
        alive = self.candidates
        for number, share in enumerate(self.shares[:-1], start=1):
            alive = self._rung(alive, number, share)
        self._train({candidate.name: candidate.config for candidate in alive}, 1.0)
        if self.measuring.anything:
            self._measure([candidate for candidate in alive if self.outcomes[candidate.name].state == "done"])
        return self._write()

    def _rung(self, alive: list[Candidate], number: int, share: float) -> list[Candidate]:
        self.fleet.notify(f"rung {number}, {share:.0%} of the steps")
        folder = self.out / "rungs" / str(number)
        self._train({each.name: shortened(each.config, share, folder / each.name) for each in alive}, share)
        found = {each.name: self.outcomes[each.name] for each in alive}
        losses = {
            name: each.eval_loss
            for name, each in found.items()
            if each.state != "failed" and each.eval_loss is not None
        }
        best = sorted(losses, key=lambda name: losses[name])[: math.ceil(len(alive) / ETA)]
        for name in losses:
            if name not in best:
                self.outcomes[name] = replace(self.outcomes[name], state="left out")
        self.fleet.notify(f"rung {number}: {len(best)} of {len(alive)} go on: {', '.join(best)}")
        return [candidate for candidate in alive if candidate.name in best]

    def _train(self, configs: dict[str, Config], share: float) -> None:
        """Trains candidates, except those that are already trained, and records the outcomes."""
        tasks = []
        for name, config in configs.items():
            stem = "-".join(Path(config.output_dir).relative_to(self.out).parts[1:])
            tasks.append(training_task(name, config, self.out, stem))
        for result in self.fleet.run(tasks):
            name = result.task.name
            outcome = replace(self.outcomes[name], run=configs[name].output_dir, share_of_steps=share)
            self.outcomes[name] = _trained(outcome, result)
            if not result.before:
                self.fleet.notify(told(result))
            self._write()

    def _measure(self, trained: list[Candidate]) -> None:
        """Measures candidates and bases, except those that are already measured, and records the outcomes."""
        wanted = {each.name: (self._wanted(each, base=False), self._wanted(each, base=True)) for each in trained}
        missing = {each.stem: each for pair in wanted.values() for each in pair if each.found() is None}
        errors: dict[str, str] = {}
        by_task = {f"measuring {stem}": each for stem, each in missing.items()}
        for result in self.fleet.run([each.task(self.out) for each in missing.values()]):
            each = by_task[result.task.name]
            if result.ended.how == "done":
                files.write_json(each.path, {"key": each.key, "measured": result.ended.printed})
            else:
                errors[each.stem] = result.ended.message
                self.fleet.notify(f"{result.task.name} failed: {result.ended.message}")
        for name, (own, base) in wanted.items():
            self.outcomes[name] = _measured(self.outcomes[name], own, base, errors)

    def _wanted(self, candidate: Candidate, base: bool) -> _Wanted:
        run = Run(Path(candidate.config.output_dir))
        manifest, quantization = run.manifest, candidate.config.quantization
        assert manifest.base is not None and manifest.summary is not None, "the run is finished"
        of: Any = asdict(manifest.base) if base else manifest.summary.adapter_digest
        if base and quantization is not None:  # the same files, held in another way
            of = [of, quantization.model_dump(mode="json"), _loftq(candidate.config)]
        asked = {
            "of": of,
            "measuring": vars(self.measuring),
            "files": [files.sha256_file(Path(f)) for f in (self.measuring.test, self.measuring.general) if f],
            "data": candidate.config.data.model_dump(mode="json"),
            "dtype": candidate.config.dtype,
        }
        key = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
        stem = f"base-{key[:16]}" if base else candidate.name
        return _Wanted(stem, key, Job(str(run.path), base, self.measuring), self.out / "measured" / f"{stem}.json")

    def _write(self) -> Comparison:
        measured = {"measuring": vars(self.measuring), "shares_of_steps": self.shares}
        settings = measured | self.fleet.settled.as_json()
        comparison = Comparison(settings, [self.outcomes[c.name] for c in self.candidates])
        files.write_json(self.out / "compare.json", comparison.as_json())
        write_html(comparison, self.out / "compare.html")
        return comparison


def _trained(outcome: Outcome, result: Result) -> Outcome:
    if result.ended.how != "done":
        return replace(outcome, state="failed", error=result.ended.message)
    summary = Summary.from_json(result.ended.printed)
    return replace(
        outcome,
        state="done",
        steps=summary.steps,
        learning_rate=summary.learning_rate,
        trainable_parameters=summary.trainable_parameters,
        total_parameters=summary.total_parameters,
        adapter_bytes=_size(Path(summary.adapter)),
        adapter_digest=summary.adapter_digest,
        peak_memory_bytes=summary.peak_memory_bytes,
        step_seconds=summary.step_seconds_median,
        eval_loss=summary.eval_loss,
        loss_type=summary.loss_type,
        accuracy=(summary.eval_metrics or {}).get("rewards/accuracies"),
        margin=(summary.eval_metrics or {}).get("rewards/margins"),
        train_loss=summary.train_loss_last,
        base=replace(outcome.base, eval_loss=summary.eval_loss_first),
    )


def _measured(outcome: Outcome, own: _Wanted, base: _Wanted, errors: Mapping[str, str]) -> Outcome:
    for each in (own, base):
        if each.stem in errors:
            return replace(outcome, state="failed", error=errors[each.stem])
    found, its_base = own.found(), base.found()
    assert found is not None and its_base is not None, "what has not failed was measured"
    return replace(
        outcome,
        score=found.score,
        general_loss=found.general_loss,
        base=replace(outcome.base, score=its_base.score, general_loss=its_base.general_loss),
    )


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))
