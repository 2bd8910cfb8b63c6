"""Axolotl's YAML."""

from __future__ import annotations

from typing import Any

from lamina.dialects import values
from lamina.dialects.outcome import Entry, Lacks, Missing, Nothing, Own, Read, Set, To
from lamina.dialects.peft import BITS_AND_BYTES
from lamina.dialects.templates import built_in
from lamina.dialects.training_arguments import TRAINING_ARGUMENTS, own
from lamina.dialects.trl import NO_REMOTE_CODE

_KERNELS = "lamina has its own kernels and attention, which keep packed rows apart"
_LOSS_KERNELS = "lamina computes the loss without the logits of a whole batch"
_SPREAD = "how the work is spread over devices changes no result; lamina chooses it, or the launcher does"
_TOKENIZER = "model and tokenizer are those of the base model's files"
_TRACKER = "the tracker's own settings are environment variables (docs/trackers.md)"
_IMAGES = "lamina trains on text"
_GPTQ = "GPTQ bases are loaded as their files say"
_CLOUD = "where a run is executed is not part of its configuration"


def _val_set_size(value: Any) -> Any:
    value = values.decimal(value)
    if not value:
        return Set({"data.eval": None}, "no evaluation")
    return value if value < 1 else int(value)


def _per_epoch(key: str) -> Any:
    """The conversion of a number of times per epoch; the translator turns the share of an epoch into one of the run."""
    return lambda value: (
        Set({key: 1 / value}, "as a share of all steps") if value else Nothing("at the end of an epoch")
    )


def _excess(value: Any) -> Any:
    found = {"drop": "drop", "truncate": "cut", "raise": None}.get(str(value))
    return found or Missing("rows that are too long are dropped, cut or split (`data.overlong`)")


def _rl(value: Any) -> Any:
    name = str(getattr(value, "value", value)).lower()
    if name in ("dpo", "kto", "orpo", "simpo"):
        return Set({"loss.type": name})
    if name == "ipo":
        return Set({"loss.type": "dpo", "loss.loss_type": ["ipo"]})
    return Missing(f"{name!r} learns from answers that the model generates, or is not here")


def _eaft(value: Any) -> Any:
    note = "the entropy is divided by log(eaft_k), as in the paper: loss and gradient are smaller by a constant factor"
    return Set({"loss.type": "eaft"}, note) if value else Nothing("it is off")


def _checkpointing(value: Any) -> Any:
    if value in ("offload", "offload_disk"):
        return Set({"train.gradient_checkpointing": True}, "recomputed, not moved to another memory")
    return TRAINING_ARGUMENTS["gradient_checkpointing"].outcome(value)


def _tracker(name: str) -> To:
    return To("train.report_to", lambda value: values.trackers(name) if value else Nothing("it is off"))


def _tokens(value: Any) -> Any:
    if isinstance(value, dict) or not value:  # an older name of special_tokens
        return Nothing("special tokens are the tokenizer's; an answer's stop token is what its template writes")
    return [str(token) for token in value]


def _shuffle(value: Any) -> Any:
    return Nothing("rows are shuffled by seed and epoch") if value else Missing("rows are always shuffled")


def _steps(key: str) -> To:
    return To(key, values.number)


