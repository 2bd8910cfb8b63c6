"""Tiny models of many architectures, made in memory: what must hold of any model is held against them.

Most are two layers of the same few sizes. What an architecture wants besides is in `SPECIAL`; mixtures of experts share
`EXPERTS`.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    AutoConfig,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto import AutoModelForCausalLM

COMMON: dict[str, Any] = {
    "vocab_size": 264,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
EXPERTS: dict[str, Any] = {
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "moe_num_experts": 4,
    "moe_k": 2,
}

# fmt: off
PLAIN = [
    "apertus", "arcee", "biogpt", "bitnet", "bloom", "cohere", "cohere2", "cwm", "diffllama", "doge", "ernie4_5",
    "exaone4", "falcon_h1", "falcon_mamba", "gemma", "gemma2", "gemma3_text", "glm", "glm4", "gpt2", "gpt_bigcode",
    "gpt_neox", "granite", "helium", "hunyuan_v1_dense", "internlm3", "jais2", "lfm2", "llama", "mamba",
    "ministral", "ministral3", "mistral", "modernbert-decoder", "mpt", "nanochat", "nemotron", "olmo", "olmo2",
    "olmo3", "openai-gpt", "opt", "persimmon", "phi", "phi3", "qwen2", "qwen3", "qwen3_5_text", "recurrent_gemma",
    "rwkv", "seed_oss", "smollm3", "stablelm", "starcoder2", "vaultgemma", "xglm", "ctrl", "codegen", "gptj",
    "gpt_neo", "falcon", "mamba2", "gemma4_text", "gemma3n_text", "bart", "trocr", "bamba",
]
MIXTURES = [
    "mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "gpt_oss", "granitemoe", "granitemoeshared", "granitemoehybrid",
    "jamba", "phimoe", "jetmoe", "minimax", "llama4_text", "deepseek_v2", "deepseek_v3", "glm4_moe", "ernie4_5_moe",
    "hunyuan_v1_moe", "flex_olmo", "afmoe", "minimax_m2", "qwen3_next", "qwen3_5_moe_text", "kimi_linear",
    "nemotron_h", "cohere2_moe",
]
# They see the tokens after a gap, or all others.
BIDIRECTIONAL = [
    "bert", "big_bird", "camembert", "data2vec-text", "electra", "ernie", "megatron-bert", "rembert", "roberta",
    "roberta-prelayernorm", "roformer", "xlm-roberta", "xlm-roberta-xl",
]
# fmt: on
ARCHITECTURES = [*PLAIN, *MIXTURES]

_LINEAR_ATTENTION = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}
_GPT = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256}
_LATENT = {
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 16,
    "head_dim": 8,
    "num_key_value_heads": 4,
    "first_k_dense_replace": 1,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
}
_SIDES = {"d_model": 64, "encoder_layers": 1, "decoder_layers": 2, "encoder_ffn_dim": 96, "decoder_ffn_dim": 96}
_HEADS = {"encoder_attention_heads": 4, "decoder_attention_heads": 4}
_MAMBA = {"mamba_d_state": 8, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_expand": 1, "mamba_n_groups": 1}
SPECIAL: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1], **_MAMBA},
    "bart": {**_SIDES, **_HEADS},
    "bloom": {"n_layer": 2, "n_head": 4},
    "codegen": {**_GPT, "rotary_dim": 8, "head_dim": None},
    "ctrl": {**_GPT, "dff": 96},
    "deepseek_v2": _LATENT,
    "deepseek_v3": _LATENT,
    "falcon": {"head_dim": None},
    "falcon_h1": {"mamba_d_ssm": 64, **_MAMBA},
    "gemma3n_text": {
        "hidden_size_per_layer_input": 16,
        "vocab_size_per_layer_input": 264,
        "num_kv_shared_layers": 0,
        "layer_types": ["sliding_attention", "full_attention"],
        "laurel_rank": 8,
        "altup_num_inputs": 2,
        "intermediate_size": [96, 128],
        "activation_sparsity_pattern": [0.0, 0.0],
    },
    "gemma4_text": {
        "hidden_size_per_layer_input": 16,
        "vocab_size_per_layer_input": 264,
        "global_head_dim": 16,
        "num_kv_shared_layers": 0,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "gpt2": _GPT,
    "gpt_bigcode": _GPT,
    "gpt_neo": {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "head_dim": None},
    "gptj": {**_GPT, "rotary_dim": 8, "head_dim": None},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"], "shared_intermediate_size": 48, **_MAMBA},
    "jamba": {
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "mamba_d_state": 8,
        "mamba_dt_rank": 16,
        "use_mamba_kernels": False,
    },
    "kimi_linear": {"linear_head_dim": 16, "linear_num_heads": 4, **_LATENT},
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_multiple_of": 8},
    "llama4_text": {"intermediate_size_mlp": 96, "num_experts_per_tok": 1},
    "mamba": {"state_size": 8, "expand": 1, "time_step_rank": 16},
    "mamba2": {"state_size": 8, "expand": 1, "num_heads": 4, "n_groups": 1, "chunk_size": 16},
    "minimax": {"layer_types": ["linear_attention", "full_attention"]},
    "nemotron_h": {
        "layers_block_type": ["mamba", "attention"],
        "ssm_state_size": 8,
        "mamba_num_heads": 4,
        "mamba_head_dim": 16,
        "n_groups": 1,
    },
    "mpt": {"d_model": 64, "n_heads": 4, "n_layers": 2, "max_seq_len": 256},
    "openai-gpt": _GPT,
    "opt": {"ffn_dim": 96, "word_embed_proj_dim": 64},
    "qwen2_moe": {"shared_expert_intermediate_size": 48},
    "qwen3_5_moe_text": {"shared_expert_intermediate_size": 48, **_LINEAR_ATTENTION},
    "qwen3_5_text": _LINEAR_ATTENTION,
    "qwen3_next": {"shared_expert_intermediate_size": 48, **_LINEAR_ATTENTION},
    "recurrent_gemma": {"lru_width": 64, "num_hidden_layers": 3},
    "trocr": {"d_model": 64, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 96},
    "xglm": {"d_model": 64, "num_layers": 2, "attention_heads": 4, "ffn_dim": 96},
}


def architecture_config(name: str, **changes: Any) -> PreTrainedConfig:
    """The configuration of a tiny model."""
    settings = {**COMMON, **(EXPERTS if name in MIXTURES else {}), **SPECIAL.get(name, {}), **changes}
    return AutoConfig.for_model(name, **{key: value for key, value in settings.items() if value is not None})


def build_architecture(name: str, weights: bool = True, **changes: Any) -> PreTrainedModel:
    """A tiny model, frozen and in evaluation mode; without its weights (on the meta device) if none are wanted."""
    config = architecture_config(name, **changes)
    torch.manual_seed(1)
    with torch.device("cpu" if weights else "meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return model.eval().requires_grad_(False)


def build_vision_language(layers: int = 2, vision_layers: int = 3) -> PreTrainedModel:
    """A tiny Gemma 3 with a vision tower; by default the tower has more layers than the text."""
    text = {key: value for key, value in COMMON.items() if not key.endswith("_token_id")} | {
        "num_hidden_layers": layers
    }
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": vision_layers, "num_attention_heads": 2}
    tokens = {"image_token_index": 260, "boi_token_index": 261, "eoi_token_index": 262}
    torch.manual_seed(1)
    config = Gemma3Config(
        text_config=text, vision_config={**vision, "image_size": 28, "patch_size": 14}, mm_tokens_per_image=4, **tokens
    )
    return Gemma3ForConditionalGeneration(config).eval().requires_grad_(False)
