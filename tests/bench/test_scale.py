"""`lamina bench scale` on the two-layer model."""

from __future__ import annotations

from pathlib import Path

import pytest

import lamina
from lamina.bench.scale import bench_scale
from lamina.config import load_config
from lamina.errors import BenchError
from tests.support.training import settings


@pytest.mark.slow
def test_every_number_of_processes_is_measured(model_folder: Path, tmp_path: Path) -> None:
    config = load_config(settings(tmp_path, model_folder, train={"gradient_accumulation_steps": 4}))
    told: list[str] = []
    report = bench_scale(config, [1, 2], 3, 1, [8, 512], told.append)
    assert [row.world_size for row in report.measured] == [1, 2]
    assert [row.bytes_per_step > 0 for row in report.measured] == [False, True]
    assert report.measured[0].speedup == 1.0
    assert all(row.tokens_per_second > 0 and len(row.peak_memory_by_rank) == row.world_size for row in report.measured)
    assert report.same_adapter
    assert report.as_json()["same_adapter"] is True
    assert {row.gpus for rows in report.paper.values() for row in rows} == {8, 512}
    assert len(told) == 2
    assert not Path(config.output_dir).exists()


@pytest.mark.slow
def test_a_run_that_fails_says_why(model_folder: Path, tmp_path: Path) -> None:
    config = lamina.load_config({**settings(tmp_path, model_folder), "model": str(tmp_path / "nowhere")})
    with pytest.raises(BenchError, match=r"training in 2 processes failed: .*nowhere"):
        bench_scale(config, [2], 1, 1, [8], lambda message: None)
