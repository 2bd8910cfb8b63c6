"""Prefix tuning's own: peft's numbers, sliding windows, generation, packing, and what is refused."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import peft
import pytest
import torch
from torch import nn

from lamina.compute.fusion import fast_path
from lamina.compute.ops.attention import packed_attention
from lamina.config import load_config
from lamina.config.methods.prefix_tuning import PrefixTuningConfig
from lamina.errors import AdapterError, ConfigError, ModelError
from lamina.methods.prefix_tuning import METHOD
from lamina.methods.shared.base import inject
from tests.support.models_zoo import build_model
from tests.support.virtual_tokens import (
    IDS,
    check_generation,
    check_loads_from_peft,
    check_right_padding,
    check_ten_steps,
    logits,
    ours,
)

CONFIG = PrefixTuningConfig(num_virtual_tokens=5)
PROJECTED = PrefixTuningConfig(num_virtual_tokens=5, prefix_projection=True, encoder_hidden_size=24)
PEFT = {"task_type": "CAUSAL_LM", "num_virtual_tokens": 5}
PEFT_PROJECTED = {**PEFT, "prefix_projection": True, "encoder_hidden_size": 24}


# Windows of 12 tokens: sequences of 14 with a prefix of 5 or 15 lose sight of it in part.
@pytest.mark.parametrize("count", [5, 15])
@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2", "mistral"])
def test_ten_steps_are_those_of_peft(family: str, count: int) -> None:
    config = PrefixTuningConfig(num_virtual_tokens=count)
    check_ten_steps(family, config, peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=count))


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
def test_ten_steps_of_its_network_are_those_of_peft(family: str) -> None:
    check_ten_steps(family, PROJECTED, peft.PrefixTuningConfig(**PEFT_PROJECTED))


@pytest.mark.parametrize("settings", [PEFT, PEFT_PROJECTED], ids=["plain", "projected"])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_adapters_of_peft_load_with_its_logits(family: str, settings: dict[str, object], tmp_path: Path) -> None:
    loaded = check_loads_from_peft(family, peft.PrefixTuningConfig(**settings), tmp_path)
    assert loaded.adapter.config == CONFIG


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2", "mistral"])
def test_generates_padded_as_alone_and_as_peft(family: str) -> None:
    check_generation(family, CONFIG, peft.PrefixTuningConfig(**PEFT))


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_right_padding_is_as_in_peft(family: str) -> None:
    check_right_padding(family, CONFIG, peft.PrefixTuningConfig(**PEFT))


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3", "gpt2", "mistral"])
def test_packed_attention_gives_the_plain_call(family: str) -> None:
    """Without lengths, a packed call is one document."""
    injection = ours(family, CONFIG)
    with torch.no_grad():
        expected = logits(injection.model, IDS[:1])
        with packed_attention(injection.model):
            torch.testing.assert_close(logits(injection.model, IDS[:1]), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("training", [False, True])
def test_layers_with_a_prefix_are_not_fused(training: bool) -> None:
    injection = ours("llama", CONFIG)
    injection.model.train(training)
    if not training:
        injection.model.requires_grad_(False)
    with fast_path(injection.model) as report:
        assert report.fused == 0
        assert report.reasons == ["its attention has a trained prefix"]


def test_a_prefix_that_is_switched_on_in_fused_layers_is_seen() -> None:
    injection = ours("llama", CONFIG)
    with torch.no_grad(), ExitStack() as stack:
        expected = logits(injection.model, IDS[:1], use_cache=False)
        with injection.disabled():
            base = logits(injection.model, IDS[:1], use_cache=False)
        stack.enter_context(injection.disabled())
        report = stack.enter_context(fast_path(injection.model))
        assert report.complete  # whose layers run where no cache is asked for
        torch.testing.assert_close(logits(injection.model, IDS[:1], use_cache=False), base, rtol=1e-4, atol=1e-4)
        injection.layers[""].enabled = True
        torch.testing.assert_close(logits(injection.model, IDS[:1], use_cache=False), expected, rtol=1e-4, atol=1e-4)


def test_the_cache_is_given_only_to_who_asks() -> None:
    model = ours("llama", CONFIG).model
    with torch.no_grad():
        assert model(input_ids=IDS, use_cache=False).past_key_values is None
        cache = model(input_ids=IDS, use_cache=True).past_key_values
    assert cache.get_seq_length() == IDS.shape[1] + 5
    assert "update" not in vars(cache)


def test_checkpointing_outside_of_packed_attention_is_an_error() -> None:
    model = ours("llama", CONFIG).model
    model.train()
    model.activation_checkpointing_enable({"use_reentrant": False})
    with pytest.raises(ModelError, match="the prefix reached 0 of 2 layers"):
        model(input_ids=IDS)


def test_starts_from_zero_where_told() -> None:
    for config in (CONFIG, PROJECTED):
        zero = ours("llama", config.model_copy(update={"init_weights": "zero"}))
        assert not METHOD.saved(zero).tensors["prompt_embeddings"].any()
        assert METHOD.saved(ours("llama", config)).tensors["prompt_embeddings"].any()


def test_a_model_without_a_cache_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_model("llama")
    decoder = model.get_decoder()
    own = decoder.forward

    def forgetful(*args: object, inputs_embeds: object = None, **kwargs: object) -> object:
        return own(*args, **{**kwargs, "inputs_embeds": inputs_embeds, "use_cache": False})

    monkeypatch.setattr(decoder, "forward", forgetful)
    with pytest.raises(ConfigError, match="does not cache keys and values of the same shape"):
        inject(model, CONFIG, seed=0)
    monkeypatch.setattr(model, "get_decoder", lambda: nn.Identity())
    with pytest.raises(ConfigError, match="has no decoder that accepts embeddings"):
        inject(model, CONFIG, seed=0)


def test_a_width_without_its_network_is_an_error() -> None:
    with pytest.raises(ConfigError, match="encoder_hidden_size has no effect without prefix_projection"):
        load_config({"data": {"train": "x.jsonl"}, "method": {"type": "prefix_tuning", "encoder_hidden_size": 8}})


def test_settings_of_peft_that_change_the_result_are_refused() -> None:
    with pytest.raises(AdapterError, match="does not have: modules_to_save"):
        METHOD.from_peft({"peft_type": "PREFIX_TUNING", **PEFT, "modules_to_save": ["lm_head"]})
