"""P-tuning's own: peft's numbers with both networks, what is saved, and what is refused."""

from __future__ import annotations

from pathlib import Path

import peft
import pytest
import torch

from lamina.config import load_config
from lamina.config.methods.p_tuning import PTuningConfig
from lamina.errors import AdapterError, ConfigError
from lamina.methods.p_tuning import METHOD
from lamina.methods.shared.base import inject
from tests.support.models_zoo import build_model
from tests.support.virtual_tokens import (
    check_generation,
    check_loads_from_peft,
    check_ten_steps,
    logits,
    ours,
)

PEFT = {"task_type": "CAUSAL_LM", "num_virtual_tokens": 5, "encoder_hidden_size": 24}
MLP = PTuningConfig(num_virtual_tokens=5, encoder_hidden_size=24)
LSTM = PTuningConfig(num_virtual_tokens=5, encoder_hidden_size=24, encoder_reparameterization_type="LSTM")


@pytest.mark.parametrize("config", [MLP, LSTM], ids=["mlp", "lstm"])
@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
def test_ten_steps_are_those_of_peft(family: str, config: PTuningConfig) -> None:
    kind = config.encoder_reparameterization_type
    check_ten_steps(family, config, peft.PromptEncoderConfig(encoder_reparameterization_type=kind, **PEFT))


@pytest.mark.parametrize("kind", ["MLP", "LSTM"])
def test_adapters_of_peft_load_with_its_logits(kind: str, tmp_path: Path) -> None:
    config = peft.PromptEncoderConfig(encoder_reparameterization_type=kind, **PEFT)
    loaded = check_loads_from_peft("llama", config, tmp_path)
    assert loaded.adapter.config == PTuningConfig(num_virtual_tokens=5, inference_mode=True)


def test_generates_padded_as_alone_and_as_peft() -> None:
    check_generation("llama", LSTM, peft.PromptEncoderConfig(encoder_reparameterization_type="LSTM", **PEFT))


def test_only_the_rows_are_saved_and_without_dropout() -> None:
    config = LSTM.model_copy(update={"encoder_dropout": 0.5})
    injection = ours("llama", config)
    with torch.no_grad():  # torch's LSTM rounds otherwise where it keeps nothing for a backward
        expected = logits(injection.model)
    injection.model.train()
    assert not torch.equal(logits(injection.model), logits(injection.model))
    saved = METHOD.saved(injection)
    assert injection.layers[""].training
    assert list(saved.tensors) == ["prompt_embeddings"]
    fresh = inject(build_model("llama", vocab_size=259), saved.config, seed=5)
    fresh.load_tensors(saved.tensors)
    with torch.no_grad():
        torch.testing.assert_close(logits(fresh.model), expected, rtol=0, atol=0)


def test_rows_without_a_network_are_not_trained() -> None:
    injection = ours("llama", PTuningConfig(inference_mode=True))
    with pytest.raises(ConfigError, match=r"method.inference_mode: true is for a trained adapter"):
        METHOD.prepare(injection, [])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"encoder_num_layers": 3}, "encoder_num_layers has no effect with an MLP"),
        ({"encoder_dropout": 0.1}, "encoder_dropout has no effect with an MLP"),
        (
            {"encoder_reparameterization_type": "LSTM", "encoder_num_layers": 1, "encoder_dropout": 0.1},
            "encoder_num_layers of 2 or more",
        ),
    ],
)
def test_bad_fields_are_errors(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config({"data": {"train": "x.jsonl"}, "method": {"type": "p_tuning", **fields}})


def test_settings_of_peft_that_change_the_result_are_refused() -> None:
    with pytest.raises(AdapterError, match="does not have: modules_to_save"):
        METHOD.from_peft({"peft_type": "P_TUNING", **PEFT, "modules_to_save": ["lm_head"]})
