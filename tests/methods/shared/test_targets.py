"""Which modules a pattern selects, and the errors where it selects none."""

from __future__ import annotations

from typing import Any

import peft
import pytest
import torch
from torch import nn

from lamina.compute.weights import freeze_linear
from lamina.config.methods.lora import LoraConfig
from lamina.errors import ConfigError
from lamina.methods.shared.base import inject
from lamina.methods.shared.targets import find_targets, short_targets
from tests.support.architectures import build_architecture
from tests.support.models_zoo import build_model


def test_all_linear_leaves_out_the_head(family: str) -> None:
    model = build_model(family)
    names = find_targets(model, "all-linear")
    linears = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) or type(m).__name__ == "Conv1D"]
    assert sorted([*names, "lm_head"]) == sorted(linears)


def test_names_and_dotted_names() -> None:
    model = build_model("llama")
    assert find_targets(model, ["q_proj"]) == [f"model.layers.{i}.self_attn.q_proj" for i in (0, 1)]
    assert find_targets(model, ["1.mlp.up_proj"]) == ["model.layers.1.mlp.up_proj"]
    assert find_targets(model, ["proj_q", "q_proj"][1:]) == find_targets(model, r".*\.q_proj")


def test_every_pattern_must_match() -> None:
    with pytest.raises(ConfigError) as caught:
        find_targets(build_model("llama"), ["q_prj", "v_proj", "nothing"])
    assert [problem.field for problem in caught.value.problems] == ["method.target_modules"] * 2
    assert "Did you mean 'q_proj'?" in str(caught.value)
    assert "down_proj, gate_proj" in str(caught.value)


def test_a_regular_expression_must_match_a_linear_layer() -> None:
    model = build_model("llama")
    with pytest.raises(ConfigError, match="matches no module"):
        find_targets(model, r"transformer\.h\..*")
    with pytest.raises(ConfigError, match="which is not a linear layer"):
        find_targets(model, r".*embed_tokens")


@pytest.mark.parametrize(("given", "names"), [("q_proj", "q_proj"), ("q_proj,v_proj", "q_proj, v_proj")])
def test_one_string_of_names_is_no_list(given: str, names: str) -> None:
    with pytest.raises(ConfigError, match=rf"{given!r} is one string.* Fix: write a list of names: \[{names}\]"):
        find_targets(build_model("llama"), given)
    assert find_targets(build_model("llama"), names.split(", "))


def test_a_name_of_something_else_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"'embed_tokens' matches model.embed_tokens, a Embedding"):
        find_targets(build_model("llama"), ["embed_tokens", "q_proj"])


def test_short_targets_select_the_same_modules() -> None:
    model = build_model("llama")
    everything = find_targets(model, "all-linear")
    assert short_targets(model, everything) == sorted({name.rpartition(".")[2] for name in everything})
    one = ["model.layers.1.self_attn.q_proj"]
    assert short_targets(model, one) == one


class _Twice(nn.Linear):
    """Computes something else."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(input)


class _Routed(nn.Linear):
    """Returns something else."""

    def forward(self, input: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        scores = super().forward(input)
        return scores, scores.topk(1).indices


class _Scaled(nn.Linear):
    """Holds something else."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input) * self.scale


class _ByHand(nn.Linear):
    """Computes the same in other words."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        product = input @ self.weight.T
        return product if self.bias is None else product + self.bias


@pytest.mark.parametrize(("kind", "taken"), [(_Twice, False), (_Routed, False), (_Scaled, False), (_ByHand, True)])
def test_what_a_class_made_from_linear_computes_decides(kind: type[nn.Linear], taken: bool) -> None:
    assert (freeze_linear(kind(3, 5)) is not None) == taken
    assert (freeze_linear(kind(3, 5).to("meta")) is not None) == taken


@pytest.mark.parametrize("method", [{"r": 4, "lora_alpha": 8}, {"r": 4, "lora_alpha": 8, "use_dora": True}])
def test_linear_layers_of_a_class_of_their_own_are_adapted_as_peft_does(method: dict[str, Any]) -> None:
    injection = inject(build_architecture("falcon"), LoraConfig(**method), seed=0)
    assert {name.rpartition(".")[2] for name in injection.layers} == {
        "dense", "dense_4h_to_h", "dense_h_to_4h", "query_key_value"
    }  # fmt: skip
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for tensor in injection.tensors().values():
            tensor.add_(0.1 * torch.randn(tensor.shape, generator=generator))
    wrapped = peft.get_peft_model(
        build_architecture("falcon"), peft.LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM", **method)
    )
    peft.set_peft_model_state_dict(wrapped, {name: tensor.detach() for name, tensor in injection.tensors().items()})
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        torch.testing.assert_close(injection.model(ids).logits, wrapped.eval()(ids).logits, rtol=1e-5, atol=1e-5)
