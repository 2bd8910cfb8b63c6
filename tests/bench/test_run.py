"""The comparison: which sides run and in which order, what becomes of failures, and the figures."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path

import pytest

from lamina.bench import run as run_module
from lamina.bench import worker
from lamina.bench.job import Job, SideRun
from lamina.bench.optional import is_installed, optional
from lamina.bench.plot import check_plot
from lamina.bench.report import build_report, plot
from lamina.bench.run import WARMUP, BenchSettings, bench_train, build_batches, check_settings, choose_sides, run_side
from lamina.errors import BenchError, ConfigError, DataError
from tests.support.bench import job, measured, write_file


@pytest.fixture
def settings(model_folder: Path, tmp_path: Path) -> BenchSettings:
    """Peft beside lamina on the two-layer model, two rounds of two steps."""
    return BenchSettings(
        model=str(model_folder),
        data=str(write_file(tmp_path / "rows.jsonl")),
        columns={"prompt": "question", "completion": "answer"},
        peers=["peft"],
        steps=2,
        rounds=2,
        tokens_per_step=128,
        max_length=128,
        dtype="float32",
    )


def test_sides_take_turns_and_a_failing_one_does_not_stop_the_others(
    settings: BenchSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []

    def pretend(work: Job, python: str | None) -> SideRun:
        order.append(work.side)
        if work.side == "litgpt":
            raise BenchError("no such model")
        return measured(work.side, [9.0, 1.0, 1.0] if work.side == "lamina" else [9.0, 2.0, 3.0])

    monkeypatch.setattr(run_module, "run_side", pretend)
    told: list[str] = []
    changed = BenchSettings(**{**vars(settings), "peers": ["peft", "litgpt"], "python": {"litgpt": "/other/python"}})
    report = bench_train(changed, told.append)
    assert order == ["lamina", "peft", "litgpt", "peft", "lamina"]
    assert report.failed == {"litgpt": "no such model"}
    assert [side.side for side in report.sides] == ["lamina", "peft"]
    assert report.ratios[0].speed == 2.5
    assert any("round 2/2  peft" in line and "40 tokens/s" in line for line in told)


def test_nothing_to_compare_when_laminas_own_side_fails(
    settings: BenchSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(work: Job, python: str | None) -> SideRun:
        raise BenchError("out of memory")

    monkeypatch.setattr(run_module, "run_side", fail)
    with pytest.raises(BenchError, match="out of memory"):
        bench_train(settings)


def test_figures_are_medians_over_steps_and_rounds() -> None:
    runs = {
        "lamina": [measured("lamina", [50, 1, 2, 4]), measured("lamina", [50, 2, 4, 8], peak=400)],
        "trl": [measured("trl", [90, 4, 4, 4], peak=900, loss=2.25), measured("trl", [90, 8, 8, 8], peak=900)],
    }
    report = build_report({"model": "m"}, runs, {"litgpt": "why"}, {})
    own, peer = report.sides
    assert own.step_seconds == 3
    assert own.tokens_per_second == pytest.approx((100 / 2 + 100 / 4) / 2)
    assert own.supervised_tokens_per_second == pytest.approx(0.4 * own.tokens_per_second)
    assert own.gemm_share == pytest.approx((1 / 2 + 1 / 4) / 2)
    assert (own.peak_bytes, own.loaded_bytes, peer.peak_bytes) == (350, 100, 900)
    (ratio,) = report.ratios
    assert ratio.speed == 2  # of 4, 2, 1 in the first round, and again in the second
    assert ratio.gemm_share == 2
    assert ratio.peak_memory == pytest.approx((300 / 900 + 400 / 900) / 2)
    assert ratio.training_memory == pytest.approx((200 / 800 + 300 / 800) / 2)
    assert ratio.loss_difference == pytest.approx(0.25)
    assert report.flops["frozen_forward"] == 10
    assert report.gemm_rate == 25
    assert not own.disturbed
    assert dataclasses.replace(own, other_cores=0.5).disturbed
    assert report.as_json()["rounds"]["trl"][1]["steps"][0]["limit_seconds"] is None


def test_plot_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    runs = {side: [measured(side, [5, 1, 2])] for side in ("lamina", "peft")}
    settings = {"model": "m", "dtype": "float32", "rank": 4, "tokens_per_step": 100}
    plot(build_report(settings, runs, {}, {}), tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000


@pytest.mark.parametrize("name", ["plot.txt", "missing/plot.png"])
def test_a_plot_that_cannot_be_written_is_found_before_measuring(name: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    with pytest.raises(ConfigError, match="--plot"):
        check_plot(tmp_path / name)


def test_settings_are_checked_all_at_once() -> None:
    wrong = BenchSettings(peers=["tlr"], shape="gemma", dtype="int8", python={"litgtp": "x"})
    with pytest.raises(ConfigError) as caught:
        check_settings(wrong)
    assert [problem.field for problem in caught.value.problems] == ["--peers", "--python", "--shape", "--dtype"]
    assert "'trl'" in str(caught.value)


def test_peers_that_are_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "is_installed", lambda package: package != "trl")
    sides, left_out = choose_sides(BenchSettings())
    assert sides[0] == "lamina"
    assert "peft" in sides
    assert {"trl", "trl-checkpointing"} <= left_out.keys()
    assert "lamina[bench]" in left_out["trl"]
    with pytest.raises(BenchError, match=r"trl .* pip install 'lamina\[bench\]'"):
        choose_sides(BenchSettings(peers=["trl"]))
    assert choose_sides(BenchSettings(peers=["trl"], python={"trl": "/other/python"}))[0] == ["lamina", "trl"]


def test_an_absent_package_names_how_to_get_it() -> None:
    if is_installed("unsloth"):
        pytest.skip("unsloth is installed")
    with pytest.raises(BenchError, match="pip install unsloth"):
        optional("unsloth.models")


def test_batches_are_full_steps_of_whole_rows(settings: BenchSettings, model_folder: Path) -> None:
    batches = build_batches(settings, model_folder, lambda message: None)
    assert len(batches) == settings.steps + WARMUP
    rows = [example.row for batch in batches for example in batch]
    assert len(rows) == len(set(rows))
    assert all(0.9 * 128 <= sum(map(len, batch)) <= 128 for batch in batches)
    with pytest.raises(DataError, match="lower --steps"):
        build_batches(BenchSettings(**{**vars(settings), "steps": 99}), model_folder, lambda message: None)


def test_a_process_that_fails_says_its_last_words(model_folder: Path, tmp_path: Path) -> None:
    work = job("lamina", model_folder, tmp_path)
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\necho first >&2\necho out of luck >&2\nexit 3\n")
    script.chmod(0o755)
    with pytest.raises(BenchError, match=r"^out of luck$"):
        run_side(work, str(script))
    script.write_text("#!/bin/sh\nexit 3\n")
    with pytest.raises(BenchError, match="exit code 3"):
        run_side(work, str(script))
    with pytest.raises(BenchError, match="cannot be started"):
        run_side(work, "/no/such/python")


def test_a_worker_prints_one_json_object_or_one_message(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def call(work: Job) -> str:
        monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(work.as_json())))
        worker.main()
        return capsys.readouterr().out

    found = SideRun.from_json(json.loads(call(job("lamina", model_folder, tmp_path))))
    assert (found.side, len(found.steps)) == ("lamina", 3)

    def refuse(name: str) -> None:
        raise BenchError("not this model")

    monkeypatch.setattr(worker, "find_side", refuse)
    with pytest.raises(SystemExit, match="not this model"):
        call(job("lamina", model_folder, tmp_path))
