"""`lamina bench serve`, with real processes, and what its table and its options say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lamina.bench.serving import run as run_module
from lamina.bench.serving.job import Job, SideRun
from lamina.bench.serving.limit import Rates
from lamina.errors import BenchError
from tests.support.cli import Cli
from tests.support.serving_bench import window


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("LAMINA_VLLM_PYTHON", raising=False)
    monkeypatch.delenv("LAMINA_LLAMA_NODE", raising=False)
    monkeypatch.setattr(run_module, "measure_machine", lambda work, dtype: Rates(1e9, 1e9))


def test_lamina_on_a_small_model(cli: Cli, model_folder: Path, tmp_path: Path) -> None:
    arguments = ["--model", model_folder, "--adapters", "2", "--concurrency", "2", "--requests", 1, "--rounds", 1]
    arguments += ["--max-new-tokens", 3, "--dtype", "float32", "--peers", "llama.cpp", "--out", "found.json"]
    result = cli("bench", "serve", *arguments, "--json")
    assert result.code == 0, result.err
    report = result.json()
    (side,) = report["sides"]
    assert (side["side"], side["adapters"], side["concurrency"]) == ("lamina", 2, 2)
    assert side["tokens_per_second"] > 0 and side["limit_share"] > 0
    assert side["ttft_ms"]["p50"] > 0 and side["itl_ms"]["p99"] > 0
    assert [row["adapter"] for row in side["by_adapter"]] == ["000-lora", "001-dora"]
    assert report["left_out"][0]["side"] == "llama.cpp" and report["left_out"][0]["reason"]
    assert "llama.cpp, 2 adapters: left out, " in result.err
    assert json.loads((tmp_path / "found.json").read_text()) == report


def test_a_table_and_a_plot(cli: Cli, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")

    def pretend(job: Job) -> SideRun:
        if job.side == "vllm":
            raise BenchError("[no] luck")
        served = [adapter.name for adapter in job.adapters][:1]
        streams = job.concurrency[0]
        loads: dict[str, Any] = {"streams": streams} if job.rate is None else {"streams": None, "rate": job.rate}
        return SideRun(job.side, {}, served, [window(2.0 if job.side == "lamina" else 4.0, **loads)], 1)

    monkeypatch.setattr(run_module, "run_side", pretend)
    monkeypatch.setenv("LAMINA_VLLM_PYTHON", "/bin/sh")
    arguments = ["--model", model_folder, "--concurrency", "2", "--rounds", 1, "--dtype", "float32"]
    result = cli("bench", "serve", *arguments, "--adapters", "0,2", "--plot", "plot.png")
    assert result.code == 0, result.err
    for words in ("2 streams", "transformers", "1 of 2", "2.00x", "no adapters", "decoding / limit"):
        assert words in result.out
    assert "vllm, 0 adapters, failed: [no] luck" in result.err
    assert (tmp_path / "plot.png").is_file()
    result = cli("bench", "serve", *arguments, "--adapters", "0", "--rate", 5)
    assert "5 requests/s" in result.out


def test_a_disturbed_machine_is_said(cli: Cli, model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def pretend(job: Job) -> SideRun:
        busy = window(2.0)
        return SideRun(job.side, {}, [], [type(busy)(**{**vars(busy), "other_cores": 1.0})], 1)

    monkeypatch.setattr(run_module, "run_side", pretend)
    arguments = ["--model", model_folder, "--adapters", "0", "--peers", "lamina", "--rounds", 1]
    result = cli("bench", "serve", *arguments)
    assert result.code == 0, result.err
    assert "lamina (0 adapters, 2 streams): other processes kept 1.0 cores busy" in result.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "x", "--shape", "tiny"], ("--shape", "--model")),
        (["--adapters", "0,many"], ("--adapters", "'0,many'", "1,8,32")),
        (["--concurrency", "1.5"], ("--concurrency", "'1.5'")),
        (["--peers", "vlm"], ("--peers", "'vlm'", "vllm")),
        (["--out", "no/such/folder.json"], ("--out", "does not exist")),
        (["--prompts", "no.jsonl", "--model"], ("no.jsonl", "cannot be read")),
    ],
)
def test_wrong_options(arguments: list[str], words: tuple[str, ...], cli: Cli, model_folder: Path) -> None:
    more = [model_folder] if arguments[-1] == "--model" else []
    result = cli("bench", "serve", *arguments, *more)
    assert result.code != 0
    for word in words:
        assert word in result.err
