"""`lamina compare`, with real processes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from lamina.cli import compare as module
from lamina.comparison.report import Comparison, Outcome
from tests.support.cli import Cli


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def test_candidates_side_by_side(cli: Cli, config: Path, rows: Path, tmp_path: Path) -> None:
    (tmp_path / "general.txt").write_text("The quick brown fox jumps over the lazy dog.\n")
    hra, nope = (f"{name.lower()} method.type=peft method.peft_type={name}" for name in ("HRA", "NOPE"))
    arguments = [config, "train.compile=false", "--candidate", hra, "--out", "out", "--general", "general.txt"]
    arguments += ["--test", rows, "--max-test-rows", 2, "--max-new-tokens", 4]
    result = cli("compare", *arguments, "--candidate", nope, "--json")
    assert result.code == 1, result.err  # for the one that failed
    report = result.json()
    done, failed = report["candidates"]
    assert (done["name"], done["state"], done["steps"]) == ("hra", "done", 2)
    assert 0 < done["trainable_parameters"] < done["total_parameters"]
    assert done["peak_memory_bytes"] > 2**26 and done["adapter_bytes"] > 0 and done["step_seconds"] > 0
    assert done["eval_loss"] != report["base"]["eval_loss"]
    assert done["general_loss"] != report["base"]["general_loss"] > 0
    assert done["score"]["rows"] == report["base"]["score"]["rows"] == 2
    assert 0 <= done["score"]["low"] <= done["score"]["share"] <= done["score"]["high"] <= 1
    assert failed["state"] == "failed" and "'NOPE' is not one of" in failed["error"]
    assert (tmp_path / "out/candidates/hra/adapter/lamina.json").is_file()
    assert json.loads((tmp_path / "out/compare.json").read_text()) == report
    again = cli("compare", *arguments)
    assert again.code == 0
    assert "hra: finished before" in again.err
    for words in ("hra", "eval loss", "out/compare.html"):
        assert words in again.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--methods", "lroa"], "'lora'"),
        (["method.r=4,0"], "method.r"),
        (["--candidate", "method.r=4"], "NAME KEY=VALUE"),
        (["--task", "rouge"], "exact_match"),
        (["--max-test-rows", "5"], "--test"),
        (["--general-pieces", "5"], "--general"),
        (["--test", "nope.jsonl"], "nope.jsonl does not exist"),
        (["--screen"], "eliminates none"),
    ],
)
def test_wrong_options_end_before_anything_is_trained(
    arguments: list[str], words: str, cli: Cli, config: Path, tmp_path: Path
) -> None:
    result = cli("compare", config, *arguments)
    assert result.code == 2
    assert words in result.error()
    assert not (tmp_path / "runs").exists()


def test_the_table_fits_80_columns_with_whole_names(monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes = [
        Outcome(
            f"lora-target_modules=q_proj+k_proj+v_proj+o_proj-r={2**n}",
            "lora",
            state="failed" if n == 3 else "done",
            steps=10,
            trainable_parameters=10**n * 1234,
            total_parameters=10**9,
            adapter_bytes=10**6,
            peak_memory_bytes=2**31,
            step_seconds=1.0,
            eval_loss=1.0 + n,
            learning_rate=1e-3,
        )
        for n in range(7)
    ]
    with_console = Console(width=80, force_terminal=True, color_system=None, soft_wrap=True)
    monkeypatch.setattr(module, "out", with_console)
    with with_console.capture() as captured:
        module._print(Comparison({}, outcomes), Path("out"))
    text = captured.get()
    assert all(len(line) <= 80 for line in text.splitlines()), text
    assert all(outcome.name in text for outcome in outcomes)
    assert "eval loss" in text and "1.0000" in text and "1,234,000,000" in text and "failed" in text
