"""The comparison: which sides run under which loads and in which order, and what becomes of failures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lamina.bench.serving import run as run_module
from lamina.bench.serving.job import Job, SideRun
from lamina.bench.serving.limit import Rates
from lamina.bench.serving.report import Failure
from lamina.bench.serving.run import ServeSettings, bench_serve, check_settings
from lamina.errors import BenchError, ConfigError
from tests.support.serving_bench import window


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """Sides that answer without a process; the jobs that they were given."""
    jobs: list[Job] = []

    def pretend(job: Job) -> SideRun:
        jobs.append(job)
        if job.side == "vllm":
            raise BenchError("no such model")
        windows = [window(1.0, streams) for streams in job.concurrency]
        if job.rate is not None:
            windows = [window(1.0, None, rate=job.rate)]
        return SideRun(job.side, {}, [adapter.name for adapter in job.adapters], windows, 5)

    monkeypatch.setattr(run_module, "run_side", pretend)
    monkeypatch.setattr(run_module, "measure_machine", lambda work, dtype: Rates(1e9, 1e9))
    monkeypatch.setenv("LAMINA_VLLM_PYTHON", "/bin/sh")
    monkeypatch.delenv("LAMINA_LLAMA_NODE", raising=False)
    return jobs


def settings(model_folder: Path, **changes: Any) -> ServeSettings:
    values = {"model": str(model_folder), "adapters": [0, 2], "concurrency": [1, 3], "rounds": 2, "dtype": "float32"}
    return ServeSettings(**{**values, "max_new_tokens": 4, **changes})


def test_sides_take_turns_under_each_load(quick: list[Job], model_folder: Path) -> None:
    told: list[str] = []
    report = bench_serve(settings(model_folder), told.append)
    assert [(job.side, len(job.adapters)) for job in quick] == [
        ("lamina", 0),
        ("transformers", 0),
        ("vllm", 0),
        ("transformers", 0),
        ("lamina", 0),
        ("lamina", 2),
        ("vllm", 2),
        ("lamina", 2),
    ]
    assert report.failed == [Failure("vllm", count, "no such model") for count in (0, 2)]
    assert [(one.side, one.adapters) for one in report.left_out] == [
        ("llama.cpp", 0),
        ("llama.cpp", 2),
        ("transformers", 2),
    ]
    assert all(one.reason for one in report.left_out)
    assert [(side.side, side.load.adapters, side.load.concurrency) for side in report.sides] == [
        ("lamina", 0, 1),
        ("lamina", 0, 3),
        ("transformers", 0, 1),
        ("transformers", 0, 3),
        ("lamina", 2, 1),
        ("lamina", 2, 3),
    ]
    assert all(side.limit_share > 0 for side in report.sides)
    assert any("round 2/2  lamina: 10, 10 tokens/s" in line for line in told)
    assert report.settings["peers"] == ["llama.cpp", "transformers", "vllm"]


def test_an_open_loop_takes_the_place_of_the_closed_ones(quick: list[Job], model_folder: Path) -> None:
    report = bench_serve(settings(model_folder, adapters=[0], rate=4.0, peers=["transformers"], rounds=1))
    assert [(side.side, side.load.rate, side.limit_share) for side in report.sides] == [
        ("lamina", 4.0, None),
        ("transformers", 4.0, None),
    ]


def test_prompts_of_a_file_and_a_shape(quick: list[Job], model_folder: Path, tmp_path: Path) -> None:
    seen: list[list[list[int]]] = []
    inner = run_module.run_side

    def look(job: Job) -> SideRun:
        seen.append(job.read_prompts())
        return inner(job)

    path = tmp_path / "prompts.jsonl"
    path.write_text('"a"\n"b"\n')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "run_side", look)
        bench_serve(settings(model_folder, adapters=[0], prompts=str(path), peers=[], rounds=1))
        bench_serve(settings(model_folder, adapters=[0], peers=[], rounds=1))
    assert len(seen[0]) == 2
    # One of warm-up and two measured for each of 1 + 3 streams, and no prompt twice.
    assert len(seen[-1]) >= 12 and len({tuple(prompt) for prompt in seen[-1]}) == len(seen[-1])


def test_nothing_to_compare_when_laminas_own_side_fails(
    quick: list[Job], model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(job: Job) -> SideRun:
        raise BenchError("out of memory")

    monkeypatch.setattr(run_module, "run_side", fail)
    with pytest.raises(BenchError, match="own side failed, so there is nothing to compare: out of memory"):
        bench_serve(settings(model_folder))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"peers": ["vlm"]}, ("--peers", "'vlm'", "vllm")),
        ({"methods": ["lora", "full"]}, ("--methods", "'full'")),
        ({"methods": []}, ("--methods", "names no method")),
        ({"shape": "huge"}, ("--shape", "'huge'", "tinyllama-1.1b")),
        ({"dtype": "int8"}, ("--dtype", "'int8'")),
        ({"adapters": [-1]}, ("--adapters", "-1 is less than 0")),
        ({"adapters": []}, ("--adapters", "names no number")),
        ({"concurrency": [0]}, ("--concurrency", "0 is less than 1")),
    ],
)
def test_a_setting_that_is_not_allowed(changes: dict[str, Any], words: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as caught:
        check_settings(ServeSettings(**changes))
    for word in words:
        assert word in str(caught.value)
