"""Overrides replace what they contradict, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from lamina.config import load_config
from lamina.errors import ConfigError

DATA = {"train": "a.jsonl"}


def loaded(values: dict[str, Any], *overrides: str) -> Any:
    return load_config({"data": DATA, **values}, overrides)


def test_steps_and_epochs() -> None:
    both = {"train": {"num_train_epochs": 2, "optim": "lion"}}
    assert loaded(both, "train.max_steps=5").train.epochs is None
    assert loaded(both, "train.max_steps=5").train.optim == "lion"
    assert loaded({"train": {"max_steps": 5}}, "train.num_train_epochs=2").train.max_steps is None
    assert loaded(both, "train.max_steps=null").train.epochs == 2
    with pytest.raises(ConfigError, match="keep one of them"):
        loaded({}, "train.max_steps=5", "train.num_train_epochs=1")


def test_warmup() -> None:
    assert loaded({"train": {"warmup_ratio": 0.1}}, "train.warmup_steps=5").train.warmup_ratio == 0
    assert loaded({"train": {"warmup_steps": 5}}, "train.lr_scheduler_type=constant").train.warmup_steps == 0


def test_no_evaluation() -> None:
    values = {"data": {**DATA, "eval": 0.1, "group_by": "id"}, "train": {"eval_steps": 5, "early_stopping_patience": 2}}
    found = loaded(values, "data.eval=null")
    assert found.train.eval_steps is None and found.data.group_by is None
    assert loaded({"data": values["data"]}, "data.eval=b.jsonl").data.group_by is None


def test_another_method_leaves_its_fields_behind() -> None:
    lora = {"method": {"type": "lora", "r": 4, "target_modules": ["q_proj"]}}
    assert loaded(lora, "method.type=ia3").method.target_modules == ["q_proj"]
    with pytest.raises(ConfigError, match="unknown key"):
        loaded(lora, "method.type=ia3", "method.r=8")
    assert loaded(lora, "method.type=dora").method.r == 4


def test_another_optimizer_leaves_its_settings_behind() -> None:
    galore = {"method": {"type": "full"}, "train": {"optim": "galore_adamw", "galore": {"rank": 4}}}
    assert loaded(galore, "train.optim=adamw_torch").train.galore is None
    lion = {"train": {"optim": "adamw_torch", "adam_epsilon": 1e-6}}
    assert loaded(lion, "train.optim=lion").train.adam_epsilon is None


def test_packing() -> None:
    assert loaded({"data": {**DATA, "packing_strategy": "wrapped"}}, "data.packing=false").data.packing is False
    assert loaded({"data": {**DATA, "packing": False, "group_by_length": True}}, "data.packing=true").data.packing