_MODEL: dict[str, Entry] = {
    "base_model": To("model", str),
    **own(
        _TOKENIZER,
        (
            "base_model_config",
            "base_model_ignore_patterns",
            "model_type",
            "tokenizer_type",
            "tokenizer_config",
            "tokenizer_use_fast",
            "tokenizer_legacy",
            "tokenizer_use_mistral_common",
            "tokenizer_save_jinja_files",
            "is_llama_derived_model",
            "is_falcon_derived_model",
            "is_mistral_derived_model",
            "is_qwen_derived_model",
            "cls_model_config",
            "model_config_type",
            "resize_token_embeddings_to_32x",
            "shrink_embeddings",
            "embeddings_skip_upcast",
        ),
    ),
    "revision_of_model": To("revision", values.revision),
    "trust_remote_code": Own(NO_REMOTE_CODE),
    "hf_use_auth_token": Own("`hf auth login` gives access to gated models"),
    "model_config": Own("losses of a router and the like are not part of the loss here"),
    "overrides_of_model_config": Lacks("a model is used as its files say"),
    "overrides_of_model_kwargs": Lacks("set dtype, quantization and offload in the configuration"),
    "model_quantization_config": Own("a base that is stored quantized is loaded as its files say"),
    "model_quantization_config_kwargs": Own("a base that is stored quantized is loaded as its files say"),
    "special_tokens": Own("special tokens are the tokenizer's; an answer's stop token is what its template writes"),
    "tokens": To("data.add_tokens", _tokens),
    "added_tokens_overrides": Lacks("tokens keep their texts"),
    "device_map": To("device", lambda value: values.device_map(value or "auto")),
    "max_memory": Own(values.SEVERAL_GPUS),
    "low_cpu_mem_usage": Own("weights are read from disk as they are needed"),
    "experimental_skip_move_to_device": Own("weights are read from disk as they are needed"),
    "reinit_weights": Lacks("training starts from the base model's weights"),
    "torch_dtype": To("dtype", values.dtype),
    "bfloat16": TRAINING_ARGUMENTS["bf16"],
    "float16": TRAINING_ARGUMENTS["bf16"],
    **own("matrix products run in bfloat16, which is more precise", ("fp8", "fp8_enable_fsdp_float8_all_gather")),
    "processor_type": Lacks(_IMAGES),
    "freeze_mm_modules": Own(_IMAGES),
    "image_size": Own(_IMAGES),
    "image_resize_algorithm": Own(_IMAGES),
    **own(_GPTQ, ("gptq", "gptq_groupsize", "gptq_model_v1", "gptq_disable_exllama")),
    "bnb_config_kwargs": Read("quantization.double_quant", "quantization: {bits: 4, double_quant: true}"),
}

