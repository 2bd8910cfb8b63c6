"""LoRA on the embedding and on the head, and trained rows of both: as in HF peft, and merged."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import nn

from lamina.adapters.hf_peft import read_peft_config
from lamina.config.methods.lora import LoraConfig
from lamina.errors import ConfigError
from lamina.export.fold import fold_in
from lamina.methods.lora import METHOD
from lamina.methods.shared.base import Injection, inject
from lamina.methods.shared.lora_peft import lora_from_peft
from tests.support.models_zoo import build_model
from tests.support.peft_oracle import (
    IDS,
    check_loads_what_peft_saved,
    check_peft_loads_what_lamina_saved,
    check_same_training,
    close,
    disturb,
    pair,
)

# llama and gemma3 have a tied head, gemma3 scales its embedding, and token 2 is the padding token of all but GPT-2.
OWN: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"target_modules": ["q_proj", "embed_tokens"]}),
    ("qwen2", {"target_modules": ["v_proj", "embed_tokens", "lm_head"]}),
    ("gemma3", {"target_modules": ["embed_tokens"], "use_rslora": True}),
    ("gpt2", {"target_modules": ["c_attn", "lm_head"]}),
    ("llama", {"target_modules": ["q_proj"], "trainable_token_indices": [3, 9, 17]}),
    ("qwen2", {"target_modules": ["q_proj"], "trainable_token_indices": [3, 9, 17]}),
    (
        "qwen2",
        {"target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": [3, 9], "lm_head": [9, 33, 60]}},
    ),
    ("gemma3", {"target_modules": ["q_proj"], "trainable_token_indices": [2, 9, 17]}),
    ("gpt2", {"target_modules": ["c_attn"], "trainable_token_indices": [3, 9, 17]}),
]
TIED: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"target_modules": ["q_proj", "embed_tokens"], "ensure_weight_tying": True}),
    ("gemma3", {"target_modules": ["q_proj", "lm_head"], "ensure_weight_tying": True}),
    ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}),
]
# Names that peft does not take for an embedding's, so that it ties nothing in an adapter of its own.
TIED_BY_OTHER_NAMES: list[tuple[str, dict[str, Any]]] = [
    ("gpt2", {"target_modules": ["c_attn", "wte"], "ensure_weight_tying": True}),
    ("gpt2", {"target_modules": r".*(c_attn|wte)", "ensure_weight_tying": True}),
    ("gpt2", {"target_modules": ["c_attn", "lm_head"], "ensure_weight_tying": True}),
    ("gpt2", {"target_modules": ["c_attn"], "modules_to_save": ["wte"], "ensure_weight_tying": True}),
]
BOTH = [*OWN, *TIED]
# Files are read and written alike for all; one of each kind is enough for every day.
SOME = [
    pytest.param(*case, marks=[] if number in (0, 4, 6, 9, 11) else pytest.mark.slow)
    for number, case in enumerate(BOTH)
]


def ours(**settings: Any) -> LoraConfig:
    return LoraConfig(r=4, lora_alpha=6, **settings)


def theirs(**settings: Any) -> peft.LoraConfig:
    return peft.LoraConfig(r=4, lora_alpha=6, task_type="CAUSAL_LM", **copy.deepcopy(settings))


def attached(family: str, **settings: Any) -> Injection:
    injection = inject(build_model(family, vocab_size=259), ours(**settings), seed=0)
    disturb(injection.tensors())
    return injection


@pytest.mark.parametrize(("family", "settings"), OWN)
def test_gradients_and_steps_are_those_of_peft(family: str, settings: dict[str, Any]) -> None:
    check_same_training(*pair(family, ours(**settings), theirs(**settings)))


@pytest.mark.parametrize(("family", "settings"), SOME)
def test_peft_loads_it_with_the_same_logits(family: str, settings: dict[str, Any], tmp_path: Path) -> None:
    check_peft_loads_what_lamina_saved(family, tmp_path, attached(family, **settings))


@pytest.mark.parametrize(("family", "settings"), TIED_BY_OTHER_NAMES)
def test_peft_and_lamina_load_tied_ends_of_other_names(family: str, settings: dict[str, Any], tmp_path: Path) -> None:
    """peft knows the ends by `embed_tokens` and `lm_head` alone, and would pass over the head of GPT-2's `wte`."""
    injection = attached(family, **settings)
    check_peft_loads_what_lamina_saved(family, tmp_path, injection)
    written = read_peft_config(tmp_path / "adapter")
    again = inject(build_model(family, vocab_size=259), lora_from_peft(written), seed=1)
    assert {name: tensor.shape for name, tensor in again.tensors().items()} == {
        name: tensor.shape for name, tensor in injection.tensors().items()
    }


