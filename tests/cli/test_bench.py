"""`lamina bench train`, with real processes."""

from __future__ import annotations

from pathlib import Path

import pytest

from lamina.bench import run as run_module
from lamina.bench.job import Job, SideRun
from lamina.errors import BenchError
from tests.support.bench import measured, write_file
from tests.support.cli import Cli


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def test_lamina_beside_peft_on_a_small_model(cli: Cli, model_folder: Path, tmp_path: Path) -> None:
    rows = write_file(tmp_path / "rows.jsonl")
    arguments = ["--data", rows, "--column", "prompt=question", "--column", "completion=answer"]
    arguments += ["--model", model_folder, "--peers", "peft,litgpt", "--rounds", 1, "--steps", 2, "--dtype", "float32"]
    no_python = tmp_path / "no-python"
    no_python.write_text("#!/bin/sh\nexit 3\n")
    no_python.chmod(0o755)
    arguments += ["--tokens-per-step", 128, "--rank", 4, "--python", f"litgpt={no_python}"]
    result = cli("bench", "train", *arguments, "--json")
    assert result.code == 0, result.err
    report = result.json()
    assert [side["side"] for side in report["sides"]] == ["lamina", "peft"]
    assert set(report["failed"]) == {"litgpt"}
    (ratio,) = report["ratios"]
    assert ratio["loss_difference"] < 2e-4
    assert ratio["speed"] > 0
    for side in report["sides"]:
        assert len(side["losses"]) == 4
        assert side["tokens_per_second"] > side["supervised_tokens_per_second"] > 0
        assert side["peak_bytes"] >= side["loaded_bytes"] > 0
    assert report["settings"]["dtype"] == "float32"
    assert "round 1/1  peft: " in result.err


def test_a_table_and_a_plot(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")

    def pretend(work: Job, python: str | None) -> SideRun:
        if work.side == "trl":
            raise BenchError("[no] luck")
        return measured(work.side, [9.0, 1.0, 1.0] if work.side == "lamina" else [9.0, 4.0, 4.0])

    monkeypatch.setattr(run_module, "run_side", pretend)
    monkeypatch.setattr(run_module, "choose_sides", lambda settings: (["lamina", "peft", "trl"], {}))
    result = cli("bench", "train", "--shape", "tiny", "--rounds", 1, "--tokens-per-step", 256, "--plot", "plot.png")
    assert result.code == 0, result.err
    for words in ("GEMM limit", "lamina", "4.00x", "failed", "GFLOP"):
        assert words in result.out
    assert "[no] luck" in result.err
    assert (tmp_path / "plot.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--peers", "tlr"], "'trl'"),
        (["--shape", "gemma"], "gemma-3-270m"),
        (["--shape", "tiny", "--model", "x"], "--shape"),
        (["--column", "prompt=question"], "--data"),
        (["--data", "x.jsonl", "--column", "prompt"], "FIELD=COLUMN"),
        (["--python", "litgpt"], "SIDE=INTERPRETER"),
        (["--dtype", "int8"], "bfloat16"),
        (["--steps", "0"], "--steps"),
    ],
)
def test_wrong_options_end_before_anything_is_loaded(arguments: list[str], words: str, cli: Cli) -> None:
    result = cli("bench", "train", *arguments)
    assert result.code == 2
    assert words in result.error()
