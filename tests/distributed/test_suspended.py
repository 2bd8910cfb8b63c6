"""Processes that are suspended: they are told of, and go on when they are to end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from lamina.distributed import suspended
from lamina.distributed.suspended import watch_for_suspended
from tests.support.waiting import wait_for

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc")


@pytest.fixture
def messages(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    monkeypatch.setattr(suspended, "_LOOK", 0.05)
    found: list[str] = []
    with watch_for_suspended(found.append):
        yield found


@pytest.fixture
def process(messages: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "60"], env={**os.environ, "RANK": "3"}) as started:
        yield started
        started.kill()


def test_a_suspended_process_is_named_once(messages: list[str], process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGSTOP)
    wait_for(lambda: bool(messages))
    time.sleep(0.3)
    (message,) = messages
    assert message.startswith(f"warning: rank 3 (process {process.pid}) is suspended (SIGSTOP)")
    assert message.endswith(f"kill -CONT {process.pid}")
    process.send_signal(signal.SIGCONT)
    time.sleep(0.2)
    process.send_signal(signal.SIGSTOP)
    wait_for(lambda: len(messages) == 2)


def test_a_suspended_process_hears_that_it_is_to_end(messages: list[str], process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGSTOP)
    wait_for(lambda: bool(messages))
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == -signal.SIGTERM


def test_nothing_is_said_of_others(messages: list[str], process: subprocess.Popen[bytes]) -> None:
    time.sleep(0.3)
    process.terminate()
    process.wait(timeout=20)
    time.sleep(0.2)
    assert messages == []
