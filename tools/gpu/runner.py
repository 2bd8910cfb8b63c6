"""Keeps a worker busy: starts it, watches it, and starts another one behind a step that crashed or took too long."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tools.gpu import packages
from tools.gpu.record import READABLE, RESULTS, append, read, say
from tools.gpu.steps import Step

ROOT = Path(__file__).parents[2]
# Until a worker has imported what it needs, which on a fresh machine comes from a cold disk.
START_SECONDS = 60.0
POLL_SECONDS = 0.2
# The times of steps are a GPU's.
CPU_FACTOR = 10.0


@dataclass
class _Progress:
    """What the results file says of the worker that runs.

    Attributes:
        done: Names of steps that ended.
        current: The step that began and has not ended.
    """

    done: set[str] = field(default_factory=set)
    current: str | None = None


def run(steps: Sequence[Step], device: str, out: Path, seconds: float) -> int:
    """Runs all steps within so many seconds.

    Returns:
        0 if every proof that could run passed, else 1.
    """
    out.mkdir(parents=True, exist_ok=True)
    for name in (RESULTS, READABLE):
        (out / name).unlink(missing_ok=True)
    deadline = time.monotonic() + seconds
    python, lacking = packages.install_missing(out) if device == "cuda" else (sys.executable, [])
    for sentence in lacking:
        append(out, {"step": "packages", "kind": "lacking", "what": sentence})
        say(out, sentence)
    while (left := _left(steps, out)) and time.monotonic() < deadline:
        allowed = {step.name: step.seconds * (CPU_FACTOR if device == "cpu" else 1.0) for step in left}
        _watch(_start(python, left, device, out), allowed, out, deadline)
    return _close(steps, out)


def _start(python: str, steps: Sequence[Step], device: str, out: Path) -> subprocess.Popen[bytes]:
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    # The caches of a first run are part of what a fresh machine has to do, and those of another run would hide it.
    environment = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "LAMINA_CACHE": str(out / "cache")}
    if device == "cuda":
        environment["TORCHINDUCTOR_CACHE_DIR"] = str(out / "inductor")
    command = [python, "-m", "tools.gpu", "--worker", "--device", device, "--out", str(out)]
    command += ["--only", ",".join(step.name for step in steps)]
    return subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, **environment, "PYTHONPATH": path}, start_new_session=True
    )


def _watch(process: subprocess.Popen[bytes], allowed: Mapping[str, float], out: Path, deadline: float) -> None:
    """Waits for a worker's end, or brings it about. `allowed`: the seconds of each step that is left, in order."""
    began, current = time.monotonic(), None
    while process.poll() is None:
        now, progress = time.monotonic(), _progress(out)
        if progress.current != current:
            began, current = now, progress.current
        limit = START_SECONDS if current is None else allowed[current]
        if now - began > limit or now > deadline:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            reason = "the time for everything was over" if now > deadline else f"it took more than {limit:.0f} s"
            _ended(_progress(out).current or _next(allowed, out), "timed out", reason, out)
            return
        time.sleep(POLL_SECONDS)
    # Whatever a step started must not go on beside the next one.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    current = _progress(out).current
    if current is not None:
        _ended(current, "crashed", f"its process ended with code {process.returncode}", out)
    elif process.returncode not in (0, 3):
        _ended(_next(allowed, out), "crashed", f"its process could not start (code {process.returncode})", out)


def _next(allowed: Mapping[str, float], out: Path) -> str:
    """The first step that is left."""
    done = _progress(out).done
    return next(name for name in allowed if name not in done)


def _ended(step: str, status: str, reason: str, out: Path) -> None:
    append(out, {"step": step, "kind": "end", "status": status, "reason": reason})
    say(out, f"  {step} {status}: {reason}")


def _progress(out: Path) -> _Progress:
    progress = _Progress()
    for line in read(out):
        if line["kind"] == "begin":
            progress.current = line["step"]
        elif line["kind"] == "end":
            progress.done.add(line["step"])
            progress.current = None
    return progress


def _left(steps: Sequence[Step], out: Path) -> list[Step]:
    done = _progress(out).done
    return [step for step in steps if step.name not in done]


def _close(steps: Sequence[Step], out: Path) -> int:
    """Says what came of everything."""
    for step in _left(steps, out):
        _ended(step.name, "not run", "the time for everything was over", out)
    ends = {line["step"]: line for line in read(out) if line["kind"] == "end"}
    proofs = [line for line in read(out) if line["kind"] == "proof"]
    passed = sum(line["passed"] for line in proofs)
    counts = {status: sum(line["status"] == status for line in ends.values()) for status in _STATUSES}
    told = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    say(out, f"{passed} of {len(proofs)} proofs passed; steps: {told}. Results: {out / RESULTS}")
    return int(any(counts[status] for status in ("failed", "crashed", "timed out")))


_STATUSES = ("passed", "failed", "crashed", "timed out", "not run")
