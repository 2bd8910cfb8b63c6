"""`make gpu`: its steps pass on the CPU, and none of them can take the others down."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tools.gpu import packages, runner
from tools.gpu.record import READABLE, RESULTS, Record
from tools.gpu.steps import STEPS, Step
from tools.gpu.worker import Here, work

ROOT = Path(__file__).parents[2]
QUICK = [step.name for step in STEPS if not step.slow]
SLOW = [step.name for step in STEPS if step.slow]


def _run(out: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tools.gpu", "--out", str(out), *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=1800)


def _lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / RESULTS).read_text(encoding="utf-8").splitlines()]


def _ends(out: Path) -> dict[str, tuple[str, str]]:
    return {line["step"]: (line["status"], line["reason"]) for line in _lines(out) if line["kind"] == "end"}


@pytest.mark.parametrize("names", [QUICK, pytest.param(SLOW, marks=pytest.mark.slow)], ids=["quick", "slow"])
def test_steps_pass_on_the_cpu(tmp_path: Path, names: list[str]) -> None:
    done = _run(tmp_path, "--device", "cpu", "--only", ",".join(names))
    ends = _ends(tmp_path)
    assert set(ends) == set(names)
    assert {name: status for name, (status, _) in ends.items() if status != "passed"} in ({}, {"optimizers": "not run"})
    assert done.returncode == 0, done.stdout + done.stderr
    proven = {line["step"] for line in _lines(tmp_path) if line["kind"] == "proof"}
    assert proven == set(names) - {"environment", "bench", "optimizers"}  # which measure, or need a GPU


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_in_one_line(tmp_path: Path) -> None:
    done = _run(tmp_path / "out")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "no CUDA device" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_number_passes_only_within_its_bound(tmp_path: Path) -> None:
    record = Record(tmp_path, "step")
    for value, allowed in ((0.0, 0.0), (1.0, 2.0), (2.0, 1.0), (float("nan"), 1.0), (float("inf"), 1.0)):
        record.prove("number", value, allowed)
    assert [line["passed"] for line in _lines(tmp_path)] == [True, True, False, False, False]
    assert record.failures == 3


def test_a_worker_goes_on_behind_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(here: Here) -> None:
        here.record.tell("before", 1)
        raise ValueError("it broke")

    functions = {"first": fails, "second": lambda here: here.record.prove("number", 0.0)}
    monkeypatch.setattr("tools.gpu.worker._function", lambda step: functions[step.name])
    steps = [Step(name, "", "", 1.0) for name in functions]
    assert work(steps, "cpu", tmp_path) == 0
    assert _ends(tmp_path) == {"first": ("failed", "ValueError: it broke"), "second": ("passed", "")}
    assert "it broke" in (tmp_path / "first.traceback.txt").read_text(encoding="utf-8")


WORKER = """
import os, sys, time
from pathlib import Path
from tools.gpu.record import append
out, names = Path(sys.argv[1]), sys.argv[2].split(",")
for name in names:
    append(out, {"step": name, "kind": "begin"})
    if name == "dies":
        os.abort()
    if name == "hangs":
        time.sleep(60)
    append(out, {"step": name, "kind": "end", "status": "passed", "reason": ""})
"""


def test_a_step_that_dies_or_hangs_leaves_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(python: str, steps: list[Step], device: str, out: Path) -> subprocess.Popen[bytes]:
        names = ",".join(step.name for step in steps)
        command = [sys.executable, "-c", WORKER, str(out), names]
        return subprocess.Popen(command, cwd=ROOT, start_new_session=True)

    monkeypatch.setattr(runner, "_start", start)
    monkeypatch.setattr(runner, "CPU_FACTOR", 1.0)
    steps = [Step(name, "", "", 1.0) for name in ("first", "dies", "between", "hangs", "last")]
    assert runner.run(steps, "cpu", tmp_path, 60.0) == 1
    statuses = {name: status for name, (status, _) in _ends(tmp_path).items()}
    passed = dict.fromkeys(("first", "between", "last"), "passed")
    assert statuses == passed | {"dies": "crashed", "hangs": "timed out"}
    assert "3 passed" in (tmp_path / READABLE).read_text(encoding="utf-8").splitlines()[-1]


def test_what_no_time_is_left_for_is_said(tmp_path: Path) -> None:
    assert runner.run([Step("first", "", "", 1.0)], "cpu", tmp_path, 0.0) == 0
    assert _ends(tmp_path) == {"first": ("not run", "the time for everything was over")}


def test_what_cannot_be_installed_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(command: list[str], **settings: Any) -> subprocess.CompletedProcess[str]:
        raise subprocess.TimeoutExpired(command, 1.0)

    assert packages.is_installed("torch")
    monkeypatch.setattr(packages, "NEEDED", {"torch": "torch", "no_such_module": "no-such-package"})
    monkeypatch.setattr(packages, "OPTIONAL", {})
    monkeypatch.setattr("tools.gpu.packages.subprocess.run", no_network)
    python, lacking = packages.install_missing(tmp_path)
    assert python == sys.executable
    assert [sentence.partition(" ")[0] for sentence in lacking] == ["no_such_module"]
    monkeypatch.setattr(packages, "NEEDED", {"torch": "torch"})
    assert packages.install_missing(tmp_path) == (sys.executable, [])
