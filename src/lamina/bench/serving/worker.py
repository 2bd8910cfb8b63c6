"""Serves one side's load in a process: `python -m lamina.bench.serving.worker` reads a job and prints a JSON object.

The output of libraries goes to stderr, also that of code which writes to the file descriptor.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from lamina.bench.process import leave_with_parent
from lamina.bench.serving.job import Answer, Job, SideRun, Window
from lamina.bench.serving.load import Target, closed_loop, open_loop
from lamina.bench.serving.sides import find_side
from lamina.bench.serving.traffic import Ask, asks, poisson_arrivals
from lamina.errors import LaminaError


def serve_job(job: Job) -> SideRun:
    """Puts a job's loads on its side, in this process."""
    side = find_side(job.side)
    served = [adapter.name for adapter in job.adapters if side.takes(adapter)]
    requests = asks(job.read_prompts(), served, job.seed)
    with side.open(job) as (target, settings):
        if job.rate is not None:
            windows = [_open(target, requests, job, job.rate)]
        else:
            windows = [_closed(target, requests, streams, job.requests) for streams in job.concurrency]
        memory = peak_bytes()  # while the side's own processes live
    return SideRun(job.side, settings, served, windows, memory)


def open_requests(job: Job) -> int:
    """Requests in the measured window of an open loop."""
    return max(8, job.requests * job.most_streams)


def _closed(target: Target, requests: Iterator[Ask], streams: int, each: int) -> Window:
    closed_loop(target, requests, streams, streams)
    return _measured(lambda: closed_loop(target, requests, streams, streams * each), streams, None)


def _open(target: Target, requests: Iterator[Ask], job: Job, rate: float) -> Window:
    closed_loop(target, requests, job.most_streams, job.most_streams)
    arrivals = poisson_arrivals(rate, open_requests(job), job.seed)
    return _measured(lambda: open_loop(target, requests, arrivals), None, rate)


def _measured(load: Callable[[], list[Answer]], concurrency: int | None, rate: float | None) -> Window:
    others = _cpu_seconds_of_others()
    began = time.perf_counter()
    answers = load()
    # The last token, not the return: what a target does after it is nobody's wait.
    seconds = max(answer.times[-1] for answer in answers)
    others = max(0.0, _cpu_seconds_of_others() - others) / (time.perf_counter() - began)
    return Window(concurrency, rate, seconds, others, answers)


def _cpu_seconds_of_others() -> float:
    """The CPU time that processes other than this one and its children have used so far."""
    busy, own = psutil.cpu_times(), psutil.Process()
    seconds = busy.user + busy.system
    for process in [own, *own.children(recursive=True)]:
        try:
            used = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        seconds -= used.user + used.system
    return seconds


def peak_bytes() -> int:
    """The most memory that this process, or one of its children that live, has held."""
    own = psutil.Process()
    return max(_high_water(process) for process in [own, *own.children(recursive=True)])


def _high_water(process: psutil.Process) -> int:
    """A process's VmHWM; where there is no /proc, or the process is gone, what is known of it."""
    try:
        lines = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        return process.memory_info().rss if process.is_running() else 0


def main() -> None:
    """Serves the job on stdin. A failure is a message on stderr and exit code 1."""
    threading.Thread(target=leave_with_parent, args=(os.getppid(),), daemon=True).start()
    stdout = os.dup(1)
    os.dup2(2, 1)  # and not back: what C code has buffered is written at the end
    with contextlib.redirect_stdout(sys.stderr):
        try:
            result = serve_job(Job.from_json(json.load(sys.stdin)))
        except LaminaError as error:
            sys.exit(str(error))
    with os.fdopen(stdout, "w", encoding="utf-8") as stream:
        stream.write(json.dumps(result.as_json()) + "\n")


if __name__ == "__main__":
    main()
