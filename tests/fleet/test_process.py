"""A task as a process: what it prints, how it fails, how it is stopped, and that it does not outlive its watcher."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from lamina.fleet.process import TaskProcess, run_task
from lamina.fleet.task import Resources, Task
from tests.support.fleet import python_task

ONE = Resources(cpus=1)
# Writes that it is ready, and at the first signal of a kind, that it saved.
WAITING = (
    "import pathlib, signal, sys, time\n"
    "def leave(*_):\n    pathlib.Path({saved!r}).write_text('saved'); sys.exit(75)\n"
    "signal.signal(signal.{name}, leave)\npathlib.Path({ready!r}).touch()\ntime.sleep(60)\n"
)


def test_the_last_line_is_the_result(tmp_path: Path) -> None:
    code = "import json, sys; print('chatter'); print(json.dumps({'got': sys.stdin.read()}))"
    ended = run_task(python_task(tmp_path, code, given="given"), ONE)
    assert (ended.how, ended.printed) == ("done", {"got": "given"})
    assert ended.host and ended.seconds > 0


@pytest.mark.parametrize(
    ("code", "how", "words"),
    [
        ('print(\'{"error": {"message": "it broke"}}\'); raise SystemExit(1)', "failed", "it broke"),
        ("raise ValueError('bad')", "failed", "ValueError: bad"),
        ("import os; os.kill(os.getpid(), 9)", "lost", "killed by signal 9"),
        ("raise SystemExit(75)", "lost", "exit code 75"),
        ("raise SystemExit(3)", "failed", "exit code 3"),
    ],
)
def test_what_would_happen_again_is_no_loss(code: str, how: str, words: str, tmp_path: Path) -> None:
    ended = run_task(python_task(tmp_path, code), ONE)
    assert ended.how == how
    assert words in ended.message


def test_it_has_so_many_threads(tmp_path: Path) -> None:
    code = "import json, os; print(json.dumps({'threads': os.environ['OMP_NUM_THREADS'], 'x': os.environ['X']}))"
    assert run_task(python_task(tmp_path, code), Resources(cpus=3), {"X": "y"}).printed == {"threads": "3", "x": "y"}


def test_it_is_stopped_in_good_order(tmp_path: Path) -> None:
    saved, ready = tmp_path / "saved", tmp_path / "ready"
    process = TaskProcess(
        python_task(tmp_path, WAITING.format(saved=str(saved), ready=str(ready), name="SIGTERM")), ONE
    )
    _until(ready)
    assert process.poll() is None
    process.stop()
    assert process.wait().how == "lost"
    assert saved.read_text() == "saved"


def test_an_interrupted_watcher_lets_it_save(tmp_path: Path) -> None:
    saved, ready = tmp_path / "saved", tmp_path / "ready"

    def interrupt() -> None:
        _until(ready)
        signal.raise_signal(signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        run_task(python_task(tmp_path, WAITING.format(saved=str(saved), ready=str(ready), name="SIGTERM")), ONE)
    assert saved.read_text() == "saved"


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell a process of its parent's death")
def test_it_does_not_outlive_a_killed_watcher(tmp_path: Path) -> None:
    saved, ready = tmp_path / "saved", tmp_path / "ready"
    code = WAITING.format(saved=str(saved), ready=str(ready), name="SIGHUP")
    watcher = f"""
from pathlib import Path
from lamina.fleet.process import run_task
from lamina.fleet.task import Resources
from tests.support.fleet import python_task
run_task(python_task(Path({str(tmp_path)!r}), {code!r}), Resources(cpus=1))
"""
    process = subprocess.Popen([sys.executable, "-c", watcher])
    _until(ready)
    process.kill()
    process.wait()
    _until(saved)


def test_a_machine_without_the_folder_or_with_another_version_refuses(tmp_path: Path) -> None:
    task = python_task(tmp_path / "nowhere", "1")
    ended = run_task(task, ONE)
    assert ended.how == "failed" and "does not see" in ended.message and "nowhere" in ended.message
    other = Task("a", ("-c", "1"), tmp_path / "log", tmp_path, version="0.0.1")
    assert "0.0.1" in run_task(other, ONE).message


def _until(path: Path) -> None:
    deadline = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} does not appear"
        time.sleep(0.01)
