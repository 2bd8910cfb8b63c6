"""Learning-rate schedules: those of transformers, for every step, with the settings that each takes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from transformers import get_scheduler

from lamina.config import TrainConfig
from lamina.config.train import SCHEDULE_SETTINGS
from lamina.errors import ConfigError
from lamina.optim import build_schedule

SETTINGS: dict[str, dict[str, Any] | None] = {
    **dict.fromkeys(SCHEDULE_SETTINGS),
    "cosine_with_min_lr": {"min_lr_rate": 0.1},
    "cosine_with_restarts": {"num_cycles": 2},
    "polynomial": {"power": 2.0, "lr_end": 1e-5},
    "warmup_stable_decay": {"num_decay_steps": 4, "min_lr_ratio": 0.1},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_rates_are_those_of_transformers(name: str) -> None:
    warmup = 0 if name == "constant" else 3
    config = TrainConfig(
        learning_rate=1e-2, lr_scheduler_type=name, lr_scheduler_kwargs=SETTINGS[name], warmup_steps=warmup
    )
    ours = build_schedule(config, 20)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-2)
    scheduler = get_scheduler(name, optimizer, warmup, 20, scheduler_specific_kwargs=SETTINGS[name])
    for step in range(20):
        assert ours(step) == pytest.approx(scheduler.get_last_lr()[0], abs=1e-12), step
        optimizer.step()
        scheduler.step()


def test_a_smallest_rate_is_reached() -> None:
    kwargs = {"min_lr": 1e-3}
    config = TrainConfig(learning_rate=1e-2, lr_scheduler_type="cosine_with_min_lr", lr_scheduler_kwargs=kwargs)
    assert build_schedule(config, 50)(50) == pytest.approx(1e-3)
    assert math.isclose(build_schedule(config, 50)(0), 1e-2)


@pytest.mark.parametrize(
    ("name", "kwargs", "words"),
    [
        ("cosine", {"min_lr_rate": 0.1}, "takes no settings"),
        ("cosine_with_min_lr", None, "needs where to end"),
        ("cosine_with_min_lr", {"min_lr_rate": 0.1, "min_lr": 1e-5}, "needs where to end"),
        ("polynomial", {"num_cycles": 2}, "takes lr_end, power"),
        ("warmup_stable_decay", None, "num_decay_steps"),
    ],
)
def test_settings_that_do_not_belong_are_refused(name: str, kwargs: Any, words: str) -> None:
    with pytest.raises((ConfigError, ValueError), match=words):
        TrainConfig(lr_scheduler_type=name, lr_scheduler_kwargs=kwargs)