_METHOD: dict[str, Entry] = {
    "adapter": Read("method.type", "method: {type: lora}"),
    "full_finetune": Read("method.type", "method: {type: full}"),
    "lora_model_dir": To("method.from", str),
    "lora_r": To("method.r"),
    "lora_alpha": To("method.lora_alpha"),
    "lora_dropout": To("method.lora_dropout", values.decimal),
    "lora_target_modules": To("method.target_modules", values.targets),
    "lora_target_linear": Read("method.target_modules", "method: {target_modules: all-linear}"),
    "lora_target_parameters": To("method.target_parameters", values.names),
    "lora_modules_to_save": To("method.modules_to_save", values.names),
    "lora_fan_in_fan_out": Own("lamina sees how a layer stores its weight"),
    "peft_layers_to_transform": To("method.layers_to_transform"),
    "peft_layers_pattern": To("method.layers_pattern"),
    **{f"peft_{name}": To(f"method.{name}") for name in ("use_dora", "use_rslora", "init_lora_weights")},
    "peft": Read("method.loftq_config", "method: {init_lora_weights: loftq}"),
    "peft_autocast_adapter_dtype": Own("adapters train in float32"),
    "lora_on_cpu": Own("loading an adapter takes no memory of the GPU beside it"),
    "merge_lora": Own("`lamina merge` merges a finished adapter"),
    "loraplus_lr_ratio": To("train.loraplus_lr_ratio", values.decimal),
    "loraplus_lr_embedding": Own("the embeddings have the learning rate of A"),
    "unfrozen_parameters": Read("method.parameters", "method: {type: full, parameters: [lm_head]}"),
    **own(
        _KERNELS,
        (
            "lora_mlp_kernel",
            "lora_qkv_kernel",
            "lora_o_kernel",
            "lora_embedding_kernel",
            "fused_attn_kernel",
            "flash_attention",
            "flash_attn_cross_entropy",
            "flash_attn_rms_norm",
            "flash_attn_fuse_mlp",
            "flash_attn_fuse_qkv",
            "flash_optimum",
            "sdp_attention",
            "s2_attention",
            "xformers_attention",
            "eager_attention",
            "flex_attention",
            "flex_attn_compile_kwargs",
            "attn_implementation",
            "gemma4_hybrid_attn_impl",
            "use_kernels",
            "use_scattermoe",
            "use_sonicmoe",
            "experts_implementation",
            "use_dsv4_kernels",
            "use_glm_dsa_kernels",
            "dsv4_fp4_grouped_mode",
            "llama4_linearized_experts",
            "liger_rope",
            "liger_rms_norm",
            "liger_rms_norm_gated",
            "liger_layer_norm",
            "liger_glu_activation",
            "liger_swiglu",
            "tiled_mlp",
            "tiled_mlp_num_shards",
            "unsloth_lora_mlp",
            "unsloth_cross_entropy_loss",
        ),
    ),
    **own(
        _LOSS_KERNELS,
        (
            "liger_cross_entropy",
            "liger_fused_linear_cross_entropy",
            "cut_cross_entropy",
            "chunked_cross_entropy",
            "chunked_cross_entropy_num_chunks",
        ),
    ),
    "quantize_moe_experts": Own("quantization packs every linear layer that it knows, experts too"),
    "qat": Lacks("training with simulated quantization is not here; `lamina quantize` quantizes on your data"),
    "nvfp4_merge_aware": Lacks("NVFP4 is not here"),
    "use_onebitllms": Lacks("1.58-bit training is not here"),
    "llmcompressor": Lacks("sparse training is not here"),
    "relora": Lacks("ReLoRA is not here"),
    "relora_steps": Lacks("ReLoRA is not here"),
    "relora_prune_ratio": Own("it only matters with relora"),
    "relora_cpu_offload": Own("it only matters with relora"),
    "jagged_restart_steps": Lacks("restarts of the schedule are those of `cosine_with_restarts`"),
    "jagged_restart_warmup_steps": Own("it only matters with jagged_restart_steps"),
    "jagged_restart_anneal_steps": Own("it only matters with jagged_restart_steps"),
    "lisa_n_layers": Lacks("LISA is not here"),
    "lisa_step_interval": Own("it only matters with lisa_n_layers"),
    "lisa_layers_attribute": Own("it only matters with lisa_n_layers"),
}

_DATA: dict[str, Entry] = {
    "datasets": Read("data.train", "data: {train: [{path: NAME}]}"),
    "test_datasets": Read("data.eval", "data: {eval: FILE}"),
    "pretraining_dataset": Read("data.train", "data: {train: [{path: NAME, format: text}]}"),
    "val_set_size": To("data.eval", _val_set_size),
    "sequence_len": To("data.max_length"),
    "max_packed_sequence_len": Own("`sequence_len` is the length of a packed row"),
    "eval_sequence_len": Own("evaluation has the training's max_length"),
    "min_sample_len": Own("rows without supervised tokens are dropped, short ones are not"),
    "excess_length_strategy": To("data.overlong", _excess),
    "sample_packing": To("data.packing"),
    "pretrain_multipack_attn": Own(_KERNELS),
    "chat_template": To("data.chat_template", built_in),
    "chat_template_jinja": To("data.chat_template"),
    "eot_tokens": Own("an answer's stop token is the one that the chat template writes"),
    "default_system_message": Lacks("write the system message into the rows"),
    "train_on_inputs": To("data.train_on", lambda value: "all" if value else Nothing("answers alone are in the loss")),
    "shuffle_merged_datasets": To("seed", _shuffle),
    "shuffle_before_merging_datasets": Own("rows are shuffled by seed and epoch"),
    "curriculum_sampling": Lacks("rows are always shuffled"),
    "streaming": Own("files are always streamed, and encoded rows kept in a cache"),
    "dataset_exact_deduplication": Lacks("`lamina data check --fix OUT.jsonl` removes duplicates once"),
    **own(
        "lamina plans how rows are packed; it packs for the seed and the epoch alone",
        (
            "eval_sample_packing",
            "sample_packing_eff_est",
            "sample_packing_seq_len_multiplier",
            "sample_packing_group_size",
            "sample_packing_bin_size",
            "sample_packing_sequentially",
            "sample_packing_mp_start_method",
            "total_num_tokens",
            "pad_to_sequence_len",
            "multipack_real_batches",
            "batch_flattening",
        ),
    ),
    **own(
        "encoded rows are kept in the user's cache, and never uploaded",
        (
            "dataset_prepared_path",
            "push_dataset_to_hub",
            "skip_prepare_dataset",
            "dataset_processes",
            "dataset_num_proc",
            "dataset_keep_in_memory",
            "dataset_shard_num",
            "dataset_shard_idx",
            "streaming_multipack_buffer_size",
            "pretrain_multipack_buffer_size",
        ),
    ),
}

