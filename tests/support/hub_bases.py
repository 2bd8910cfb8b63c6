"""Two-layer bases whose folders are as those on the hub: written by transformers 4, with more than weights in them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from tests.support.models_zoo import CHATML, build_tokenizer

_SIZES = {
    "vocab_size": 264,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
}
_GPT2 = {"vocab_size": 264, "n_embd": 48, "n_layer": 2, "n_head": 6, "n_positions": 512}


@dataclass(frozen=True)
class Family:
    """A family of models.

    Attributes:
        kind: `model_type`.
        architecture: The class.
        words: What config.json says besides sizes, in the words of transformers 4.
        sizes: What it says of sizes.
    """

    kind: str
    architecture: str
    words: dict[str, Any] = field(default_factory=dict)
    sizes: dict[str, Any] = field(default_factory=lambda: dict(_SIZES))


_LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
    "rope_type": "llama3",
}
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
_LONGROPE = {
    "type": "longrope",
    "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [1.0, 2.0, 3.0, 4.0],
}

FAMILIES = {
    "llama3": Family("llama", "LlamaForCausalLM", {"rope_theta": 500000.0, "rope_scaling": _LLAMA3}),
    "qwen2": Family("qwen2", "Qwen2ForCausalLM", {"rope_theta": 1000000.0, "tie_word_embeddings": True}),
    "qwen3": Family("qwen3", "Qwen3ForCausalLM", {"rope_theta": 1000000.0, "rope_scaling": _YARN}),
    "gemma2": Family("gemma2", "Gemma2ForCausalLM", {"rope_theta": 20000.0, "query_pre_attn_scalar": 8}),
    "gemma3": Family(
        "gemma3_text",
        "Gemma3ForCausalLM",
        {
            "rope_theta": 1000000.0,
            "rope_local_base_freq": 20000.0,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
            "sliding_window": 16,
            "sliding_window_pattern": 2,
            "query_pre_attn_scalar": 8,
        },
    ),
    "mistral": Family("mistral", "MistralForCausalLM", {"rope_theta": 1000000.0, "sliding_window": None}),
    "phi3": Family(
        "phi3",
        "Phi3ForCausalLM",
        {
            "rope_theta": 20000.0,
            "rope_scaling": _LONGROPE,
            "original_max_position_embeddings": 256,
            "resid_pdrop": 0.0,
            "pad_token_id": 0,
        },
    ),
    "gpt_neox": Family(
        "gpt_neox", "GPTNeoXForCausalLM", {"rotary_emb_base": 50000, "rotary_pct": 0.5, "tie_word_embeddings": False}
    ),
    "gpt2": Family("gpt2", "GPT2LMHeadModel", {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}, _GPT2),
}

# What else lies in such folders: what must go along, and what must not.
COMPANIONS = {
    "LICENSE": "Do as you like.",
    "README.md": "# A model",
    "preprocessor_config.json": '{"image_size": 224}',
    "processor_config.json": '{"processor_class": "Gemma3Processor"}',
    "tokenizer.model": "\x00sentencepiece",
    "extra/vocabulary.txt": "a\nb\n",
}
LEFT_BEHIND = {
    "pytorch_model.bin": "weights",
    "pytorch_model.bin.index.json": "{}",
    "flax_model.msgpack": "weights",
    "tf_model.h5": "weights",
    "model.Q4_K_M.gguf": "weights",
    "onnx/model.onnx": "weights",
    "onnx/config.json": "{}",
    "original/consolidated.00.pth": "weights",
    "original/params.json": "{}",
    "checkpoint-5/model.safetensors": "weights",
    "checkpoint-5/config.json": "{}",
    "rows.jsonl": '{"prompt": "my own data"}',
    "trainer_state.json": "{}",
    ".gitattributes": "*.bin filter=lfs",
    ".cache/huggingface/x.json": "{}",
    "lamina_certificate.json": "{}",
}


def write_base(
    folder: Path,
    family: str = "llama3",
    *,
    eos: str = "<|endoftext|>",
    template: str | None = CHATML,
    generation: dict[str, Any] | None = None,
    dtype: str = "float32",
) -> Path:
    """Writes a random base.

    Args:
        folder: Where.
        family: Of `FAMILIES`.
        eos: What the base itself ends a text with.
        template: Its chat template.
        generation: generation_config.json; none by default.
        dtype: Of its weights.
    """
    about = FAMILIES[family]
    tokenizer = build_tokenizer(template)
    tokenizer.eos_token = eos
    tokenizer.save_pretrained(folder)
    _as_transformers_4(folder, tokenizer)
    content = {
        "architectures": [about.architecture],
        "attention_dropout": 0.0,
        "bos_token_id": 0,
        "eos_token_id": tokenizer.eos_token_id,
        "model_type": about.kind,
        "tie_word_embeddings": False,
        "torch_dtype": dtype,
        "transformers_version": "4.45.0",
        **about.sizes,
        **about.words,
    }
    (folder / "config.json").write_text(json.dumps(content, indent=2))
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0.0, 0.4 if any(part in name for part in ("embed", "wte", "head")) else 0.12)
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(content, indent=2))
    (folder / "generation_config.json").unlink()
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


def add_files(folder: Path) -> None:
    """Puts what else folders hold into one."""
    for name, content in {**COMPANIONS, **LEFT_BEHIND}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)


def _as_transformers_4(folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    template = tokenizer.chat_template
    content: dict[str, Any] = {
        "bos_token": "<|endoftext|>",
        "clean_up_tokenization_spaces": False,
        "eos_token": str(tokenizer.eos_token),
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": 512,
        "pad_token": "<|endoftext|>",
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    if template is not None:
        content["chat_template"] = template
        (folder / "chat_template.jinja").unlink()
    (folder / "tokenizer_config.json").write_text(json.dumps(content, indent=2))
    special = {name: {"content": content[name], "lstrip": False} for name in ("bos_token", "eos_token", "pad_token")}
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2))
