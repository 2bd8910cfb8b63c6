"""`docs/production.md`: its commands, in order, on the real model."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "production.md"

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.timeout(1500)]


def test_a_stranger_gets_from_a_run_to_production_and_back(tmp_path: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, call in {"lamina": f'"{sys.executable}" -m lamina "$@"', "python": f'"{sys.executable}" "$@"'}.items():
        (commands / name).write_text(f"#!/bin/sh\nexec {call}\n", encoding="utf-8")
        (commands / name).chmod(0o755)
    script = "\n".join(re.findall(r"```bash\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL))
    folder = tmp_path / "work"
    folder.mkdir()
    environment = {**os.environ, "PATH": f"{commands}:{os.environ['PATH']}", "HF_HUB_OFFLINE": "1"}
    guarded = f"trap 'kill $SERVER 2>/dev/null || true' EXIT\nset -e\n{script}"
    done = subprocess.run(["bash", "-c", guarded], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    answer = json.loads((folder / "first.json").read_text(encoding="utf-8"))
    assert answer["model"] == "queues@prod" and answer["choices"][0]["finish_reason"] == "stop"
    digests = {"one", "two"}
    own = {name: json.loads((folder / f"runs/{name}/adapter/lamina.json").read_text())["digest"] for name in digests}
    served = json.loads((folder / "adapters.json").read_text(encoding="utf-8"))["data"]
    assert own["two"] in json.dumps(served), "the server followed"
    assert "PROMOTE" in done.stdout + done.stderr
