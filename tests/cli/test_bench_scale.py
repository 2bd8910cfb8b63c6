"""`lamina bench scale`: what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.cli import Cli


@pytest.mark.parametrize(("option", "text"), [("--nproc", "0"), ("--nproc", "1,two"), ("--gpus", ""), ("--gpus", "-8")])
def test_lists_of_numbers(option: str, text: str, cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("data: {train: rows.jsonl}\n")
    ended = cli("bench", "scale", "run.yaml", f"{option}={text}", "--json")
    assert ended.code == 2
    assert option in ended.json()["error"]["message"]
