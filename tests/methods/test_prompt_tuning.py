"""Prompt tuning's own: peft's numbers, generation, the fused path, where it starts, and what is refused."""

from __future__ import annotations

from pathlib import Path

import peft
import pytest
import torch

from lamina.compute.fusion import fast_path
from lamina.config import load_config
from lamina.config.methods.prompt_tuning import PromptTuningConfig
from lamina.errors import AdapterError, ConfigError, ModelError
from lamina.methods.prompt_tuning import METHOD
from lamina.methods.shared.base import inject
from tests.support.architectures import build_architecture
from tests.support.models_zoo import build_model, build_tokenizer
from tests.support.virtual_tokens import (
    IDS,
    check_generation,
    check_loads_from_peft,
    check_right_padding,
    check_ten_steps,
    logits,
    ours,
)

CONFIG = PromptTuningConfig(num_virtual_tokens=5)
PEFT = {"task_type": "CAUSAL_LM", "num_virtual_tokens": 5}


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
def test_ten_steps_are_those_of_peft(family: str) -> None:
    check_ten_steps(family, CONFIG, peft.PromptTuningConfig(**PEFT))


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_adapters_of_peft_load_with_its_logits(family: str, tmp_path: Path) -> None:
    loaded = check_loads_from_peft(family, peft.PromptTuningConfig(**PEFT), tmp_path)
    assert loaded.adapter.config == CONFIG


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2", "phi"])
def test_generates_padded_as_alone_and_as_peft(family: str) -> None:
    check_generation(family, CONFIG, peft.PromptTuningConfig(**PEFT))


def test_right_padding_is_as_in_peft() -> None:
    check_right_padding("mistral", CONFIG, peft.PromptTuningConfig(**PEFT))


@pytest.mark.parametrize("training", [False, True])
def test_layers_stay_fused(training: bool) -> None:
    """The rows are in the sequence, so that a fused layer sees nothing but longer documents."""
    injection = ours("llama", CONFIG)
    injection.model.train(training)
    if not training:
        injection.model.requires_grad_(False)
    with fast_path(injection.model) as report:
        assert report.complete, report.reasons


def test_hidden_states_and_embeddings_fit_the_callers_tokens() -> None:
    injection = ours("llama", CONFIG)
    with torch.no_grad():
        output = injection.model(input_ids=IDS, output_hidden_states=True, use_cache=True)
        assert {hidden.shape[1] for hidden in output.hidden_states} == {IDS.shape[1]}
        assert output.past_key_values.get_seq_length() == IDS.shape[1] + 5
        embeddings = injection.model.get_input_embeddings()(IDS)
        torch.testing.assert_close(injection.model(inputs_embeds=embeddings).logits, output.logits)


def test_gradient_checkpointing_outside_of_packing_changes_nothing() -> None:
    injection = ours("llama", CONFIG)
    (rows,) = injection.tensors().values()
    grads = []
    for recompute in (False, True):
        injection.model.train()
        if recompute:
            injection.model.activation_checkpointing_enable({"use_reentrant": False})
        logits(injection.model).square().mean().backward()
        assert rows.grad is not None
        grads.append(rows.grad)
        rows.grad = None
    torch.testing.assert_close(*grads)


def test_a_finished_mask_is_refused() -> None:
    injection = ours("llama", CONFIG)
    with pytest.raises(ModelError, match=r"need an attention mask of shape \(batch, tokens\)"):
        injection.model(input_ids=IDS, attention_mask=torch.ones(2, 1, 14, 14))


def test_starts_from_embeddings_of_the_vocabulary() -> None:
    config = PromptTuningConfig(num_virtual_tokens=5, prompt_tuning_init="SAMPLE_VOCAB")
    injection = ours("gemma3", config)
    (rows,) = injection.tensors().values()
    table = injection.model.get_input_embeddings()(torch.arange(259))  # as the model scales them, and so does peft
    assert all(bool((table - row).abs().amax(1).min() == 0) for row in rows.detach())


def test_starts_from_a_text_cut_or_repeated(tmp_path: Path) -> None:
    build_model("llama", vocab_size=259).save_pretrained(tmp_path)
    build_tokenizer().save_pretrained(tmp_path)
    ids = build_tokenizer()("abc").input_ids
    for count, expected in ((2, ids[:2]), (5, [*ids, *ids[:2]])):
        model = build_model("llama", vocab_size=259)
        model.name_or_path = str(tmp_path)
        config = PromptTuningConfig(num_virtual_tokens=count, prompt_tuning_init="TEXT", prompt_tuning_init_text="abc")
        injection = inject(model, config, seed=0)
        (rows,) = injection.tensors().values()
        torch.testing.assert_close(rows.detach(), model.get_input_embeddings()(torch.tensor(expected)))
        assert METHOD.saved(injection).config == PromptTuningConfig(num_virtual_tokens=count)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompt_tuning_init": "TEXT"}, "needs prompt_tuning_init_text"),
        ({"prompt_tuning_init_text": "a"}, "prompt_tuning_init_text has no effect without"),
        ({"tokenizer_name_or_path": "a"}, "tokenizer_name_or_path has no effect without"),
        ({"num_virtual_tokens": 0}, "greater than or equal to 1"),
    ],
)
def test_bad_fields_are_errors(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config({"data": {"train": "x.jsonl"}, "method": {"type": "prompt_tuning", **fields}})


def test_a_text_without_a_tokenizer_is_an_error() -> None:
    config = PromptTuningConfig(
        prompt_tuning_init="TEXT", prompt_tuning_init_text="abc", tokenizer_name_or_path="/nowhere"
    )
    with pytest.raises(ConfigError, match=r"tokenizer_name_or_path: no tokenizer can be loaded from '/nowhere'"):
        inject(build_model("llama"), config, seed=0)


def test_settings_of_peft_that_change_the_result_are_refused() -> None:
    about = {"peft_type": "PROMPT_TUNING", **PEFT}
    with pytest.raises(AdapterError, match=r"does not have: modules_to_save=\['lm_head'\]"):
        METHOD.from_peft({**about, "modules_to_save": ["lm_head"]})
    with pytest.raises(AdapterError, match="does not have: num_transformer_submodules=2"):
        METHOD.from_peft({**about, "num_transformer_submodules": 2})


def test_a_model_that_wants_tokens_beside_embeddings_is_told_of() -> None:
    model = build_architecture("gemma4_text+per_layer_inputs")
    with pytest.raises(ConfigError, match="does not run on embeddings alone"):
        inject(model, PromptTuningConfig(num_virtual_tokens=3), 0)
    without = build_architecture("gemma4_text")
    inject(without, PromptTuningConfig(num_virtual_tokens=3), 0)
