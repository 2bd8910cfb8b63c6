"""The learning rate that a run takes when none is given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

import lamina
from lamina.config import load_config
from lamina.runs.events import Step
from lamina.training.rate import with_learning_rate
from tests.support.models_zoo import build_model
from tests.support.training import settings


def config_of(method: str = "lora", **train: Any) -> Any:
    return load_config({"model": "m", "data": {"train": "rows.jsonl"}, "method": {"type": method}, "train": train})


@pytest.mark.parametrize(
    ("width", "method", "rate"),
    [
        (64, "lora", 1e-3),
        (576, "lora", 1e-3),
        (1152, "lora", 5.8e-4),
        (4096, "lora", 2.2e-4),
        (8192, "lora", 1.3e-4),
        (4096, "full", 2.2e-5),
        (4096, "prompt_tuning", 0.3),
        (4096, "ia3", 3e-2),
    ],
)
def test_wide_models_get_less(width: int, method: str, rate: float) -> None:
    model = build_model("llama")
    model.config.hidden_size = width
    told: list[str] = []
    config = with_learning_rate(config_of(method), model, told.append)
    assert config.train.peak_learning_rate == pytest.approx(rate)
    assert len(told) == (rate != config_of(method).train.peak_learning_rate)
    assert "learning_rate" not in config.train.model_fields_set


def test_a_rate_that_was_given_is_kept() -> None:
    model = build_model("gpt2")  # whose width is called n_embd
    model.config.n_embd = 4096
    told: list[str] = []
    given = config_of(learning_rate=1e-3)
    assert with_learning_rate(given, model, told.append) is given and not told
    assert with_learning_rate(config_of(), model, told.append).train.learning_rate == pytest.approx(2.2e-4)
    assert "width 576" in told[0] and "train.learning_rate" in told[0]


def test_the_run_uses_it_and_says_so(tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lamina.training.rate.MEASURED_WIDTH", 16)
    values = settings(tmp_path, model_folder)
    del values["train"]["learning_rate"]
    run = lamina.train(values)
    assert run.summary is not None and run.summary.learning_rate is not None
    assert run.summary.learning_rate < load_config(values).train.peak_learning_rate
    assert max(step.learning_rate for step in run.events(Step)) <= run.summary.learning_rate
    assert "train.learning_rate" not in yaml.safe_load((run.path / "config.yaml").read_text())["given"]
