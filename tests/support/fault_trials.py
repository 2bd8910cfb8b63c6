"""Plants faults in many small runs of several processes, and looks how each ends.

    python -m tests.support.fault_trials --trials 500 --log trials.jsonl

Each trial is a `lamina train --nproc N`, a fork of this process (see `forks.py`), with a fault of `faults.py`. A trial
that has not ended after `PATIENCE` is a hang: the stacks of its processes are kept, and they are ended. Exits with 1 if
a trial hung, or ended otherwise than it must. `--only SEED` runs one trial again.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import shutil
import sys
import tempfile
from collections import defaultdict
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

# Before anything that would start threads, which no fork survives.
os.environ |= {"OMP_NUM_THREADS": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false", "HF_HUB_OFFLINE": "1"}

import torch
import transformers.models.llama.modeling_llama  # noqa: F401
import yaml
from transformers.conversion_mapping import get_checkpoint_conversion_mapping

from lamina.cache.folder import cache_folder
from lamina.runs import Run
from tests.support.fault_verdict import judge
from tests.support.faults import Fault, draw
from tests.support.forks import Become, Main
from tests.support.models_zoo import build_model, build_tokenizer
from tests.support.training import settings, write_rows
from tests.support.trial import Ended, run_command

# How many trials are followed by a run that goes on from what is there.
RESUMED = 0.3
# In how many the interpreters end as they do; see `ended_at_once`.
WHOLE = 0.25
# Micro-batches of a step, and steps.
ACCUMULATION, STEPS = 3, 4
# `distributed.timeout` in s where a process is suspended for good.
LATE = 5.0


@dataclass
class Result:
    """What became of a trial.

    Attributes:
        seed: Of the trial.
        fault: What was planted.
        where: The moment; empty if it did not come before the end.
        outcome: `told`, `went on`, `not reached` or `hung`.
        told: Seconds from the fault to the first message that names it; None without one.
        ended: Seconds from the fault to the end of all processes; None if it did not come.
        seconds: What the trial took.
        resumed: Whether a run went on from what was there.
        problem: What was wrong; empty if nothing was.
        lines: What was written, if something was wrong.
    """

    seed: int
    fault: Fault
    where: str
    outcome: str
    told: float | None
    ended: float | None
    seconds: float
    resumed: bool = False
    problem: str = ""
    lines: list[str] = field(default_factory=list)


class Trials:
    """Runs trials in a folder.

    Args:
        folder: For all files.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._digest = ""
        self._skipped: dict[str, str] = {}  # the digest without a step, by the note on it
        self._exchanges, self._seconds = 1, 1.0
        for name, count in (("rows", 24), ("other/rows", 30)):
            path = folder / f"{name}.jsonl"
            path.parent.mkdir(exist_ok=True)
            write_rows(path, count)

    def measure(self) -> None:
        """Runs without a fault, which also fills the cache."""
        for size in (1, 2, 3):
            ended = self._train("whole", Fault(size=size))
            assert ended.code == 0, ended.text
            assert self._digest in ("", ended.digest), f"{size} processes give another digest"
            self._digest = ended.digest
            if size == 2:
                self._exchanges = sum(note["what"] == "exchange" and note["rank"] == 0 for note in ended.notes)
                self._seconds = ended.notes[-1]["time"] - ended.notes[0]["time"]
            shutil.rmtree(self._folder / "whole")
        print(f"an unbroken run: {self._seconds:.1f} s, {self._exchanges} exchanges", flush=True)

    def trial(self, seed: int) -> Result:
        """Runs one."""
        rng, fault = random.Random(~seed), draw(seed, self._exchanges, STEPS, self._seconds)
        name = f"trial{seed}"
        ended = self._train(name, fault)
        verdict = judge(fault, ended, self._digest, self._skipped)
        result = Result(
            seed,
            fault,
            verdict.where,
            verdict.outcome,
            verdict.told,
            verdict.ended,
            ended.seconds,
            False,
            verdict.problem,
        )
        if ended.code and not result.problem and rng.random() < RESUMED:
            result.resumed = True
            result.problem = self._resume(name, rng.choice((1, 2, 3)))
        if result.problem:
            result.lines = ended.text.splitlines()[-40:]
        else:
            shutil.rmtree(self._folder / name, ignore_errors=True)
        return result

    def _resume(self, name: str, size: int) -> str:
        """Goes on with a run. Returns what is wrong."""
        begun = Run(self._folder / name).begun
        again = self._train(name, Fault(size=size), *(["--resume"] if begun else []))
        if again.code != 0:
            return f"resumed in {size} processes, it ended with {again.code}: {again.text[-2000:]}"
        return "" if again.digest == self._digest else f"resumed in {size} processes, it has another digest"

    def _train(self, name: str, fault: Fault, *options: str) -> Ended:
        arguments = ["train", str(self._config(name)), "--json", *options]
        if fault.kind == "SIGSTOP":
            arguments.append(f"distributed.timeout={LATE}")
        if fault.size > 1:
            arguments += ["--nproc", str(fault.size), "--max-restarts", str(fault.max_restarts)]
        others = {
            "other base": f"model={self._folder / 'other'}",
            "other data": f"data.train={self._folder / 'other' / 'rows.jsonl'}",
            "other setting": "seed=7",
        }
        different = [others[fault.kind]] if fault.kind in others else []
        whole = random.Random(name).random() < WHOLE
        return run_command(arguments, fault, different, self._folder / f"log-{name}", whole)

    def _config(self, name: str) -> Path:
        path = self._folder / f"{name}.yaml"
        train = {"gradient_accumulation_steps": ACCUMULATION, "max_steps": STEPS, "eval_steps": 2, "save_steps": 1}
        path.write_text(yaml.safe_dump(settings(self._folder, self._folder / "model", name, train=train)))
        return path


