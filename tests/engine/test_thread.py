"""The engine's thread at the end of a process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

# Many answers are being computed when the process ends: it must neither abort nor wait for them.
ENDS = """
import sys
from lamina import Engine, Request, Sampling
engine = Engine(sys.argv[1], dtype="float32")
sampling = Sampling(max_tokens=100000, min_tokens=100000, temperature=1.0)
streams = [iter(engine.stream(Request(token_ids=[n + 3, 4], sampling=sampling))) for n in range(24)]
print([next(stream).text is not None for stream in streams].count(True))
"""


def test_a_process_ends_in_the_middle_of_answers(model_folder: Path) -> None:
    command = [sys.executable, "-c", ENDS, str(model_folder)]
    for _ in range(2):
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert (done.returncode, done.stdout) == (0, "24\n"), done.stderr
