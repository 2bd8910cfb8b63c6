"""IA3's own: which layers are scaled and where, on every family, and training as in peft."""

from __future__ import annotations

from pathlib import Path

import peft
import pytest
import torch
from torch import nn

from lamina.config import load_config
from lamina.config.methods.ia3 import IA3Config
from lamina.errors import ConfigError
from lamina.export.fold import fold_in
from lamina.methods.shared.base import inject
from tests.support.models_zoo import build_model
from tests.support.peft_oracle import (
    check_loads_what_peft_saved,
    check_peft_loads_what_lamina_saved,
    check_same_training,
    disturb,
    pair,
)

# What IA3 takes by itself: layers scaled at their output, and at their input.
OTHERS = {"gpt2": (["attn.c_attn"], ["mlp.c_proj"]), "phi": (["self_attn.k_proj", "self_attn.v_proj"], ["mlp.fc2"])}
USUAL = (["self_attn.k_proj", "self_attn.v_proj"], ["mlp.down_proj"])


def theirs(family: str, **settings: object) -> peft.IA3Config:
    at_output, at_input = OTHERS.get(family, USUAL)
    chosen = {"target_modules": at_output + at_input, "feedforward_modules": at_input, **settings}
    return peft.IA3Config(task_type="CAUSAL_LM", **chosen)


def test_default_targets(family: str) -> None:
    layers = inject(build_model(family), IA3Config(), seed=0).layers
    at_output, at_input = OTHERS.get(family, USUAL)
    for name, layer in layers.items():
        assert name.endswith(tuple(at_input if layer.is_feedforward else at_output)), name
        frozen = layer.frozen
        wanted = (1, frozen.in_features) if layer.is_feedforward else (frozen.out_features, 1)
        assert layer.ia3_l.shape == wanted
    assert len(layers) == 2 * len(at_output + at_input)


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi"])
def test_trains_as_in_peft(family: str) -> None:
    check_same_training(*pair(family, IA3Config(), theirs(family)))


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2", "phi", "qwen3"])
def test_both_load_directions(family: str, tmp_path: Path) -> None:
    loaded = check_loads_what_peft_saved(family, tmp_path / "theirs", theirs(family))
    assert loaded.injection.layers.keys() == inject(build_model(family), IA3Config(), seed=0).layers.keys()
    injection = inject(build_model(family, vocab_size=259), IA3Config(), seed=0)
    disturb(injection.tensors())
    check_peft_loads_what_lamina_saved(family, tmp_path / "ours", injection)


@pytest.mark.parametrize(
    ("family", "settings", "scaled_at_input"),
    [
        ("gpt2", {"target_modules": "all-linear"}, 2),
        ("gpt2", {"target_modules": ["c_proj"], "feedforward_modules": ["attn.c_proj"]}, 2),
        ("llama", {"target_modules": r".*\.1\..*_proj"}, 1),
        ("llama", {"target_modules": ["v_proj", "down_proj"], "feedforward_modules": []}, 0),
        ("llama", {"target_modules": ["v_proj"]}, 0),
        ("llama", {"target_modules": "all-linear", "feedforward_modules": r".*mlp\.(up|gate)_proj"}, 4),
        ("llama", {"init_ia3_weights": False}, 2),
    ],
)
def test_chosen_layers_are_scaled_alike_in_peft(
    family: str, settings: dict[str, object], scaled_at_input: int, tmp_path: Path
) -> None:
    injection = inject(build_model(family, vocab_size=259), IA3Config(**settings), seed=0)
    assert sum(layer.is_feedforward for layer in injection.layers.values()) == scaled_at_input
    disturb(injection.tensors())
    check_peft_loads_what_lamina_saved(family, tmp_path, injection)


def test_a_scaled_output_scales_the_bias_and_folds_with_it() -> None:
    model = build_model("phi")
    injection = inject(model, IA3Config(), seed=0)
    disturb(injection.tensors())
    layer = injection.layers["model.layers.0.self_attn.k_proj"]
    scales, weight, bias = layer.ia3_l.detach().clone(), layer.weight.clone(), layer.bias.clone()
    down = injection.layers["model.layers.0.mlp.fc2"]
    assert down.bias is not None and down.delta_bias() is None
    fold_in(injection)
    folded = model.get_submodule("model.layers.0.self_attn.k_proj")
    assert isinstance(folded, nn.Linear) and bias.any()
    torch.testing.assert_close(folded.weight, weight * scales)
    torch.testing.assert_close(folded.bias, bias * scales[:, 0])


def test_scales_that_bfloat16_cannot_hold_still_act() -> None:
    injection = inject(build_model("llama", torch.bfloat16), IA3Config(target_modules=["k_proj"]), seed=0)
    layer = injection.layers["model.layers.0.self_attn.k_proj"]
    x = torch.randn(400, 48).to(torch.bfloat16)
    with torch.no_grad():
        before = layer(x).float()
        layer.ia3_l += 0.003  # rounded to bfloat16, it would be 1 as before
        after = layer(x)
    assert after.dtype == torch.bfloat16
    change = float(((after.float() - before) * before).sum() / before.square().sum())
    assert 0.002 < change < 0.004


def test_drawn_scales_follow_the_seed() -> None:
    first, again, other = (
        inject(build_model("llama"), IA3Config(init_ia3_weights=False), seed=seed).tensors() for seed in (0, 0, 1)
    )
    name = "base_model.model.model.layers.1.mlp.down_proj.ia3_l"
    assert torch.equal(first[name], again[name])
    assert not torch.equal(first[name], other[name])
    assert 0.7 < first[name].std() < 1.3


def test_a_model_whose_layers_have_other_names_is_an_error() -> None:
    model = build_model("llama")
    for layer in model.model.layers:
        layer.mlp.last = layer.mlp.down_proj
        del layer.mlp.down_proj
    with pytest.raises(ConfigError) as caught:
        inject(model, IA3Config(), seed=0)
    (problem,) = caught.value.problems
    assert problem.field == "method.target_modules"
    assert "the output of a feed-forward; they are gate_proj, k_proj, last, o_proj" in problem.message


@pytest.mark.parametrize("feedforward", [["down_prj"], ["q_proj"], r"mlp\..*"])
def test_feedforward_modules_must_be_among_the_targets(feedforward: str | list[str]) -> None:
    with pytest.raises(ConfigError, match=r"method.feedforward_modules: .* matches none of the layers") as caught:
        inject(build_model("llama"), IA3Config(feedforward_modules=feedforward), seed=0)
    assert "down_proj, k_proj, v_proj" in str(caught.value)


def test_a_rank_is_refused_with_the_reason() -> None:
    with pytest.raises(ConfigError, match="IA3 has no rank"):
        load_config({"data": {"train": "x"}, "method": {"type": "ia3", "r": 4}})


def test_what_only_peft_has_is_loaded_through_peft(tmp_path: Path) -> None:
    loaded = check_loads_what_peft_saved("llama", tmp_path, theirs("llama", modules_to_save=["norm"]))
    assert loaded.injection.config.type == "peft"
