"""VeRA's own: peft's shared matrices to the bit, saved or drawn again, and training as in peft."""

from __future__ import annotations

from pathlib import Path

import peft
import pytest
import torch

import lamina
from lamina.config.methods.vera import VeraConfig
from lamina.errors import AdapterError
from lamina.methods.shared.base import inject
from tests.support.models_zoo import build_model
from tests.support.peft_oracle import (
    check_loads_what_peft_saved,
    check_peft_loads_what_lamina_saved,
    check_same_training,
    disturb,
    pair,
)

TARGETS = ["q_proj", "k_proj", "down_proj"]  # inputs of 48 and 80, outputs of 48 and 16


def theirs(**settings: object) -> peft.VeraConfig:
    return peft.VeraConfig(task_type="CAUSAL_LM", **{"r": 6, "target_modules": TARGETS, **settings})


def test_the_shared_matrices_are_pefts() -> None:
    config = VeraConfig(r=6, projection_prng_key=5, target_modules=TARGETS)
    fixed = inject(build_model("llama"), config, seed=9).saved_tensors()
    model = peft.get_peft_model(build_model("llama"), theirs(projection_prng_key=5))
    assert fixed["base_model.vera_A"].shape == (6, 80)
    assert fixed["base_model.vera_B"].shape == (48, 6)
    assert torch.equal(fixed["base_model.vera_A"], model.base_model.vera_A["default"])
    assert torch.equal(fixed["base_model.vera_B"], model.base_model.vera_B["default"])


def test_initial_vectors() -> None:
    layer = inject(build_model("llama"), VeraConfig(r=6, d_initial=0.3), seed=0).layers["model.layers.1.mlp.up_proj"]
    assert torch.equal(layer.vera_lambda_d, torch.full((6,), 0.3))
    assert torch.equal(layer.vera_lambda_b, torch.zeros(80))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_trains_as_in_peft(family: str) -> None:
    targets = TARGETS if family == "llama" else ["c_attn", "c_proj"]
    check_same_training(*pair(family, VeraConfig(r=6, target_modules=targets), theirs(target_modules=targets)))


@pytest.mark.parametrize("save_projection", [True, False])
@pytest.mark.parametrize("family", ["llama", "phi"])
def test_both_load_directions(family: str, save_projection: bool, tmp_path: Path) -> None:
    targets = TARGETS if family == "llama" else ["q_proj", "fc2"]
    settings = {"save_projection": save_projection, "projection_prng_key": 3, "target_modules": targets}
    loaded = check_loads_what_peft_saved(family, tmp_path / "theirs", theirs(**settings))
    assert ("base_model.vera_A" in loaded.adapter.tensors) == save_projection
    injection = inject(build_model(family, vocab_size=259), VeraConfig(r=6, **settings), seed=0)
    disturb(injection.tensors())
    check_peft_loads_what_lamina_saved(family, tmp_path / "ours", injection)


def test_saved_matrices_win_over_the_seed(tmp_path: Path) -> None:
    """The format is for machines whose generator gives other numbers: what was saved must be what is used."""
    injection = inject(build_model("llama", vocab_size=259), VeraConfig(r=6, target_modules=TARGETS), seed=0)
    disturb(injection.tensors())
    projections = injection.layers[""]
    with torch.no_grad():
        projections.A.mul_(2.0)
    model = check_peft_loads_what_lamina_saved("llama", tmp_path, injection)
    assert model.peft_config["default"].target_modules == set(TARGETS)
    loaded = lamina.load(tmp_path / "adapter", dtype="float32")
    ids = torch.tensor([[5, 9, 17]])
    with torch.no_grad():
        ours, again = (model(input_ids=ids).logits for model in (injection.model.eval(), loaded.model))
    torch.testing.assert_close(ours, again, rtol=0, atol=0)


def test_dropout_is_that_of_the_low_rank_path() -> None:
    injection = inject(build_model("llama"), VeraConfig(r=6, vera_dropout=0.5, target_modules=TARGETS), seed=0)
    disturb(injection.tensors())
    layer = injection.layers["model.layers.0.self_attn.q_proj"]
    x = torch.randn(4, 48)
    layer.eval()
    torch.testing.assert_close(layer(x) - layer.frozen.matmul(x), x @ layer.delta_weight().T)
    layer.train()
    assert not torch.allclose(layer(x), layer(x))


def test_trained_biases_of_the_base_are_refused(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=r"bias differs from the base's own .*: it was trained too"):
        check_loads_what_peft_saved("qwen2", tmp_path, theirs(bias="all"))


def test_what_only_peft_has_is_loaded_through_peft(tmp_path: Path) -> None:
    loaded = check_loads_what_peft_saved("llama", tmp_path, theirs(layers_to_transform=[0]))
    assert loaded.injection.config.type == "peft"
