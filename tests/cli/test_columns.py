"""The advice on columns with unusual names: typed into a shell as it is printed, it works."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from lamina.runs import Run
from tests.support.cli import Cli, write_rows


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    rows = [{"spalte a": f"was ist {number}?", "b": f"{number}."} for number in range(12)]
    return write_rows(tmp_path / "odd.jsonl", rows)


def advised(message: str, pattern: str) -> list[str]:
    """Returns the advice as the words that a shell makes of it, with names of columns in place."""
    found = re.search(pattern, message)
    assert found is not None, message
    put = found[0].replace("YOUR_COLUMN", "spalte\\ a").replace("YOUR_OTHER_COLUMN", "b")
    return shlex.split(put)


def test_overrides_are_advised_that_a_shell_leaves_whole(cli: Cli, odd: Path, model_folder: Path) -> None:
    message = cli("train", odd, f"model={model_folder}", "--dry-run").error()
    assert "quotes around each if the column's name has blanks" in message
    overrides = advised(message, r"data\.columns\.prompt=\S+ data\.columns\.completion=\w+")
    assert len(overrides) == 2
    result = cli("train", odd, f"model={model_folder}", "--dry-run", *overrides)
    assert result.code == 0 and "12 rows (prompt_completion)" in result.err


def test_a_command_without_overrides_advises_its_option(cli: Cli, odd: Path, trained: Run) -> None:
    arguments = ("eval", trained.path, "--data", odd, "--answers", "0", "--no-forgetting")
    message = cli(*arguments).error()
    assert "data.columns" not in message
    options = advised(message, r"--column prompt=\S+ --column completion=\w+")
    assert cli(*arguments, *options).code == 0
    many = cli("eval", trained.path, trained.path, "--data", odd, "--score", "exact_match").error()
    assert "--column prompt=YOUR_COLUMN" in many
