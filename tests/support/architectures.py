"""Tiny random models of the architectures that the installed transformers has, by their `model_type`.

`ARCHITECTURES` says what a tiny configuration of each needs beside the common sizes; None leaves out a common one. A
name with a suffix after `+` is a second configuration of the same type. Windows and chunks of 12 to 16 tokens are
shorter than the documents of tests.
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
    "max_position_embeddings": 1024,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 0,
}

# The same sizes under the names that GPT-2 and its descendants use.
_GPT = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256}
_D = {"d_model": 64, "attention_heads": 4, "num_layers": 2, "ffn_dim": 96}
_EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
_SHARED_EXPERT = {**_EXPERTS, "shared_expert_intermediate_size": 48}
_MAMBA_2 = {
    "mamba_d_state": 8,
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_expand": 1,
    "mamba_d_ssm": 64,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 16,
    "mamba_d_conv": 4,
}
_LINEAR_ATTENTION = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}
_LATENT = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "n_shared_experts": 1,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 16,
    "first_k_dense_replace": 1,
    "num_key_value_heads": 4,
    "n_group": 1,
    "topk_group": 1,
}
_LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "original_max_position_embeddings": 64,
    "short_factor": [1.0] * 8,
    "long_factor": [4.0] * 8,
}
_WINDOW = {"sliding_window": 12, "layer_types": ["sliding_attention", "full_attention"]}
_ENCODER_DECODER = {
    "d_model": 64,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_ffn_dim": 96,
    "decoder_ffn_dim": 96,
}

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "afmoe": {**_EXPERTS, "num_dense_layers": 1, "sliding_window": 12, "layer_types": _WINDOW["layer_types"]},
    "apertus": {},
    "arcee": {},
    "bamba": {**_MAMBA_2, "attn_layer_indices": [1]},
    "bart": {**_ENCODER_DECODER, "encoder_attention_heads": 4, "decoder_attention_heads": 4},
    "biogpt": {},
    "bitnet": {},
    "bloom": {"n_layer": 2, "n_head": 4},
    "codegen": {**_GPT, "rotary_dim": 8},
    "cohere": {},
    "cohere2": _WINDOW,
    "cohere2_moe": _EXPERTS,
    "ctrl": {**_GPT, "dff": 96},
    "cwm": {},
    "deepseek_v2": _LATENT,
    "deepseek_v3": {**_LATENT, "head_dim": 8},
    "diffllama": {},
    "doge": {},
    "dots1": {**_LATENT, "layer_types": ["full_attention", "full_attention"]},
    "ernie4_5": {},
    "ernie4_5_moe": {**_EXPERTS, "moe_num_experts": 4, "moe_k": 2},
    "exaone4": _WINDOW,
    "falcon": {"alibi": False, "head_dim": None},
    "falcon+alibi": {"alibi": True, "new_decoder_architecture": False, "multi_query": True, "head_dim": None},
    "falcon_h1": _MAMBA_2,
    "falcon_mamba": {"state_size": 8, "expand": 1, "time_step_rank": 16},
    "flex_olmo": _EXPERTS,
    "gemma": {},
    "gemma2": {"sliding_window": 12, "query_pre_attn_scalar": 8},
    "gemma3_text": {**_WINDOW, "query_pre_attn_scalar": 8},
    "gemma3n_text": {
        **_WINDOW,
        "intermediate_size": [96, 96],
        "activation_sparsity_pattern": [0.5, 0.0],
        "vocab_size_per_layer_input": 264,
        "hidden_size_per_layer_input": 16,
        "num_kv_shared_layers": 0,
        "laurel_rank": 8,
    },
    "gemma4_text": {**_WINDOW, "vocab_size_per_layer_input": 264, "hidden_size_per_layer_input": 0},
    "gemma4_text+per_layer_inputs": {**_WINDOW, "vocab_size_per_layer_input": 264, "hidden_size_per_layer_input": 16},
    "glm": {},
    "glm4": {},
    "glm4_moe": _LATENT,
    "gpt2": _GPT,
    "gpt_bigcode": _GPT,
    "gpt_neo": {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": 16},
    "gpt_neox": {},
    "gpt_oss": {**_EXPERTS, "sliding_window": 12},
    "gptj": {**_GPT, "rotary_dim": 8},
    "granite": {
        "logits_scaling": 8.0,
        "residual_multiplier": 0.2,
        "embedding_multiplier": 12.0,
        "attention_multiplier": 0.05,
    },
    "granitemoe": _EXPERTS,
    "granitemoehybrid": {
        **_MAMBA_2,
        **_EXPERTS,
        "shared_intermediate_size": 48,
        "layer_types": ["mamba", "attention"],
    },
    "granitemoeshared": {**_EXPERTS, "shared_intermediate_size": 48},
    "helium": {},
    "hunyuan_v1_dense": {},
    "hunyuan_v1_moe": {**_EXPERTS, "moe_topk": 2},
    "internlm3": {},
    "jais2": {},
    "jamba": {
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "num_experts": 4,
        "mamba_d_state": 8,
        "mamba_expand": 1,
        "mamba_dt_rank": 16,
        "use_mamba_kernels": False,
    },
    "jetmoe": {"num_local_experts": 4},
    "kimi_linear": {**_LATENT, **_EXPERTS, "head_dim": 8, "linear_head_dim": 16, "linear_num_heads": 4},
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_multiple_of": 8},
    "lfm2_moe": {**_EXPERTS, "layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "llama": {},
    "llama4_text": {
        "num_local_experts": 4,
        "num_experts_per_tok": 1,
        "intermediate_size_mlp": 96,
        "attention_chunk_size": 16,
        "layer_types": ["chunked_attention", "full_attention"],
        "no_rope_layers": [1, 0],
    },
    "mamba": {"state_size": 8, "expand": 1, "time_step_rank": 16},
    "mamba2": {"state_size": 8, "expand": 1, "num_heads": 4, "head_dim": 16, "n_groups": 1, "chunk_size": 16},
    "minimax": {"num_local_experts": 4, "layer_types": ["linear_attention", "full_attention"]},
    "minimax_m2": _EXPERTS,
    "ministral": {"sliding_window": 12, "layer_types": _WINDOW["layer_types"]},
    "ministral3": {},
    "mistral": {"sliding_window": 12},
    "mixtral": _EXPERTS,
    "modernbert-decoder": {"local_attention": 12, "global_attn_every_n_layers": 2},
    "mpt": {"d_model": 64, "n_heads": 4, "n_layers": 2, "max_seq_len": 256},
    "nanochat": {},
    "nemotron": {},
    "nemotron_h": {
        "hybrid_override_pattern": "M*",
        "layers_block_type": ["mamba", "attention"],
        "ssm_state_size": 8,
        "mamba_num_heads": 4,
        "mamba_head_dim": 16,
        "n_groups": 1,
        "chunk_size": 16,
    },
    "olmo": {},
    "olmo2": {},
    "olmo3": _WINDOW,
    "olmoe": _EXPERTS,
    "openai-gpt": _GPT,
    "opt": {"ffn_dim": 96, "word_embed_proj_dim": 64},
    "persimmon": {},
    "phi": {"num_key_value_heads": 4, "partial_rotary_factor": 0.5},
    "phi3": {},
    "phi3+longrope": {
        "original_max_position_embeddings": 64,
        "max_position_embeddings": 512,
        "rope_parameters": _LONGROPE,
    },
    "phimoe": {"num_local_experts": 4},
    "qwen2": {},
    "qwen2+window": {"use_sliding_window": True, "sliding_window": 12, "max_window_layers": 1},
    "qwen2_moe": _SHARED_EXPERT,
    "qwen3": {},
    "qwen3_5_moe_text": {**_LINEAR_ATTENTION, **_SHARED_EXPERT},
    "qwen3_5_text": _LINEAR_ATTENTION,
    "qwen3_moe": _EXPERTS,
    "qwen3_next": {**_LINEAR_ATTENTION, **_SHARED_EXPERT},
    "recurrent_gemma": {"lru_width": 64, "attention_window_size": 16, "num_hidden_layers": 3},
    "rwkv": {},
    "seed_oss": {},
    "smollm3": {"no_rope_layers": [1, 0]},
    "stablelm": {},
    "starcoder2": {"sliding_window": 12},
    "trocr": {"d_model": 64, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 96},
    "vaultgemma": {"sliding_window": 12},
    "xglm": _D,
    "zamba2": {
        "num_hidden_layers": 3,
        "layers_block_type": ["mamba", "hybrid", "mamba"],
        "mamba_d_state": 8,
        "mamba_expand": 2,
        "mamba_ngroups": 1,
        "mamba_headdim": 16,
        "n_mamba_heads": 8,
        "num_mem_blocks": 1,
        "adapter_rank": 8,
    },
}

# Those whose layers have experts.
# fmt: off
MIXTURES = [
    "mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "gpt_oss", "granitemoe", "granitemoeshared", "granitemoehybrid",
    "jamba", "phimoe", "jetmoe", "minimax", "llama4_text", "deepseek_v2", "deepseek_v3", "glm4_moe", "ernie4_5_moe",
    "hunyuan_v1_moe", "flex_olmo", "afmoe", "minimax_m2", "qwen3_next", "qwen3_5_moe_text", "kimi_linear",
    "nemotron_h", "cohere2_moe",
]
# Models that see the tokens after a gap, or all others; the common sizes are all that they need.
BIDIRECTIONAL = [
    "bert", "big_bird", "camembert", "data2vec-text", "electra", "ernie", "megatron-bert", "rembert", "roberta",
    "roberta-prelayernorm", "roformer", "xlm-roberta", "xlm-roberta-xl",
]
# fmt: on


def architecture_config(name: str, **changes: Any) -> PreTrainedConfig:
    """Returns the configuration of a tiny model; changes replace its settings."""
    settings = {**COMMON, **ARCHITECTURES.get(name, {}), **changes}
    model_type = name.partition("+")[0]
    return AutoConfig.for_model(model_type, **{key: value for key, value in settings.items() if value is not None})


def build_architecture(
    name: str, dtype: torch.dtype = torch.float32, *, weights: bool = True, **changes: Any
) -> PreTrainedModel:
    """Builds a tiny model, frozen and in evaluation mode, with weights large enough for logits that differ.

    Args:
        name: In `ARCHITECTURES` or `BIDIRECTIONAL`.
        dtype: Of its weights.
        weights: Whether it has any; if not, it is on the meta device.
        changes: Settings of its configuration.

    Raises:
        Exception: Whatever transformers raises, where this configuration does not fit its version.
    """
    config = architecture_config(name, **changes)
    torch.manual_seed(1)
    with torch.device("cpu" if weights else "meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    if weights:
        _spread(model)
    return model.to(dtype).eval().requires_grad_(False)


@torch.no_grad()
def _spread(model: PreTrainedModel) -> None:
    for key, parameter in model.named_parameters():
        if any(part in key for part in ("embed", "wte", "lm_head")):
            parameter.normal_(0.0, 0.4)
        elif key.endswith("sinks"):
            parameter.fill_(1.0)
        elif parameter.ndim >= 2 and not any(part in key for part in ("A_log", "conv")):
            parameter.normal_(0.0, 0.12)


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
