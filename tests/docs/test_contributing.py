"""CONTRIBUTING's examples, written to the files that they name and run in a copy of the repository."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"```python\n# (\S+\.py)\n(.*?)```", PAGE, re.DOTALL))


def test_method_format_and_loss_train_and_merge_as_the_page_says(tmp_path: Path) -> None:
    for part in ("src/lamina", "tests"):
        shutil.copytree(ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__"))
    for path, text in FILES.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        assert not (tmp_path / path).exists(), path
        (tmp_path / path).write_text(text, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path / 'src'}:{tmp_path}", "OMP_NUM_THREADS": "1"}
    last = list(FILES)[-1]
    done = subprocess.run([sys.executable, last], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "certificate PASSED" in done.stdout
    formatted = [sys.executable, "-m", "ruff", "format", "--check", "--config", str(ROOT / "pyproject.toml"), *FILES]
    assert subprocess.run(formatted, cwd=tmp_path, capture_output=True).returncode == 0


def test_the_page_has_a_pair_for_method_and_loss_and_one_file_for_the_format() -> None:
    names = [Path(path).name for path in FILES]
    assert len(names) == 6
    assert names[0] == names[1]
    assert names[3] == names[4]


def test_every_make_target_of_the_page_is_one() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    named = set(re.findall(r"^make ([a-z-]+)", PAGE, re.MULTILINE)) | set(re.findall(r"`make ([a-z-]+)`", PAGE))
    assert {"install", "fast", "check", "reference", "docs", "coverage"} <= named <= targets


def test_hooks_before_a_commit_use_what_the_project_installs() -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    assert [repo["repo"] for repo in config["repos"]] == ["local"]
    for hook in config["repos"][0]["hooks"]:
        assert hook["language"] == "system"
        assert hook["entry"].startswith(".venv/bin/")
        for path in re.findall(r"tests/\S+", hook["entry"]):
            assert (ROOT / path).exists(), path
