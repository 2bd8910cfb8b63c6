"""Type checkers see the public API: what functions return, and which arguments are wrong."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

import lamina

SOURCE = """
import lamina

run = lamina.train(data=[{"text": "a"}], max_steps=3)
reveal_type(run)
reveal_type(run.plot())
reveal_type(run.table())
reveal_type(lamina.generate(run.path, "hello"))
reveal_type(lamina.compare_runs(run, "runs/b"))
reveal_type(lamina.load_run("runs/b"))
lamina.generate(run.path, 3)
try:
    lamina.load("x")
except lamina.ConfigError as error:
    reveal_type(error.problems)
"""
# Only lamina's own types count; to read those of torch takes minutes.
MYPY = """[mypy]
follow_imports = silent
[mypy-torch.*,transformers.*,numpy.*,pandas.*,datasets.*,pyarrow.*,safetensors.*,scipy.*,sqlalchemy.*,alembic.*]
follow_imports = skip
follow_imports_for_stubs = True
"""
TYPES = ("Run", "Chart", "Table", "list[", "RunComparison", "Run", "list[")


@pytest.mark.slow
@pytest.mark.parametrize("checker", ["mypy", "pyright"])
def test_types_are_seen(checker: str, tmp_path: Path) -> None:
    if importlib.util.find_spec(checker) is None:
        pytest.skip(f"{checker} is not installed")
    file = tmp_path / "use.py"
    file.write_text(SOURCE)
    (tmp_path / "mypy.ini").write_text(MYPY)
    more = ["--config-file", str(tmp_path / "mypy.ini"), "--no-incremental"] if checker == "mypy" else []
    found = subprocess.run([sys.executable, "-m", checker, *more, str(file)], capture_output=True, text=True)
    lines = [line for line in found.stdout.splitlines() if f"{file.name}:" in line]
    revealed = [line for line in lines if "evealed type is" in line or "Type of" in line]
    assert len(revealed) == len(TYPES), found.stdout
    for line, kind in zip(revealed, TYPES, strict=True):
        assert kind in line
    errors = [line for line in lines if "error" in line and line not in revealed]
    assert len(errors) >= 1 and all(":11" in line for line in errors), errors


def test_the_package_is_typed_and_lists_its_names() -> None:
    assert Path(lamina.__file__).with_name("py.typed").exists()
    assert {"train", "load_run", "compare_runs", "ConfigError", "LaminaError"} <= set(dir(lamina))
    for name in lamina.__all__:
        assert getattr(lamina, name) is not None
