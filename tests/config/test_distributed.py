"""The size of a step, and the section `distributed`."""

from __future__ import annotations

from typing import Any

import pytest

from lamina.config import load_config
from lamina.errors import ConfigError


def loaded(**sections: Any) -> Any:
    return load_config({"data": {"train": "rows.jsonl"}, **sections})


def test_a_step_by_micro_batches_or_by_its_size() -> None:
    assert loaded(train={"gradient_accumulation_steps": 6}).train.micro_batches_per_step == 6
    assert loaded(train={"global_batch_size": 32}).train.micro_batches_per_step == 8
    train = {"global_batch_size": 32, "per_device_train_batch_size": 32}
    assert loaded(train=train).train.micro_batches_per_step == 1


@pytest.mark.parametrize(
    ("train", "named"),
    [
        ({"global_batch_size": 32, "gradient_accumulation_steps": 2}, "both set the size of a step"),
        ({"global_batch_size": 30}, "no multiple of per_device_train_batch_size 4"),
        ({"global_batch_size": 0}, "global_batch_size"),
        (
            {"global_batch_size": 8, "optim": "galore_adamw_layerwise", "max_grad_norm": 0.0},
            "updates each parameter as soon as its gradient is ready",
        ),
    ],
)
def test_sizes_that_contradict(train: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        loaded(train=train, method={"type": "full"})


@pytest.mark.parametrize(
    "section", [{"strategy": "dp"}, {"timeout": 0}, {"sp_size": 0}, {"dp_shard_size": 1}, {"world_size": 2}]
)
def test_what_the_section_refuses(section: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="distributed"):
        loaded(distributed=section)
