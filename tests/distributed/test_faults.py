"""Whatever goes wrong in one process, whenever: all of them end soon with one message, or the run goes on right."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TRIALS = int(os.environ.get("LAMINA_FAULTS", "500"))


@pytest.mark.slow
@pytest.mark.timeout(60 * TRIALS + 300)
def test_planted_faults(tmp_path: Path) -> None:
    command = (sys.executable, "-m", "tests.support.fault_trials", "--trials", str(TRIALS))
    ended = subprocess.run(
        [*command, "--log", str(tmp_path / "trials.jsonl")], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert len((tmp_path / "trials.jsonl").read_text().splitlines()) == TRIALS