_LOSS: dict[str, Entry] = {
    "rl": To("loss.type", _rl),
    "rl_beta": To("loss.beta", values.decimal),
    "dpo_beta": To("loss.beta", values.decimal),
    "orpo_alpha": To("loss.beta", values.decimal),
    "cpo_alpha": To("loss.cpo_alpha", values.decimal),
    "simpo_gamma": To("loss.simpo_gamma", values.decimal),
    "kto_desirable_weight": To("loss.desirable_weight", values.decimal),
    "kto_undesirable_weight": To("loss.undesirable_weight", values.decimal),
    "dpo_label_smoothing": To("loss.label_smoothing", values.decimal),
    "dpo_use_weighting": Lacks("WPO's weights are not here"),
    "rl_adapter_ref_model": Own("the reference is the adapter of method.from, or the base"),
    "reward_model": To("loss.type", lambda value: "reward" if value else Nothing("it is off")),
    "num_labels": Own("a reward model has one score"),
    "center_rewards_coefficient": To("loss.center_rewards_coefficient", values.decimal),
    "process_reward_model": Lacks("rewards of single steps are not here"),
    "trl": Lacks("training on answers that the model generates is not here"),
    "ebft": Lacks("EBFT is not here"),
    "vllm": Lacks("training on answers that the model generates is not here"),
    "diffusion": Lacks("lamina trains causal language models"),
    "use_eaft": To("loss.type", _eaft),
    "eaft_alpha": To("loss.eaft_alpha", values.decimal),
    "eaft_k": To("loss.eaft_k"),
    "neftune_noise_alpha": TRAINING_ARGUMENTS["neftune_noise_alpha"],
}

