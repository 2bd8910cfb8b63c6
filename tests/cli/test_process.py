"""A command as a process: how it ends."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

# Its end takes a while.
ENDING = """
import atexit, time
from lamina.cli.process import leave, listen_for_signals

def end():
    print("ending", flush=True)
    time.sleep(60)

listen_for_signals()
atexit.register(end)
leave(7)
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_amid_the_end_only_ends_a_process_sooner(name: str) -> None:
    with subprocess.Popen([sys.executable, "-c", ENDING], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == b"ending\n"
        process.send_signal(getattr(signal, name))
        assert process.wait(timeout=20) == 7
        assert process.stderr.read() == b""
