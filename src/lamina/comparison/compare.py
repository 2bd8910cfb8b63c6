"""`compare`: trains each candidate with the same budget, on the same rows in the same order, and compares them.

    OUT/candidates/NAME/   a run directory for each candidate, as from `lamina train`
    OUT/rungs/1/NAME/      with `screen`: runs with a share of the steps, which select the candidates that continue
    OUT/configs, logs/     the configuration and the log of each process
    OUT/measured/NAME.json scores and losses other than the evaluation loss, with the digest of what they were measured
    on OUT/compare.json, compare.html

Every candidate trains in a separate process, so that its peak memory is its own, and its failure does not affect
others.
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
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import yaml

from lamina import files
from lamina.comparison.candidates import Candidate
from lamina.comparison.measure import Job, Measured, Measuring
from lamina.comparison.process import run_python
from lamina.comparison.report import BaseFigures, Comparison, Outcome, write_html
from lamina.config import Config, resolved_values
from lamina.config.methods.lora import LoraConfig
from lamina.errors import ConfigError, Interrupted, LaminaError, Problem
from lamina.progress import Notify
from lamina.runs import Run
from lamina.runs.summary import Summary
from lamina.signals import StopRequest, stop_on_signals

# One in ETA candidates continues from a rung of `screen`, with ETA times the steps.
ETA = 3

_GIB = 2**30


def compare(
    candidates: Sequence[Candidate],
    out: str | Path,
    measuring: Measuring | None = None,
    *,
    screen: bool = False,
    notify: Notify = lambda message: None,
) -> Comparison:
    """Trains, measures, and writes `compare.json` and `compare.html` into `out` after every candidate.

    Args:
        candidates: From `build_candidates`, with the same `out`.
        out: The comparison's folder.
        measuring: What to measure in addition to the evaluation loss.
        screen: Whether to use successive halving instead of training every candidate to the end.
        notify: Called with messages on the progress.

    Returns:
        The comparison, including failed candidates with their errors.

    Raises:
        ConfigError: `screen` with too few candidates or without an evaluation loss.
        Interrupted: A signal came; finished runs are kept.
    """
    measuring = measuring or Measuring()
    if screen:
        _check_screen(candidates)
    with stop_on_signals() as stop:
        shares = rung_shares(len(candidates)) if screen else [1.0]
        return _Comparer(candidates, Path(out), measuring, shares, notify, stop).run()


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
    losses = sorted({candidate.config.loss.type for candidate in candidates})
    if len(losses) > 1:
        message = f"decides by the evaluation loss, but the candidates have different losses: {', '.join(losses)}"
        problems.append(Problem("--screen", message, "train them all, without it"))
    if problems:
        raise ConfigError(problems)


class _Comparer:
    """One run of `compare` in this process."""

    def __init__(
        self,
        candidates: Sequence[Candidate],
        out: Path,
        measuring: Measuring,
        shares: list[float],
        notify: Notify,
        stop: StopRequest,
    ) -> None:
        self.out = out
        self.measuring = measuring
        self.shares = shares
        self.notify = notify
        self.stop = stop
        self.candidates = list(candidates)
        self.outcomes = {
            c.name: Outcome(c.name, c.config.method.type, c.changes, c.notes, base=BaseFigures(stored_as(c.config)))
            for c in candidates
        }

    def run(self) -> Comparison:
        alive = self.candidates
        for number, share in enumerate(self.shares[:-1], start=1):
            alive = self._rung(alive, number, share)
        for place, candidate in enumerate(alive, start=1):
            prefix = f"{place}/{len(alive)}  {candidate.name}"
            self._update(candidate, candidate.config, 1.0, prefix)
            self._measure(candidate, prefix)
            self._write()
        return self._write()

    def _rung(self, alive: list[Candidate], number: int, share: float) -> list[Candidate]:
        losses = {}
        for place, candidate in enumerate(alive, start=1):
            config = shortened(candidate.config, share, self.out / "rungs" / str(number) / candidate.name)
            prefix = f"rung {number}, {share:.0%} of the steps, {place}/{len(alive)}  {candidate.name}"
            self._update(candidate, config, share, prefix)
            loss = self.outcomes[candidate.name].eval_loss
            if self.outcomes[candidate.name].state != "failed" and loss is not None:
                losses[candidate.name] = loss
            self._write()
        best = sorted(losses, key=lambda name: losses[name])[: math.ceil(len(alive) / ETA)]
        for name in losses:
            if name not in best:
                self.outcomes[name] = replace(self.outcomes[name], state="left out")
        self.notify(f"rung {number}: {len(best)} of {len(alive)} go on: {', '.join(best)}")
        return [candidate for candidate in alive if candidate.name in best]

    def _update(self, candidate: Candidate, config: Config, share: float, prefix: str) -> None:
        """Trains a candidate, unless it is already trained, and records the outcome."""
        outcome = replace(self.outcomes[candidate.name], run=config.output_dir, share_of_steps=share)
        try:
            summary = self._train(candidate.name, config, prefix)
        except Interrupted:
            raise
        except LaminaError as error:
            self.outcomes[candidate.name] = replace(outcome, state="failed", error=str(error))
            self.notify(f"{prefix}: failed: {error}")
            return
        self.outcomes[candidate.name] = replace(
            outcome,
            state="done",
            steps=summary.steps,
            learning_rate=summary.learning_rate,
            trainable_parameters=summary.trainable_parameters,
            total_parameters=summary.total_parameters,
            adapter_bytes=_size(Path(summary.adapter)),
            peak_memory_bytes=summary.peak_memory_bytes,
            step_seconds=summary.step_seconds_median,
            eval_loss=summary.eval_loss,
            loss_type=summary.loss_type,
            accuracy=(summary.eval_metrics or {}).get("rewards/accuracies"),
            margin=(summary.eval_metrics or {}).get("rewards/margins"),
            train_loss=summary.train_loss_last,
            base=replace(outcome.base, eval_loss=summary.eval_loss_first),
        )

    def _train(self, name: str, config: Config, prefix: str) -> Summary:
        run = Run(Path(config.output_dir))
        summary = run.summary
        if summary is not None and run.adapter.is_dir():
            self.notify(f"{prefix}: finished before")
            return summary
        stem = "-".join(Path(config.output_dir).relative_to(self.out).parts[1:])
        path, log = self.out / "configs" / f"{stem}.yaml", self.out / "logs" / f"{stem}.log"
        files.write_text(path, yaml.safe_dump(resolved_values(config), sort_keys=False, allow_unicode=True))
        self.notify(f"{prefix} ... ({log})")
        began = time.perf_counter()
        resume = ["--resume"] if run.begun else []
        printed = run_python(["-m", "lamina", "train", str(path), *resume, "--json"], "", log, self.stop)
        summary = Summary.from_json(printed)
        loss = "" if summary.eval_loss is None else f"eval loss {summary.eval_loss:.4f}, "
        peak = summary.peak_memory_bytes / _GIB
        self.notify(f"{prefix}: {loss}peak {peak:.2f} GiB ({time.perf_counter() - began:.0f} s)")
        return summary

    def _measure(self, candidate: Candidate, prefix: str) -> None:
        outcome = self.outcomes[candidate.name]
        if outcome.state != "done" or not self.measuring.anything:
            return
        try:
            self.notify(f"{prefix}: measuring ...")
            found = self._measured(candidate, base=False)
            base = self._measured(candidate, base=True)
        except Interrupted:
            raise
        except LaminaError as error:
            self.outcomes[candidate.name] = replace(outcome, state="failed", error=str(error))
            self.notify(f"{prefix}: measuring failed: {error}")
            return
        self.outcomes[candidate.name] = replace(
            outcome,
            score=found.score,
            general_loss=found.general_loss,
            base=replace(outcome.base, score=base.score, general_loss=base.general_loss),
        )

    def _measured(self, candidate: Candidate, base: bool) -> Measured:
        """Measures in a subprocess, or reads an earlier result for the same adapter and files."""
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
        path = self.out / "measured" / f"{stem}.json"
        if path.is_file():
            before = json.loads(path.read_text(encoding="utf-8"))
            if before["key"] == key:
                return Measured.from_json(before["measured"])
        job = Job(str(run.path), base, self.measuring)
        log = self.out / "logs" / f"measure-{stem}.log"
        found = run_python(["-m", "lamina.comparison.measure"], json.dumps(job.as_json()), log, self.stop)
        files.write_json(path, {"key": key, "measured": found})
        return Measured.from_json(found)

    def _write(self) -> Comparison:
        settings = {"measuring": vars(self.measuring), "shares_of_steps": self.shares}
        comparison = Comparison(settings, [self.outcomes[c.name] for c in self.candidates])
        files.write_json(self.out / "compare.json", comparison.as_json())
        write_html(comparison, self.out / "compare.html")
        return comparison


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))
