"""Figures: percentiles, medians over rounds, ratios, and the JSON that others read."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from lamina.bench.serving.job import AdapterFacts, SideRun
from lamina.bench.serving.plot import plot
from lamina.bench.serving.reduce import Measured, build_report, milliseconds
from lamina.bench.serving.report import Failure, LeftOut, Load, ServeReport, SideRatio
from tests.support.serving_bench import measured, window

BARE, MIXED, OPEN = Load(0, 2, None), Load(1, 2, None), Load(0, None, 5.0)
LORA = AdapterFacts("000-lora", "x", "lora", 16, 1000, 0)


def report() -> ServeReport:
    return build_report(
        {"model": "m", "dtype": "float32", "max_new_tokens": 5},
        {
            ("lamina", BARE): [measured(1.0), measured(2.0)],
            ("transformers", BARE): [measured(4.0), measured(4.0)],
            ("vllm", BARE): [measured(2.0)],
            ("lamina", MIXED): [measured(2.0, [LORA]), measured(2.0, [LORA])],
            ("lamina", OPEN): [Measured(window(1.0, None, rate=5.0), [], None, 1, {})],
        },
        [Failure("vllm", 0, "gone")],
        [LeftOut("llama.cpp", 0, "not there")],
    )


def test_percentiles() -> None:
    assert milliseconds([0.001 * number for number in range(1, 102)]) == {"p50": 51.0, "p95": 96.0, "p99": 100.0}
    assert milliseconds([0.5]) == {"p50": 500.0, "p95": 500.0, "p99": 500.0}
    assert milliseconds([]) == {"p50": None, "p95": None, "p99": None}


def test_figures_of_a_side() -> None:
    side = report().sides[0]
    assert (side.side, side.load) == ("lamina", Load(0, 2, None))
    assert side.tokens_per_second == pytest.approx((10 / 1.0 + 10 / 2.0) / 2)
    assert side.waits.ttft_ms["p50"] == pytest.approx(300)  # of 200, 200, 400 and 400
    assert side.waits.itl_ms["p50"] == pytest.approx(300)
    # Two streams, 0.2 and 0.4 seconds a token: 10 and 5 tokens a second, where the limit is 100.
    assert side.decode_tokens_per_second == pytest.approx(7.5)
    assert side.limit_tokens_per_second == 100
    assert side.limit_share == pytest.approx(0.075)
    assert (side.limit_read_ms, side.limit_product_ms) == (20, 10)


def test_an_open_loop_has_no_limit() -> None:
    side = report().sides[-1]
    assert side.load.rate == 5.0
    assert side.limit_share is side.limit_tokens_per_second is side.decode_tokens_per_second is None
    assert side.tokens_per_second == 10


def test_figures_by_adapter() -> None:
    bare, mixed = report().sides[0], report().sides[3]
    assert bare.by_adapter == []
    (own,) = mixed.by_adapter
    assert (own.adapter, own.method, own.rank, own.requests) == ("000-lora", "lora", 16, 4)
    assert own.tokens_per_second == pytest.approx(2.5)
    assert own.waits.ttft_ms["p50"] == pytest.approx(400)


def ratio(found: ServeReport, side: str, adapters: int, over: str) -> SideRatio:
    (one,) = [r for r in found.ratios if (r.side, r.load.adapters, r.over) == (side, adapters, over)]
    return one


def test_ratios_are_medians_of_those_of_the_rounds() -> None:
    found = report()
    best = ratio(found, "lamina", 0, "best peer")
    assert best.peer == "vllm" and best.tokens_per_second == 2  # of its one round
    assert ratio(found, "lamina", 0, "transformers").tokens_per_second == 3  # of 4 and 2
    assert ratio(found, "vllm", 0, "transformers").tokens_per_second == 2
    mixed = ratio(found, "lamina", 1, "no adapters")
    assert mixed.tokens_per_second == 0.75  # of 0.5 and 1
    assert mixed.limit_tokens_per_second == 1
    assert best.limit_tokens_per_second is None
    assert not [r for r in found.ratios if r.side == "transformers"]


def test_the_json_is_the_contract() -> None:
    value = json.loads(json.dumps(report().as_json()))
    assert value.keys() >= {"settings", "machine", "sides", "ratios", "failed", "left_out", "rounds"}
    for side in value["sides"]:
        assert side.keys() >= {"side", "adapters", "concurrency", "tokens_per_second", "limit_share"}
        assert side["ttft_ms"].keys() == side["itl_ms"].keys() == {"p50", "p95", "p99"}
    assert value["left_out"] == [{"side": "llama.cpp", "adapters": 0, "reason": "not there"}]
    assert value["failed"] == [{"side": "vllm", "adapters": 0, "error": "gone"}]
    (own,) = value["sides"][3]["by_adapter"]
    assert own.keys() == {"adapter", "method", "rank", "requests", "tokens_per_second", "ttft_ms", "itl_ms"}
    assert value["ratios"][0].keys() >= {"side", "adapters", "concurrency", "rate", "over", "peer"}
    assert value["rounds"][1]["round"] == 2 and value["rounds"][1]["seconds"] == 2.0


def test_a_disturbed_side_is_named() -> None:
    found = report()
    assert found.disturbed() == []
    found.sides[0] = dataclasses.replace(found.sides[0], other_cores=0.9)
    assert found.disturbed() == ["lamina (0 adapters, 2 streams): other processes kept 0.9 cores busy"]


def test_what_a_process_measured_survives_json() -> None:
    run = SideRun("lamina", {"a": 1}, ["x"], [window(1.0)], 5)
    assert SideRun.from_json(json.loads(json.dumps(run.as_json()))) == run


def test_the_plot_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    plot(report(), tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000
