"""`--on local`: GPUs are dealt out, and no task outlives the fleet."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from lamina.errors import ConfigError
from lamina.fleet.executor import Placement, start_executor
from lamina.fleet.task import Ended, Resources
from tests.support.fleet import python_task

SHOW = "import json, os, time; print(json.dumps({'gpus': os.environ.get('CUDA_VISIBLE_DEVICES')}), flush=True)"


def test_each_task_has_gpus_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5,7")
    with start_executor(Placement(), tmp_path) as executor:
        handles = [executor.submit(python_task(tmp_path, f"{SHOW}; time.sleep(0.5)"), Resources(1, n)) for n in (2, 1)]
        with pytest.raises(ConfigError, match=r"--gpus: a task gets 1, but 0 of the 3 GPUs"):
            executor.submit(python_task(tmp_path, SHOW), Resources(1, 1))
        assert [_end(handle).printed["gpus"] for handle in handles] == ["2,5", "7"]
        assert _end(executor.submit(python_task(tmp_path, SHOW), Resources(1, 3))).printed["gpus"] == "2,5,7"
        assert _end(executor.submit(python_task(tmp_path, SHOW), Resources(1, 0))).printed["gpus"] == ""
        handles = [executor.submit(python_task(tmp_path, f"{SHOW}; time.sleep(0.5)"), Resources(1)) for _ in range(4)]
        assert [_end(handle).printed["gpus"] for handle in handles] == ["2", "5", "7", "2"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with start_executor(Placement(), tmp_path) as executor:
        assert _end(executor.submit(python_task(tmp_path, SHOW), Resources(1))).printed["gpus"] == ""


def test_no_task_is_left_behind(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), start_executor(Placement(), tmp_path) as executor:
        executor.submit(python_task(tmp_path, "import time; time.sleep(60)"), Resources(1))
        (child,) = psutil.Process().children()
        raise ZeroDivisionError
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def _end(handle: object) -> Ended:
    while (ended := handle.poll()) is None:  # type: ignore[attr-defined]
        pass
    return ended
