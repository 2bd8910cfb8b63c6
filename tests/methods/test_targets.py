"""Which modules a pattern selects, and the errors where it selects none."""

from __future__ import annotations

import pytest
from tests.models_zoo import build_model
from torch import nn

from lamina.errors import ConfigError
from lamina.methods.targets import find_targets, short_targets


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
    with pytest.raises(ConfigError, match="which is no linear layer"):
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