def prepare(folder: Path) -> None:
    """Writes two models, in a fork, because this process must not compute; and caches what every trial needs."""
    pid = os.fork()
    if not pid:
        build_models(folder)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    (cache_folder() / "kernels").mkdir(parents=True, exist_ok=True)
    (folder / "cache").mkdir()
    (folder / "cache" / "kernels").symlink_to(cache_folder() / "kernels")
    os.environ["LAMINA_CACHE"] = str(folder / "cache")
    get_checkpoint_conversion_mapping("llama")  # takes half a second
    gc.collect()
    gc.freeze()  # forks need not look through what is here, nor copy its memory


def build_models(folder: Path) -> None:
    """Writes a model, and another that differs from it in one tensor."""
    tokenizer = build_tokenizer()
    model = build_model("llama", vocab_size=len(tokenizer))
    for name in ("model", "other"):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
        with torch.no_grad():
            model.model.norm.weight.add_(0.5)


def report(results: list[Result]) -> list[str]:
    """Returns what is to be said of all trials, in lines of a table."""
    by_kind = defaultdict[str, list[Result]](list)
    for result in results:
        by_kind[result.fault.kind].append(result)
    lines = [
        "kind | trials | told | went on | not reached | resumed | s to the message | s to the end | hangs | problems"
    ]
    for kind, some in [*sorted(by_kind.items()), ("all", results)]:
        outcomes = [result.outcome for result in some]
        counts = [len(some), *(outcomes.count(each) for each in ("told", "went on", "not reached"))]
        told = max((result.told for result in some if result.told is not None), default=0.0)
        ended = max((result.ended for result in some if result.ended is not None), default=0.0)
        hangs, problems = outcomes.count("hung"), sum(bool(result.problem) for result in some)
        counts.append(sum(result.resumed for result in some))
        lines.append(f"{kind} | {' | '.join(map(str, counts))} | {told:.1f} | {ended:.1f} | {hangs} | {problems}")
    return lines


def main() -> int:
    """Runs the trials; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1, help="of the first trial")
    parser.add_argument("--only", type=int, nargs="+", help="the seeds, instead of so many from the first")
    parser.add_argument("--log", type=Path, required=True, help="a line of JSON for each trial")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="faults-"))  # no context, which a fork would leave
    prepare(folder)
    assert len(list(Path("/proc/self/task").iterdir())) == 1, "a fork of several threads is not sound"
    trials, results = Trials(folder), list[Result]()
    trials.measure()
    for seed in arguments.only or range(arguments.seed, arguments.seed + arguments.trials):
        result = trials.trial(seed)
        results.append(result)
        with arguments.log.open("a") as file:
            file.write(json.dumps(asdict(result)) + "\n")
        if result.problem:
            print(f"trial {seed}: {result.fault}: {result.problem}", *result.lines, sep="\n    ", flush=True)
    print(*report(results), sep="\n", flush=True)
    bad = any(result.problem for result in results)
    print(f"files are in {folder}" if bad else "no problem", flush=True)
    if not bad:
        shutil.rmtree(folder)
    return int(bad)


def _main_or_fork() -> Main:
    """What this process runs at last: its end; or in a fork, what it becomes."""
    try:
        code = main()
    except Become as fork:
        return fork.main
    return partial(sys.exit, code)


if __name__ == "__main__":
    _main_or_fork()()