@pytest.mark.parametrize(("family", "settings"), SOME)
def test_lamina_loads_what_peft_saved_as_its_own_lora(family: str, settings: dict[str, Any], tmp_path: Path) -> None:
    loaded = check_loads_what_peft_saved(family, tmp_path, theirs(**settings))
    assert loaded.injection.config.type == "lora"


@pytest.mark.parametrize(("family", "settings"), BOTH)
def test_it_starts_as_the_base_and_merges_into_the_same_logits(family: str, settings: dict[str, Any]) -> None:
    injection = inject(build_model(family, vocab_size=259), ours(**settings), seed=0)
    with torch.no_grad():
        base = build_model(family, vocab_size=259)(input_ids=IDS).logits
        close(injection.model(input_ids=IDS).logits, base, "logits at the start")
        disturb(injection.tensors())
        expected = injection.model(input_ids=IDS).logits
        with injection.disabled():
            close(injection.model(input_ids=IDS).logits, base, "logits without the adapter")
        assert not torch.allclose(expected, base, atol=1e-3)
        tied = injection.model.config.tie_word_embeddings
        fold_in(injection)
        close(injection.model(input_ids=IDS).logits, expected, "logits of the merged model")
    one_end = settings["target_modules"][-1] in ("embed_tokens", "lm_head") and "ensure_weight_tying" not in settings
    assert injection.model.config.tie_word_embeddings == (tied and not one_end)


@pytest.mark.parametrize(("family", "settings"), TIED)
def test_tied_ends_train_one_tensor_with_the_gradients_of_both(family: str, settings: dict[str, Any]) -> None:
    injection = attached(family, **settings)
    weight = injection.model.get_output_embeddings()
    assert isinstance(weight, nn.Module)
    names = [name for name in injection.tensors() if "lm_head" in name]
    assert names == []
    assert any("lm_head" in name for name in injection.saved_tensors())
    injection.model(input_ids=IDS, labels=IDS).loss.backward()
    name, tensor = next((n, t) for n, t in injection.tensors().items() if "embed_tokens" in n)
    whole = tensor.grad
    assert whole is not None
    # A token that is in no text is still one of the head's classes.
    unseen = next(token for token in range(259) if token not in IDS)
    gradient = whole[unseen] if name.endswith("weight") else whole[:, unseen]
    assert float(gradient.abs().max()) > 0


def test_a_row_that_is_not_named_never_moves() -> None:
    injection = attached("llama", target_modules=["q_proj"], trainable_token_indices=[9, 3])
    embedding: Any = injection.model.get_input_embeddings()
    base = build_model("llama", vocab_size=259).get_input_embeddings().weight
    every = torch.arange(259)
    rows = embedding(every)
    moved = (rows != base).any(dim=1).nonzero().flatten().tolist()
    assert moved == [3, 9]
    assert torch.equal(rows[9], embedding.rows[0]) and torch.equal(rows[3], embedding.rows[1])


@pytest.mark.parametrize(
    ("settings", "field", "message"),
    [
        ({"trainable_token_indices": [259]}, "trainable_token_indices", r"259 has no row in model.embed_tokens.*259"),
        ({"trainable_token_indices": [3, 3]}, "trainable_token_indices", "more than once"),
        ({"trainable_token_indices": {"q_proj": [3]}}, "trainable_token_indices", "neither the embedding nor the head"),
        ({"trainable_token_indices": [3], "target_modules": ["embed_tokens"]}, "trainable_token_indices", "as well"),
        ({"target_modules": ["embed_tokens"], "use_dora": True}, "target_modules", "DoRA"),
        ({"target_modules": ["embed_tokens"], "init_lora_weights": "pissa"}, "target_modules", "pissa"),
        ({"target_modules": ["embed_tokens"], "lora_fa": True}, "target_modules", "lora_fa"),
        ({"target_modules": ["rotary_emb"]}, "target_modules", "not a linear layer"),
    ],
)
def test_what_cannot_be_is_one_error(settings: dict[str, Any], field: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        inject(build_model("llama", vocab_size=259), ours(**{"target_modules": ["q_proj"], **settings}), seed=0)
    assert caught.value.problems[0].field == f"method.{field}"


def test_tying_without_anything_to_tie_is_an_error_in_training() -> None:
    for family in ("qwen2", "llama"):
        injection = inject(build_model(family), ours(target_modules=["q_proj"], ensure_weight_tying=True), seed=0)
        with pytest.raises(ConfigError, match="ensure_weight_tying"):
            METHOD.prepare(injection, [])
