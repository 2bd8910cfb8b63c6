"""`--quiet`, `--log-level`, `--timestamps`, `--version`, `-h` and completion, anywhere on the line."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lamina.version import __version__
from tests.support.cli import ROWS, Cli, write_rows

STAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4} ")


@pytest.fixture
def run(cli: Cli, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[object, ...]:
    monkeypatch.chdir(tmp_path)
    settings = ("dtype=float32", "train.max_steps=2", "data.max_length=64")
    return ("train", write_rows(Path("rows.jsonl"), ROWS), f"model={model_folder}", *settings)


def test_quiet_leaves_progress_out_and_errors_in(cli: Cli, run: tuple[object, ...]) -> None:
    result = cli(*run, "--quiet", "--json")
    assert result.code == 0 and result.json()["steps"] == 2
    assert "Done" not in result.err and "eval loss" not in result.err
    assert "already holds a run" in cli("--quiet", *run).error()
    assert "already holds a run" in cli("--log-level=error", *run).error()


def test_timestamps(cli: Cli, run: tuple[object, ...]) -> None:
    result = cli(*run, "--timestamps")
    lines = [line for line in result.err.splitlines() if line]
    assert len(lines) > 5 and all(STAMP.match(line) for line in lines), result.err


def test_the_environment_sets_them_too(cli: Cli, run: tuple[object, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAMINA_LOG_LEVEL", "warning")
    assert cli(*run).err.strip() == ""
    monkeypatch.setenv("LAMINA_LOG_LEVEL", "loud")
    assert "LAMINA_LOG_LEVEL: 'loud' is not one of debug, info" in cli("version").error()


def test_values_of_other_options_are_left_alone(cli: Cli) -> None:
    assert "--prompt" not in cli("generate", "nope", "-p", "--quiet").err
    assert cli("version", "--log-level").code == 2


def test_version_and_short_help(cli: Cli) -> None:
    assert cli("--version").out.strip() == __version__
    for arguments in (["-h"], ["train", "-h"], ["cache", "ls", "-h"]):
        result = cli(*arguments)
        assert result.code == 0 and "Usage" in result.out


def test_one_method(cli: Cli) -> None:
    shown = cli("methods", "ia3").out
    assert shown.startswith("ia3") and "lora" not in shown.splitlines()[0]
    assert [each["name"] for each in cli("methods", "ia3", "--json").json()["methods"]] == ["ia3"]
    assert "Did you mean" in cli("methods", "lroa").error()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell: str, cli: Cli) -> None:
    assert "_LAMINA_COMPLETE" in cli("completion", shell).out
    assert "'csh' is not one of" in cli("completion", "csh").error()


def test_a_shell_is_answered() -> None:
    environment = {**os.environ, "_LAMINA_COMPLETE": "complete_bash", "COMP_WORDS": "lamina tr", "COMP_CWORD": "1"}
    found = subprocess.run(
        [sys.executable, "-m", "lamina"], env=environment, capture_output=True, text=True, check=True
    )
    assert found.stdout.split() == ["train"]