_TRAIN: dict[str, Entry] = {
    "micro_batch_size": To("train.per_device_train_batch_size"),
    "batch_size": Read("train.gradient_accumulation_steps", "train: {gradient_accumulation_steps: 4}"),
    "eval_batch_size": To("train.per_device_eval_batch_size"),
    "num_epochs": To("train.num_train_epochs", values.decimal),
    "optimizer": To("train.optim", values.optimizer),
    "lr_scheduler": To("train.lr_scheduler_type", values.schedule),
    "lr_div_factor": Own("it only matters with one_cycle"),
    "cosine_min_lr_ratio": Read("train.lr_scheduler_kwargs", "train: {lr_scheduler_type: cosine_with_min_lr}"),
    "cosine_constant_lr_ratio": Lacks("`warmup_stable_decay` has a constant part"),
    "eta_min": Read("train.lr_scheduler_kwargs", "train: {lr_scheduler_type: cosine_with_min_lr}"),
    "lr_quadratic_warmup": Own("the nearest: the warmup is linear, of the same length"),
    "adam_eps": To("train.adam_epsilon", values.decimal),
    "adam_epsilon2": Lacks("CAME is not here"),
    "adam_beta3": Lacks("CAME is not here"),
    "gradient_checkpointing": To("train.gradient_checkpointing", _checkpointing),
    "activation_offloading": Own("`gradient_checkpointing` recomputes activations where they would not fit"),
    "evals_per_epoch": To("train.eval_steps", _per_epoch("train.eval_steps")),
    "saves_per_epoch": To("train.save_steps", _per_epoch("train.save_steps")),
    "early_stopping_patience": To("train.early_stopping_patience"),
    "save_steps": _steps("train.save_steps"),
    "eval_steps": _steps("train.eval_steps"),
    "save_only_model": TRAINING_ARGUMENTS["save_only_model"],
    "loss_watchdog_threshold": Own("a loss that is not finite stops the run"),
    "loss_watchdog_patience": Own("a loss that is not finite stops the run"),
    "auto_resume_from_checkpoints": Own("`lamina train CONFIG --resume` goes on with a run, exactly"),
    "use_tensorboard": _tracker("tensorboard"),
    "use_wandb": _tracker("wandb"),
    "wandb_project": _tracker("wandb"),
    "use_mlflow": _tracker("mlflow"),
    "trackio_project_name": _tracker("trackio"),
    "use_comet": _tracker("comet_ml"),
    "use_swanlab": _tracker("swanlab"),
    "strict": Own("an unknown key is always an error"),
    "plugins": Own("kernels and losses that lamina has by itself, or that other keys name"),
    "torchdistx_path": Own(_SPREAD),
    "eval_table_size": Own("`lamina eval` shows answers after training"),
    "eval_max_new_tokens": Own("`lamina eval` shows answers after training"),
    "eval_causal_lm_metrics": Own("`lamina eval` measures after training"),
    "do_causal_lm_eval": Own("`lamina eval` measures after training"),
    "bench_dataset": Own("`lamina eval` measures after training"),
    **own(
        _TRACKER,
        (
            "wandb_entity",
            "wandb_watch",
            "wandb_name",
            "wandb_run_id",
            "wandb_log_model",
            "wandb_mode",
            "mlflow_tracking_uri",
            "mlflow_experiment_name",
            "swanlab_project",
            "swanlab_experiment_name",
            "swanlab_description",
            "swanlab_mode",
            "swanlab_workspace",
            "swanlab_log_model",
            "swanlab_log_completions",
            "swanlab_completion_log_interval",
            "swanlab_completion_max_buffer",
            "trackio_run_name",
            "use_otel_metrics",
            "otel_metrics_host",
            "otel_metrics_port",
        ),
    ),
    **own(
        _SPREAD,
        (
            "fsdp_version",
            "fsdp_final_state_dict_type",
            "dp_shard_size",
            "dp_replicate_size",
            "context_parallel_size",
            "context_parapllel_size",
            "tensor_parallel_size",
            "expert_parallel_size",
            "expert_parallel_num_nvl_bytes",
            "expert_parallel_token_capacity",
            "sequence_parallel_degree",
            "heads_k_stride",
            "ring_attn_func",
            "ddp",
            "world_size",
            "use_ray",
            "ray_num_workers",
            "ray_run_name",
        ),
    ),
    **own(
        _CLOUD,
        (
            "project_name",
            "provider",
            "secrets",
            "gpu",
            "gpu_count",
            "node_count",
            "volumes",
            "branch",
            "dockerfile_commands",
            "memory",
            "timeout",
            "memory_preprocess",
            "timeout_preprocess",
            "test_value",
        ),
    ),
}

AXOLOTL: dict[str, Entry] = {**TRAINING_ARGUMENTS, **BITS_AND_BYTES, **_MODEL, **_METHOD, **_DATA, **_LOSS, **_TRAIN}
