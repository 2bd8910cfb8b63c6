"""`lora_alpha` moves with the rank unless it is given, also when a run's configuration is read again and changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lamina.comparison.candidates import build_candidates
from lamina.config import Config, load_config, resolved_values

DATA = {"train": "a.jsonl"}


def alpha(method: dict[str, Any], *overrides: str) -> float:
    return load_config({"data": DATA, "method": method}, overrides).method.lora_alpha  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ({}, 32),
        ({"r": 8}, 16),
        ({"r": 64}, 128),
        ({"r": 8, "lora_alpha": 32}, 32),
        ({"r": 64, "use_rslora": True}, 32),
        ({"type": "dora", "r": 4}, 8),
    ],
)
def test_it_is_twice_the_rank(method: dict[str, Any], expected: float) -> None:
    assert alpha({"type": "lora", **method}) == expected


def test_an_override_of_the_rank_moves_it_and_a_given_one_stays() -> None:
    assert alpha({"type": "lora"}, "method.r=4") == 8
    assert alpha({"type": "lora", "lora_alpha": 16}, "method.r=4") == 16


def test_a_resolved_configuration_keeps_to_that() -> None:
    for method, expected in (({"type": "lora", "r": 8}, 8), ({"type": "lora", "r": 8, "lora_alpha": 16}, 16)):
        config = Config.model_validate({"data": DATA, "method": method})
        assert load_config(resolved_values(config), ["method.r=4"]).method.lora_alpha == expected  # type: ignore[attr-defined]
        assert load_config(resolved_values(config)) == config


def test_runs_from_before_keep_what_they_were_trained_with() -> None:
    values = resolved_values(Config.model_validate({"data": DATA, "method": {"type": "lora", "r": 8}}))
    values["method"]["lora_alpha"] = 32  # the default of then, which was not given
    assert load_config(values).method.lora_alpha == 32  # type: ignore[attr-defined]


def test_candidates_of_a_comparison() -> None:
    def alphas(method: dict[str, Any]) -> list[float]:
        built = build_candidates({"data": DATA, "method": method}, Path("out"), grid={"method.r": ["4", "16"]})
        return [each.config.method.lora_alpha for each in built]  # type: ignore[attr-defined]

    assert alphas({"type": "lora"}) == [8, 32]
    assert alphas({"type": "lora", "lora_alpha": 24}) == [24, 24]
