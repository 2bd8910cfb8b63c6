"""A causal model passes, one that sees later tokens does not, whatever its architecture, dtype and storage."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from lamina.compute.weights.packed import FourBitLinear
from lamina.errors import ModelError
from lamina.structure.causality import check_causal
from lamina.structure.plain_tokens import plain_tokens
from tests.support.architectures import ARCHITECTURES, BIDIRECTIONAL, build_architecture
from tests.support.models_zoo import build_model


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_causal_models_pass(architecture: str) -> None:
    model = build_architecture(architecture)
    check_causal(model)
    if architecture in ("llama", "mixtral", "qwen3_next", "lfm2", "gpt2"):
        check_causal(model.to(torch.bfloat16))


@pytest.mark.parametrize("architecture", BIDIRECTIONAL)
def test_models_that_see_later_tokens_do_not(architecture: str) -> None:
    with pytest.raises(ModelError, match=r"is not causal: a token changes the logits of the tokens before it"):
        check_causal(build_architecture(architecture))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("packed", [False, True])
def test_a_decoder_that_was_made_bidirectional_is_found_out(dtype: torch.dtype, packed: bool) -> None:
    model = build_model("gemma3", dtype, use_bidirectional_attention=True)
    plain = build_model("gemma3", dtype)
    if packed:
        pytest.importorskip("bitsandbytes")
        for one in (model, plain):
            _pack(one)
    check_causal(plain)
    with pytest.raises(ModelError, match="is not causal"):
        check_causal(model)


def test_a_leak_of_one_layer_is_found_out() -> None:
    """Such as a convolution that is centered, or a mean over the sequence."""
    leaks: list[Callable[[torch.Tensor], torch.Tensor]] = [lambda y: y.roll(-1, dims=1), lambda y: y.mean(1, True)]
    for leak in leaks:
        model = build_model("llama")
        layer: Any = model.get_submodule("model.layers.1")
        layer.register_forward_hook(lambda module, inputs, output, leak=leak: output + 0.02 * leak(output))
        with pytest.raises(ModelError, match="is not causal"):
            check_causal(model)


def test_a_model_that_cannot_be_run_is_an_error_and_no_traceback() -> None:
    model = build_model("llama")
    layer: Any = model.get_submodule("model.layers.1")
    layer.register_forward_pre_hook(lambda module, inputs: 1 / 0)
    with pytest.raises(
        ModelError, match="LlamaForCausalLM cannot be run on a text: ZeroDivisionError: division by zero"
    ):
        check_causal(model)


def test_the_model_is_left_as_it_was() -> None:
    model = build_model("llama").train()
    check_causal(model)
    assert model.training


def test_plain_tokens_mean_nothing_special() -> None:
    model = build_model("llama")
    model.config.update({"image_token_id": 7, "eos_token_id": [2, 9], "boi_token_index": 11})
    tokens = {token for seed in range(20) for token in plain_tokens(model, 64, seed).flatten().tolist()}
    assert tokens.isdisjoint({0, 2, 7, 9, 11}) and len(tokens) > 100
    assert torch.equal(plain_tokens(model, 8), plain_tokens(model, 8))


def _pack(model: PreTrainedModel) -> None:
    for name, module in list(model.named_modules()):
        if type(module) is nn.Linear and name != "lm_head":
            model.set_submodule(name, FourBitLinear.pack(module))
