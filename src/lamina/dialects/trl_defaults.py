"""The defaults of TRL's `SFTConfig` and `DPOConfig` that are not those of transformers; a script may read them back."""

from __future__ import annotations

from typing import Any

# Where TRL's configurations differ from transformers' `TrainingArguments`.
_COMMON: dict[str, Any] = {
    "output_dir": "trainer_output",
    "logging_steps": 10,
    "gradient_checkpointing": True,
    "bf16": True,
    "lr_scheduler_kwargs": None,
    "use_liger_kernel": False,
    "torch_empty_cache_steps": None,
    "model_init_kwargs": None,
    "router_aux_loss_coef": 0.001,
    "trust_remote_code": False,
    "dataset_num_proc": None,
    "max_length": 1024,
    "truncation_mode": "keep_start",
    "padding_free": False,
    "pad_to_multiple_of": None,
    "activation_offloading": False,
    "pad_token": None,
}

SFT_DEFAULTS: dict[str, Any] = {
    **_COMMON,
    "learning_rate": 2e-5,
    "chat_template_path": None,
    "dataset_text_field": "text",
    "dataset_kwargs": None,
    "eos_token": None,
    "shuffle_dataset": False,
    "packing": False,
    "packing_strategy": "bfd",
    "eval_packing": None,
    "completion_only_loss": None,
    "assistant_only_loss": False,
    "loss_type": None,
}

DPO_DEFAULTS: dict[str, Any] = {
    **_COMMON,
    "learning_rate": 1e-6,
    "disable_dropout": True,
    "precompute_ref_log_probs": False,
    "precompute_ref_batch_size": None,
    "loss_type": ["sigmoid"],
    "loss_weights": None,
    "ld_alpha": None,
    "f_divergence_type": "reverse_kl",
    "f_alpha_divergence_coef": 0.5,
    "label_smoothing": 0.0,
    "beta": 0.1,
    "use_weighting": False,
    "discopop_tau": 0.05,
    "sync_ref_model": False,
    "ref_model_mixup_alpha": 0.6,
    "ref_model_sync_steps": 512,
}
