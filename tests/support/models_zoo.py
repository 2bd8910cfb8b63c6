"""Two-layer random models of each supported family, and a tokenizer that needs no download."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import (
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PhiConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)
from transformers.models.auto import AutoModelForCausalLM

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

_COMMON = {
    "vocab_size": 160,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 2,
}


def _config(cls: type[PreTrainedConfig], **changes: Any) -> Callable[..., PreTrainedConfig]:
    def build(**more: Any) -> PreTrainedConfig:
        return cls(**{**_COMMON, **changes, **more})

    return build


def _gpt2(**more: Any) -> PreTrainedConfig:
    settings = {"vocab_size": 160, "n_embd": 48, "n_layer": 2, "n_head": 6, "n_positions": 256}
    settings |= {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "bos_token_id": 0, "eos_token_id": 2}
    return GPT2Config(**{**settings, **more})


# Windows of 12 tokens are shorter than the test documents, so that sliding layers do slide.
FAMILIES: dict[str, Callable[..., PreTrainedConfig]] = {
    "llama": _config(LlamaConfig, tie_word_embeddings=True),
    "qwen2": _config(Qwen2Config),
    "qwen3": _config(Qwen3Config),
    "mistral": _config(MistralConfig, sliding_window=12),
    "gemma2": _config(Gemma2Config, sliding_window=12, query_pre_attn_scalar=8, final_logit_softcapping=5.0),
    "gemma3": _config(Gemma3TextConfig, sliding_window=12, query_pre_attn_scalar=8),
    "gpt2": _gpt2,
    "phi": _config(PhiConfig, num_key_value_heads=6, partial_rotary_factor=0.5, resid_pdrop=0.0, embd_pdrop=0.0),
}


def build_model(family: str, dtype: torch.dtype = torch.float32, **changes: Any) -> PreTrainedModel:
    """A random two-layer model, frozen and in evaluation mode. Weights are large enough for logits that differ."""
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(FAMILIES[family](**changes), dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "embed" in name or "wte" in name or "lm_head" in name:
                parameter.normal_(0.0, 0.4)
            elif parameter.ndim >= 2:
                parameter.normal_(0.0, 0.12)
            elif "norm" not in name and "ln_" not in name:
                parameter.normal_(0.0, 0.02)
    return model.to(dtype).eval().requires_grad_(False)


def build_tokenizer(chat_template: str | None = CHATML) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer without merges: one token a byte, three special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *alphabet])}
    backend = Tokenizer(BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(list(SPECIAL))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=SPECIAL[0], eos_token=SPECIAL[2], pad_token=SPECIAL[0]
    )
    tokenizer.chat_template = chat_template
    return tokenizer
