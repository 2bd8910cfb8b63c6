"""Keyword arguments of `lamina.train`: where each goes, and what a mistake says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from lamina.api.settings import with_settings
from lamina.errors import ConfigError


def test_each_setting_goes_to_its_section() -> None:
    found = with_settings({}, {"learning_rate": 1e-4, "max_length": 64, "r": 8, "seed": 3, "output_dir": Path("a/b")})
    assert found == {
        "train": {"learning_rate": 1e-4},
        "data": {"max_length": 64},
        "method": {"r": 8},
        "seed": 3,
        "output_dir": "a/b",
    }


def test_sections_are_put_over_what_there_is() -> None:
    values = {"train": {"num_train_epochs": 3, "optim": "lion"}}
    assert with_settings(values, {"train": {"max_steps": 5}}) == {"train": {"optim": "lion", "max_steps": 5}}
    assert values == {"train": {"num_train_epochs": 3, "optim": "lion"}}, "what was given is not changed"


def test_settings_are_those_of_the_method() -> None:
    assert with_settings({"method": {"type": "prompt_tuning"}}, {"num_virtual_tokens": 4})["method"] == {
        "type": "prompt_tuning",
        "num_virtual_tokens": 4,
    }


def test_numbers_of_numpy_and_dtypes_of_torch_are_plain() -> None:
    given = {
        "learning_rate": np.logspace(-4, -3, 3)[0],
        "r": np.int64(8),
        "use_rslora": np.bool_(True),
        "target_modules": {"v_proj", "q_proj"},
        "dtype": torch.float32,
        "train": {"max_steps": np.int32(5)},
    }
    found = with_settings({}, given)
    assert found == {
        "train": {"learning_rate": 1e-4, "max_steps": 5},
        "method": {"r": 8, "use_rslora": True, "target_modules": ["q_proj", "v_proj"]},
        "dtype": "float32",
    }
    assert {type(found["method"]["r"]), type(found["train"]["max_steps"])} == {int}


@pytest.mark.parametrize(("name", "wanted"), [("lr", "learning_rate"), ("epochs", "num_train_epochs"), ("rank", "r")])
def test_short_names_are_known(name: str, wanted: str) -> None:
    with pytest.raises(ConfigError, match=f"Fix: write `[a-z]+: {{{wanted}: 1}}`"):
        with_settings({}, {name: 1})


def test_a_typing_mistake_gets_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match=r"learning_rat: .*learning_rate"):
        with_settings({}, {"learning_rat": 1e-4})
    with pytest.raises(ConfigError, match=r"max_lenght.*max_length"):
        with_settings({}, {"max_lenght": 1})


def test_names_of_other_libraries_get_what_lamina_calls_them() -> None:
    with pytest.raises(ConfigError, match=r"bf16: .*dtype"):
        with_settings({}, {"bf16": True})
    with pytest.raises(ConfigError, match=r"max_seq_length: .*max_length"):
        with_settings({}, {"max_seq_length": 512})
    with pytest.raises(ConfigError, match=r"2 problems"):
        with_settings({}, {"load_in_4bit": True, "zzz": 1})
