"""What is no causal language model is refused with its reason, and every printed way out works."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from safetensors.torch import load_file, save_file

from lamina.config.quantization import QuantizationConfig
from lamina.errors import ModelError
from lamina.models.load import load_base
from tests.support.models_zoo import build_tokenizer

LLAMA: dict[str, Any] = {
    "vocab_size": 264,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
BERT = {key: value for key, value in LLAMA.items() if key != "num_key_value_heads"}
BART = {
    "vocab_size": 264,
    "d_model": 64,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_ffn_dim": 96,
    "decoder_ffn_dim": 96,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
}
T5 = {"vocab_size": 264, "d_model": 64, "d_ff": 96, "d_kv": 16, "num_layers": 1, "num_heads": 4}
VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
PICTURE = {"image_size": 28, "patch_size": 14}
TIED = {**LLAMA, "tie_word_embeddings": True}

Make = Callable[[], tf.PreTrainedModel]

# What is refused: the model, what is changed in its config.json, and what is said.
REFUSED: dict[str, tuple[Make, dict[str, Any], str]] = {
    "reward model, tied": (
        lambda: tf.LlamaForSequenceClassification(tf.LlamaConfig(**TIED, num_labels=1)),
        {},
        "names LlamaForSequenceClassification, a model for sequence classification",
    ),
    "reward model, untied": (
        lambda: tf.LlamaForSequenceClassification(tf.LlamaConfig(**LLAMA, num_labels=1)),
        {},
        "names LlamaForSequenceClassification, a model for sequence classification",
    ),
    "reward model of GPT-2": (
        lambda: tf.GPT2ForSequenceClassification(tf.GPT2Config(vocab_size=264, n_embd=64, n_layer=1, n_head=4)),
        {},
        "a model for sequence classification",
    ),
    "token classifier": (
        lambda: tf.LlamaForTokenClassification(tf.LlamaConfig(**TIED)),
        {},
        "a model for token classification",
    ),
    "question answering": (
        lambda: tf.LlamaForQuestionAnswering(tf.LlamaConfig(**TIED)),
        {},
        "a model for question answering",
    ),
    "BERT": (lambda: tf.BertForMaskedLM(tf.BertConfig(**BERT)), {}, "a model for masked language modeling"),
    "RoBERTa": (lambda: tf.RobertaForMaskedLM(tf.RobertaConfig(**BERT)), {}, "a model for masked language modeling"),
    "BERT that says nothing": (
        lambda: tf.BertForMaskedLM(tf.BertConfig(**BERT)),
        {"architectures": None},
        "BertLMHeadModel is not causal",
    ),
    "BERT that says something else": (
        lambda: tf.BertForMaskedLM(tf.BertConfig(**BERT)),
        {"architectures": ["BertLMHeadModel"]},
        "BertLMHeadModel is not causal",
    ),
    "T5": (lambda: tf.T5ForConditionalGeneration(tf.T5Config(**T5)), {}, "an encoder with a decoder"),
    "BART": (lambda: tf.BartForConditionalGeneration(tf.BartConfig(**BART)), {}, "an encoder with a decoder"),
    "BART without a head": (lambda: tf.BartModel(tf.BartConfig(**BART)), {}, "an encoder with a decoder"),
    "embedding model, untied": (
        lambda: tf.LlamaModel(tf.LlamaConfig(**LLAMA)),
        {},
        r"names LlamaModel, and its files have no output head \(lm_head.weight\), so it computes hidden states",
    ),
    "bidirectional Llama of others": (
        lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**TIED)),
        {"architectures": ["LlamaBidirectionalModel"]},
        "names LlamaBidirectionalModel, which is not a causal language model in transformers",
    ),
    "bidirectional Gemma": (
        lambda: tf.Gemma3ForCausalLM(tf.Gemma3TextConfig(**LLAMA, use_bidirectional_attention=True)),
        {},
        "Gemma3ForCausalLM is not causal",
    ),
    "vision model": (
        lambda: tf.CLIPVisionModel(tf.CLIPVisionConfig(**VISION, **PICTURE)),
        {},
        "transformers has no causal language model of the type 'clip_vision_model'",
    ),
    "vision and language": (
        lambda: tf.LlavaForConditionalGeneration(
            tf.LlavaConfig(
                text_config=tf.LlamaConfig(**LLAMA),
                vision_config=tf.CLIPVisionConfig(**VISION, **PICTURE),
                image_token_index=200,
            )
        ),
        {},
        r"no causal language model of the type 'llava' \(LlavaForConditionalGeneration, which takes more than text\)",
    ),
}


def write(model: tf.PreTrainedModel, folder: Path, **changes: Any) -> Path:
    model.save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    return folder


def add(folder: Path, **tensors: torch.Tensor) -> None:
    path = folder / "model.safetensors"
    save_file({**load_file(path), **tensors}, path, metadata={"format": "pt"})


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_causal_language_model_is_refused_with_its_reason(case: str, tmp_path: Path) -> None:
    make, changes, reason = REFUSED[case]
    folder = write(make(), tmp_path / "model", **changes)
    with pytest.raises(ModelError, match=rf"{reason}.* Fix: ") as caught:
        load_base(str(folder), "float32")
    assert "incomplete" not in str(caught.value)


@pytest.mark.parametrize("case", ["reward model, tied", "BERT that says nothing", "embedding model, untied"])
def test_quantizing_goes_through_the_same_reader(case: str, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    make, changes, reason = REFUSED[case]
    folder = write(make(), tmp_path / "model", **changes)
    with pytest.raises(ModelError, match=reason):
        load_base(str(folder), "float32", quantization=QuantizationConfig(blocksize=32))


def test_a_base_without_a_head_whose_embedding_is_its_head_is_one(tmp_path: Path) -> None:
    model = tf.LlamaModel(tf.LlamaConfig(**TIED)).eval()
    folder, notes = write(model, tmp_path / "model"), list[str]()
    base = load_base(str(folder), "float32", notify=notes.append)
    assert [note for note in notes if "names LlamaModel, which has no output head" in note]
    ids = torch.tensor([[5, 9, 17]])
    expected = model(ids).last_hidden_state @ model.get_input_embeddings().weight.T
    assert torch.allclose(base.model(ids).logits, expected, atol=1e-6)
    # Unless its folder says what it is for.
    (folder / "modules.json").write_text("[]")
    with pytest.raises(ModelError, match="it is an embedding model of sentence-transformers"):
        load_base(str(folder), "float32")


def test_the_ways_out_work(tmp_path: Path) -> None:
    headless = write(tf.LlamaModel(tf.LlamaConfig(**LLAMA)), tmp_path / "headless")
    with pytest.raises(ModelError, match=r"set `tie_word_embeddings: true` in its config.json"):
        load_base(str(headless), "float32")
    config = json.loads((headless / "config.json").read_text())
    (headless / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    load_base(str(headless), "float32")

    named = write(tf.LlamaForCausalLM(tf.LlamaConfig(**LLAMA)), tmp_path / "named", architectures=["MyLlama"])
    with pytest.raises(ModelError, match=r"if it is one, correct `architectures` in its config.json"):
        load_base(str(named), "float32")
    (named / "config.json").write_text(json.dumps({**config, "architectures": ["MyLlamaForCausalLM"]}))
    load_base(str(named), "float32")

    extra = write(tf.LlamaForCausalLM(tf.LlamaConfig(**LLAMA)), tmp_path / "extra")
    add(extra, **{"model.layers.0.self_attn.q_proj.bias": torch.ones(64)})
    with pytest.raises(
        ModelError, match=re.escape("`AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW)`")
    ):
        load_base(str(extra), "float32")
    tf.AutoModelForCausalLM.from_pretrained(extra).save_pretrained(tmp_path / "new")
    build_tokenizer().save_pretrained(tmp_path / "new")
    load_base(str(tmp_path / "new"), "float32")


@pytest.mark.parametrize(
    "name",
    ["model.layers.1.mlp.up_proj.bias", "model.layers.2.mlp.up_proj.weight", "model.layers.0.self_attn.q_norm.weight"],
)
def test_weights_of_layers_that_would_be_left_out_are_an_error(name: str, tmp_path: Path) -> None:
    folder = write(tf.LlamaForCausalLM(tf.LlamaConfig(**LLAMA)), tmp_path / "model")
    add(folder, **{name: torch.ones(8)})
    with pytest.raises(ModelError, match=rf"the layers do not have them \(first: {re.escape(name)}\)"):
        load_base(str(folder), "float32")


def test_other_weights_that_are_left_out_are_named_and_constants_are_not(tmp_path: Path) -> None:
    folder, notes = write(tf.LlamaForCausalLM(tf.LlamaConfig(**LLAMA)), tmp_path / "model"), list[str]()
    constants = {
        "model.layers.0.self_attn.bias": torch.ones(1, 1, 8, 8, dtype=torch.bool),
        "model.layers.0.self_attn.masked_bias": torch.tensor(-1e4),
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8),
    }
    add(folder, **constants)
    load_base(str(folder), "float32", notify=notes.append)
    assert not notes
    add(folder, **{"v_head.summary.weight": torch.ones(1, 64)})
    load_base(str(folder), "float32", notify=notes.append)
    (note,) = notes
    assert "1 weights of its files are not part of LlamaForCausalLM" in note and "v_head.summary.weight" in note
