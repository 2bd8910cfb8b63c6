"""Decoder layers, output head, and what a text reaches, over many architectures."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from lamina.compute.weights import freeze_linear
from lamina.structure import head
from lamina.structure.head import find_head
from lamina.structure.layers import decoder_layers, text_decoder
from lamina.structure.reach import modules_out_of_reach
from tests.support.architectures import ARCHITECTURES, BIDIRECTIONAL, build_architecture, build_vision_language

# Parts of their logits are made by more than a linear layer, so that the whole model is asked for them.
WITHOUT_PARTS = {"modernbert-decoder"}

# Linear layers that no text calls: by their weight, or for an encoder that is not there.
UNCALLED = {
    "gemma3n_text": {"altup.correction_coefs"},  # called in evaluation, but not in training
    "mamba": {"mixer.dt_proj"},
    "falcon_mamba": {"mixer.dt_proj"},
    "jamba": {"mamba.dt_proj"},
    "bart": {f"encoder_attn.{name}_proj" for name in ("k", "v", "q", "out")},
    "trocr": {f"encoder_attn.{name}_proj" for name in ("k", "v", "q", "out")},
}


def names_of(model: PreTrainedModel, modules: list[nn.Module]) -> list[str]:
    names = {id(module): name for name, module in model.named_modules()}
    return [names[id(module)] for module in modules]


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, *BIDIRECTIONAL])
def test_decoder_layers_are_all_in_order_and_nothing_else(architecture: str) -> None:
    model = build_architecture(architecture, weights=False)
    layers = decoder_layers(model)
    names = names_of(model, layers)
    (parent,) = {name.rpartition(".")[0] for name in names}
    assert names == [f"{parent}.{number}" for number in range(len(layers))]
    assert len(layers) == (3 if architecture in ("recurrent_gemma", "zamba2") else 2)
    decoder = text_decoder(model)
    assert decoder is not model and decoder is not model.get_output_embeddings()
    assert all(any(layer is module for module in decoder.modules()) for layer in layers)


@pytest.mark.parametrize("architecture", ["qwen3_moe", "deepseek_v2", "granitemoehybrid", "jamba", "gemma3n_text"])
def test_longer_lists_within_the_layers_are_not_the_layers(architecture: str) -> None:
    model = build_architecture(architecture)
    layers = decoder_layers(model)
    for layer in layers:
        layer.more = nn.ModuleList([nn.Sequential(nn.Linear(2, 2)) for _ in range(9)])
    assert decoder_layers(model) == layers


def test_the_layers_of_a_deeper_vision_tower_are_not_the_layers() -> None:
    for text, vision in ((2, 5), (3, 3), (4, 1)):
        model = build_vision_language(text, vision)
        expected = [f"model.language_model.layers.{number}" for number in range(text)]
        assert names_of(model, decoder_layers(model)) == expected


def test_no_list_is_guessed_where_there_are_several() -> None:
    model = build_architecture("llama")
    decoder: Any = model.model
    decoder.others = nn.ModuleList([nn.Sequential(nn.Linear(2, 2)) for _ in range(2)])
    assert decoder_layers(model) == []


@torch.no_grad()
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_parts_of_a_head_give_the_models_own_logits(architecture: str) -> None:
    model = build_architecture(architecture)
    parts = find_head(model)
    assert parts.whole_model == (architecture in WITHOUT_PARTS)
    if parts.whole_model:
        assert parts.decoder is model
        return
    ids = torch.tensor([[5, 9, 17, 33, 4, 101]])
    ours = parts.transform(parts.linear(parts.decoder(input_ids=ids, use_cache=False).last_hidden_state))
    assert torch.allclose(ours, model(input_ids=ids, use_cache=False).logits, rtol=1e-4, atol=1e-5)


def test_parts_that_differ_a_little_or_cannot_be_run_are_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_architecture("llama")
    assert not find_head(model).whole_model
    model.config.logits_scaling = 1.001  # pyright: ignore[reportAttributeAccessIssue]  # Granite's, which Llama ignores
    assert find_head(model).whole_model
    model = build_architecture("llama")
    monkeypatch.setattr(head, "text_decoder", lambda model: model.get_output_embeddings())
    assert find_head(model).whole_model


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_a_text_does_not_reach(architecture: str) -> None:
    model = build_architecture(architecture)
    silent = modules_out_of_reach(model)
    linears = [name for name, module in model.named_modules() if name in silent and freeze_linear(module) is not None]
    ends = {".".join(name.split(".")[-2:]) for name in linears}
    assert ends == UNCALLED.get(architecture, set())


def test_towers_are_out_of_reach_and_experts_that_were_not_chosen_are_not() -> None:
    model = build_vision_language()
    tops = {name for name in modules_out_of_reach(model) if name.count(".") == 1}
    assert tops == {"model.vision_tower", "model.multi_modal_projector"}

    class Mixture(nn.Module):
        """One of eight, by the first token."""

        def __init__(self) -> None:
            super().__init__()
            self.experts = nn.ModuleList([nn.Linear(64, 64) for _ in range(8)])
            self.unused = nn.Linear(64, 64)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.experts[int(x.abs().sum()) % 8](x)

    model = build_architecture("llama")
    layer: Any = model.get_submodule("model.layers.0")
    layer.mlp = Mixture()
    assert modules_out_of_reach(model) == {"model.layers.0.mlp.unused"}
    assert model.get_submodule("model.layers.0.mlp.unused") is layer.mlp.unused


def test_a_layer_that_is_passed_over_is_out_of_reach() -> None:
    """As layers of cross attention to a picture are."""
    model = build_architecture("llama")
    layer: Any = model.get_submodule("model.layers.1")
    layer.forward = None
    decoder: Any = model.model
    decoder.config.num_hidden_layers = 1
    silent = modules_out_of_reach(model)
    assert "model.layers.1" in silent and "model.layers.1.mlp.up_proj" in silent
    assert not any(name.startswith("model.layers.0") for name in silent)
