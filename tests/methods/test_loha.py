"""LoHa's own: as a path and as a whole matrix the same as in peft."""

from __future__ import annotations

from pathlib import Path

import peft
import pytest
import torch

from lamina.config.methods.loha import LoHaConfig
from lamina.errors import AdapterError, ConfigError
from lamina.methods.loha import METHOD
from lamina.methods.shared.base import inject
from tests.support.models_zoo import build_model
from tests.support.peft_oracle import (
    check_loads_what_peft_saved,
    check_peft_loads_what_lamina_saved,
    check_same_training,
    disturb,
    pair,
)

TARGETS = ["q_proj", "gate_proj"]


def theirs(**settings: object) -> peft.LoHaConfig:
    return peft.LoHaConfig(task_type="CAUSAL_LM", **{"r": 3, "alpha": 5, "target_modules": TARGETS, **settings})


@pytest.mark.parametrize(("r", "is_low_rank"), [(3, True), (8, False)])
def test_trains_as_in_peft(r: int, is_low_rank: bool) -> None:
    injection, model = pair("llama", LoHaConfig(r=r, alpha=5, target_modules=TARGETS), theirs(r=r))
    assert {layer.rank for layer in injection.layers.values()} == {r**2 if is_low_rank else None}
    check_same_training(injection, model)


@pytest.mark.parametrize("family", ["llama", "phi"])
def test_both_load_directions(family: str, tmp_path: Path) -> None:
    targets = TARGETS if family == "llama" else ["q_proj", "fc1"]
    check_loads_what_peft_saved(family, tmp_path / "theirs", theirs(target_modules=targets, rank_dropout=0.1))
    injection = inject(build_model(family, vocab_size=259), LoHaConfig(r=3, alpha=5, target_modules=targets), seed=0)
    disturb(injection.tensors())
    check_peft_loads_what_lamina_saved(family, tmp_path / "ours", injection)


def test_initial_tensors() -> None:
    layer = inject(build_model("llama"), LoHaConfig(r=4), seed=0).layers["model.layers.1.mlp.down_proj"]
    for tensor, bound in ((layer.hada_w1_a, 0.5), (layer.hada_w1_b, 80**-0.5), (layer.hada_w2_a, 0.5)):
        assert 0.9 * bound < tensor.abs().max() <= bound
    assert not layer.hada_w2_b.any()


def test_rank_above_the_width_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"method.r: 17 is larger than the smaller side of .*k_proj \(16\)"):
        METHOD.prepare(inject(build_model("llama"), LoHaConfig(r=17, target_modules=["k_proj"]), seed=0), [])


def test_what_only_peft_has_is_loaded_through_peft(tmp_path: Path) -> None:
    loaded = check_loads_what_peft_saved("llama", tmp_path, theirs(rank_pattern={"q_proj": 2}))
    assert loaded.injection.config.type == "peft"


def test_an_older_configuration_has_defaults_and_a_wrong_one_is_refused() -> None:
    written = METHOD.peft_config(LoHaConfig(), ["q_proj"], "base")
    assert METHOD.from_peft(written) == LoHaConfig(target_modules=["q_proj"])
    older = {key: value for key, value in written.items() if key != "alpha"}
    assert METHOD.from_peft(older).alpha == 8  # peft's default
    with pytest.raises(AdapterError, match="lacks alpha"):
        METHOD.from_peft({**older, "peft_type": "NOBODY_KNOWS"})
    with pytest.raises(AdapterError, match="does not fit lamina's LoHa: r: "):
        METHOD.from_peft({**written, "r": 0})


def test_the_low_rank_path_is_the_hadamard_product() -> None:
    layer = inject(build_model("llama"), LoHaConfig(r=3), seed=0).layers["model.layers.0.mlp.down_proj"]
    disturb(layer.adapter_tensors())
    path = layer.low_rank_path()
    assert path is not None
    torch.testing.assert_close(path.scaling * path.B @ path.A, layer.delta_weight())
