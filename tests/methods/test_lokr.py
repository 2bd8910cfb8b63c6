"""LoKr's own: sides and factors as in peft, for every way of decomposing."""

from __future__ import annotations

from pathlib import Path

import peft
import pytest
from peft.tuners.lokr.layer import factorization as peft_factorization

from lamina.config import load_config
from lamina.config.methods.lokr import LoKrConfig
from lamina.errors import ConfigError
from lamina.methods.lokr import factorization
from lamina.methods.shared.base import inject
from tests.support.models_zoo import build_model
from tests.support.peft_oracle import (
    check_loads_what_peft_saved,
    check_peft_loads_what_lamina_saved,
    check_same_training,
    disturb,
    pair,
)

TARGETS = ["k_proj", "gate_proj"]  # 16 x 48 and 80 x 48

# Settings, and the tensors of k_proj that they make.
WAYS = {
    "one factor": ({"r": 1}, {"lokr_w1", "lokr_w2_a", "lokr_w2_b"}),
    "both factors": ({"r": 1, "decompose_both": True}, {"lokr_w1_a", "lokr_w1_b", "lokr_w2_a", "lokr_w2_b"}),
    "both, were W1 not too small": ({"r": 3, "decompose_both": True}, {"lokr_w1", "lokr_w2_a", "lokr_w2_b"}),
    "whole": ({"r": 5}, {"lokr_w1", "lokr_w2"}),
    "a factor that divides": ({"r": 2, "decompose_factor": 4}, {"lokr_w1", "lokr_w2_a", "lokr_w2_b"}),
    "a factor that does not": ({"r": 2, "decompose_factor": 5}, {"lokr_w1", "lokr_w2_a", "lokr_w2_b"}),
}


def theirs(**settings: object) -> peft.LoKrConfig:
    return peft.LoKrConfig(task_type="CAUSAL_LM", **{"r": 2, "alpha": 5, "target_modules": TARGETS, **settings})


@pytest.mark.parametrize("way", WAYS)
def test_trains_as_in_peft(way: str) -> None:
    settings, tensors = WAYS[way]
    injection, model = pair("llama", LoKrConfig(alpha=5, target_modules=TARGETS, **settings), theirs(**settings))
    assert injection.layers["model.layers.0.self_attn.k_proj"].adapter_tensors().keys() == tensors
    check_same_training(injection, model)


@pytest.mark.parametrize("way", WAYS)
def test_both_load_directions(way: str, tmp_path: Path) -> None:
    settings, _ = WAYS[way]
    check_loads_what_peft_saved("llama", tmp_path / "theirs", theirs(**settings))
    config = LoKrConfig(alpha=5, target_modules=TARGETS, **settings)
    injection = inject(build_model("llama", vocab_size=259), config, seed=0)
    disturb(injection.tensors())
    check_peft_loads_what_lamina_saved("llama", tmp_path / "ours", injection)


@pytest.mark.parametrize("factor", [-1, 1, 2, 3, 4, 5, 7, 8, 16, 64])
def test_sides_are_pefts(factor: int) -> None:
    sizes = [*range(1, 130), 576, 1536, 4096, 11008]
    assert [factorization(size, factor) for size in sizes] == [peft_factorization(size, factor) for size in sizes]


def test_initial_tensors() -> None:
    config = LoKrConfig(r=1, decompose_both=True)
    factors = inject(build_model("llama"), config, seed=0).layers["model.layers.1.mlp.down_proj"].adapter_tensors()
    assert {name: tuple(t.shape) for name, t in factors.items()} == {  # 48 = 6 x 8 outputs, 80 = 8 x 10 inputs
        "lokr_w1_a": (6, 1),
        "lokr_w1_b": (1, 8),
        "lokr_w2_a": (8, 1),
        "lokr_w2_b": (1, 10),
    }
    assert not factors["lokr_w1_a"].any()
    for name, bound in (("lokr_w1_b", 8**-0.5), ("lokr_w2_a", 1.0), ("lokr_w2_b", 10**-0.5)):
        assert 0.5 * bound < factors[name].abs().max() <= bound


def test_a_factor_below_one_is_an_error() -> None:
    with pytest.raises(ConfigError, match="0 is neither -1 nor at least 1"):
        load_config({"data": {"train": "x"}, "method": {"type": "lokr", "decompose_factor": 0}})


def test_what_only_peft_has_is_loaded_through_peft(tmp_path: Path) -> None:
    loaded = check_loads_what_peft_saved("llama", tmp_path, theirs(alpha_pattern={"k_proj": 2}))
    assert loaded.injection.config.type == "peft"
