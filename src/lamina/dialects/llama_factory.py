"""LLaMA-Factory's YAML and command line."""

from __future__ import annotations

from typing import Any

from lamina.dialects import values
from lamina.dialects.outcome import Entry, Lacks, Missing, Nothing, Own, Read, Set, To
from lamina.dialects.peft import BITS_AND_BYTES
from lamina.dialects.templates import built_in
from lamina.dialects.training_arguments import TRAINING_ARGUMENTS, own
from lamina.dialects.trl import NO_REMOTE_CODE

_KERNELS = "lamina has its own kernels and attention, which keep packed rows apart"
_IMAGES = "lamina trains on text"
_CACHE = "encoded rows are kept in the user's cache, and encoded again if a file changes"
_ANSWERS = "`lamina eval` and `lamina generate` answer after training, with settings of their own"
_EXPORT = "`lamina merge RUN --out DIR` writes the merged model"
_TRACKER = "lamina does not report to SwanLab; a plug-in can (docs/trackers.md)"
_KT = "layers that do not fit into memory stay on disk (`offload`)"

STAGES: dict[str, Any] = {
    "sft": Nothing("supervised fine-tuning is the default"),
    "pt": Set({"data.format": "text"}),
    "dpo": Set({"loss.type": "dpo"}),
    "kto": Set({"loss.type": "kto"}),
    "rm": Set({"loss.type": "reward"}),
    "ppo": Missing("training on answers that the model generates is not here"),
}


def _stage(value: Any) -> Any:
    return STAGES.get(str(value).lower(), Missing(f"the stage {value!r} is not here"))


def _method(value: Any) -> Any:
    if value == "oft":
        return Set({"method.type": "peft", "method.peft_type": "OFT"})
    return values.METHODS.get(str(value), Missing(f"lamina has no {value!r}; see `lamina methods`"))


def _finetuning(value: Any) -> Any:
    found = _method(value)
    return found if not isinstance(found, str) else Set({"method.type": found})


def _template(value: Any) -> Any:
    if str(value).endswith("_nothink"):
        return Set({"data.enable_thinking": False}, "the base model's own template, without thinking")
    return built_in(str(value))


def _adapter(value: Any) -> Any:
    paths = values.names(value)
    if not isinstance(paths, list) or len(paths) == 1:
        return str(paths[0] if isinstance(paths, list) else paths)
    reason = "training starts from one adapter; merge the others into the base first: `lamina merge ADAPTER --out DIR`"
    return Missing(reason)


def _preference(value: Any) -> Any:
    found = {
        "sigmoid": Nothing("it is DPO's default"),
        "hinge": Set({"loss.loss_type": ["hinge"]}),
        "ipo": Set({"loss.loss_type": ["ipo"]}),
        "orpo": Set({"loss.type": "orpo"}),
        "simpo": Set({"loss.type": "simpo"}),
    }
    return found.get(str(value), Missing(f"the loss {value!r} is not here"))


def _flag(key: str, wanted: Any) -> To:
    return To(key, lambda value: wanted if value else Nothing("it is off"))


def _interval(value: Any) -> Any:
    return Set({"train.badam.switch_mode": "fixed"}, "the layer stays the same") if value == -1 else value


def _every_matrix(value: Any) -> Any:
    given = values.names(value)
    return Nothing("every matrix is projected") if given == ["all"] else Missing("every matrix is projected, not some")


def _eaft(value: Any) -> Any:
    note = "the entropy is divided by log 20, as in the paper, and by 3 there: the loss is 0.1% larger"
    return Set({"loss.type": "eaft"}, note) if value else Nothing("it is off")


def _adam_mini(value: Any) -> Any:
    note = f"{values.NEAR}: Adam-mini is AdamW with fewer second moments, and the same settings"
    return Set({"train.optim": "adamw_torch"}, note) if value else Nothing("it is off")


def _checkpointing(value: Any) -> Any:
    return Set({"train.gradient_checkpointing": False}) if value else Nothing("`auto` recomputes what does not fit")


def _thinking(value: Any) -> Any:
    return Set({"data.enable_thinking": False}) if value is False else Nothing("the template decides")


def _quantization_method(value: Any) -> Any:
    name = str(getattr(value, "value", value)).lower()
    if name in ("bnb", "bitsandbytes"):
        return Nothing("lamina's 4 and 8 bits are those of bitsandbytes")
    return Missing(f"bases are quantized in the format of bitsandbytes, not {name}")


def _bits(value: Any) -> Any:
    return (
        value
        if value in (4, 8)
        else Missing(f"bases are quantized to 4 or 8 bits, not {value}")
        if value
        else Nothing("")
    )


_MODEL: dict[str, Entry] = {
    "model_name_or_path": To("model", str),
    "adapter_name_or_path": To("method.from", _adapter),
    "model_revision": To("revision", values.revision),
    "trust_remote_code": Own(NO_REMOTE_CODE),
    "quantization_bit": To("quantization.bits", _bits),
    "quantization_method": To("quantization.bits", _quantization_method),
    "quantization_type": To("quantization.quant_type", str),
    "double_quantization": To("quantization.double_quant"),
    "quantization_device_map": To("device", lambda value: values.device_map(value or "auto")),
    "flash_attn": Own(_KERNELS),
    "enable_liger_kernel": Own(_KERNELS),
    "use_unsloth": Own(_KERNELS),
    "use_v1_kernels": Own(_KERNELS),
    "shift_attn": Lacks("LongLoRA's shifted attention is not here"),
    "mixture_of_depths": Lacks("mixture of depths is not here"),
    "rope_scaling": Lacks("a model's positions are those of its own files"),
    "moe_aux_loss_coef": Lacks("a router's balance loss is not part of the loss here"),
    "disable_gradient_checkpointing": To("train.gradient_checkpointing", _checkpointing),
    "train_from_scratch": Lacks("lamina fine-tunes models that exist"),
    "resize_vocab": Own("the vocabulary grows by the tokens that are added"),
    "add_tokens": To("data.add_tokens", values.names),
    "add_special_tokens": To("data.special_tokens", values.names),
    "new_special_tokens": To("data.special_tokens", values.names),
    "new_special_tokens_config": Lacks("name new tokens with `data: {special_tokens: [...]}`"),
    "init_special_tokens": Lacks("new rows start near the mean of the others", ("noise_init",)),
    "split_special_tokens": Lacks("a special token in a row's own text is an error here"),
    **own(
        "lamina loads and places the base by itself",
        (
            "cache_dir",
            "adapter_folder",
            "use_fast_tokenizer",
            "low_cpu_mem_usage",
            "offload_folder",
            "upcast_layernorm",
            "upcast_lmhead_output",
            "use_unsloth_gc",
            "use_reentrant_gc",
            "hf_hub_token",
            "ms_hub_token",
            "om_hub_token",
            "print_param_status",
            "use_kv_cache",
            "infer_dtype",
            "infer_backend",
            "vllm_maxlen",
            "vllm_gpu_util",
            "vllm_enforce_eager",
            "vllm_max_lora_rank",
            "vllm_config",
            "pure_bf16",
        ),
    ),
    **own(_KT, ("use_kt", "kt_config", "kt_cpu_activation", "kt_weight_path", "kt_non_expert_weight_path")),
    **own(
        _IMAGES,
        (
            "image_max_pixels",
            "image_min_pixels",
            "image_do_pan_and_scan",
            "crop_to_patches",
            "video_max_pixels",
            "video_min_pixels",
            "video_fps",
            "video_maxlen",
            "use_audio_in_video",
            "audio_sampling_rate",
            "freeze_vision_tower",
            "freeze_multi_modal_projector",
            "freeze_language_model",
            "media_dir",
        ),
    ),
    **own(
        _EXPORT,
        (
            "export_dir",
            "export_size",
            "export_device",
            "export_legacy_format",
            "export_quantization_bit",
            "export_quantization_dataset",
        ),
    ),
}

_DATA: dict[str, Entry] = {
    "dataset": Read("data.train", "data: {train: FILE}"),
    "eval_dataset": Read("data.eval", "data: {eval: FILE}"),
    "dataset_dir": Read("data.train", "data: {train: FOLDER/FILE}"),
    "template": To("data.chat_template", _template),
    "cutoff_len": To("data.max_length"),
    "train_on_prompt": To("data.train_on", lambda value: "all" if value else Nothing("answers alone are in the loss")),
    "mask_history": _flag("data.train_on", "completions"),
    "max_samples": To("data.max_rows"),
    "val_size": Read("data.eval", "data: {eval: 0.1}"),
    "eval_on_each_dataset": Own("several evaluation sets are always evaluated one by one"),
    "packing": To("data.packing"),
    "neat_packing": _flag("data.packing", True),
    "streaming": Own("files are always streamed, and encoded rows kept in a cache"),
    "buffer_size": Own("rows are shuffled by seed and epoch, all of them"),
    "mix_strategy": Lacks("the rows of all sources are mixed; `weight` says how often", ("concat",)),
    "interleave_probs": Lacks("give each source a `weight`"),
    "default_system": Lacks("write the system message into the rows"),
    "tool_format": Own("tools are written as the chat template does"),
    "enable_thinking": To("data.enable_thinking", _thinking),
    "preserve_thinking": Own("reasoning in an answer stays in the loss (`data.thinking: keep`)"),
    "ignore_pad_token_for_loss": Own("padding is never in the loss"),
    "disable_shuffling": Lacks("rows are always shuffled"),
    **own(
        _CACHE,
        (
            "overwrite_cache",
            "preprocessing_batch_size",
            "preprocessing_num_workers",
            "tokenized_path",
            "data_shared_file_system",
        ),
    ),
    "eval_num_beams": Own(_ANSWERS),
}

_METHOD: dict[str, Entry] = {
    "stage": To("loss.type", _stage),
    "finetuning_type": To("method.type", _finetuning),
    "lora_rank": To("method.r"),
    "lora_alpha": To("method.lora_alpha"),
    "lora_dropout": To("method.lora_dropout", values.decimal),
    "lora_target": To("method.target_modules", values.targets),
    "additional_target": To("method.modules_to_save", values.names),
    "use_rslora": To("method.use_rslora"),
    "use_dora": To("method.use_dora"),
    "pissa_init": Read("method.init_lora_weights", "method: {init_lora_weights: pissa_niter_16}"),
    "pissa_iter": Read("method.init_lora_weights", "method: {init_lora_weights: pissa_niter_16}"),
    "pissa_convert": Own("a PiSSA adapter is saved as one that fits the original base"),
    "create_new_adapter": Lacks("merge the old adapter first: `lamina merge`"),
    "loraplus_lr_ratio": To("train.loraplus_lr_ratio", values.decimal),
    "loraplus_lr_embedding": Own("the embeddings have the learning rate of A"),
    "oft_block_size": To("method.oft_block_size"),
    "oft_rank": To("method.r", lambda value: value or Nothing("oft_block_size decides")),
    "oft_target": To("method.target_modules", values.targets),
    "module_dropout": To("method.module_dropout", values.decimal),
    "freeze_trainable_layers": Own("it only matters with finetuning_type freeze"),
    "freeze_trainable_modules": Own("it only matters with finetuning_type freeze"),
    "freeze_extra_modules": Own("it only matters with finetuning_type freeze"),
    "use_llama_pro": Read("method.parameters", "method: {type: full, parameters: ['[^0-9]*[.](4|9|14)[.]']}"),
    "use_galore": Read("train.optim", "train: {optim: galore_adamw}"),
    "galore_layerwise": Read("train.optim", "train: {optim: galore_adamw_layerwise}"),
    "galore_target": Own("the galore optimizers take every matrix"),
    "galore_rank": To("train.galore.rank"),
    "galore_update_interval": To("train.galore.update_proj_gap"),
    "galore_scale": To("train.galore.scale", values.decimal),
    "galore_proj_type": To("train.galore.proj_type"),
    "use_muon": _flag("train.optim", "muon"),
    "use_adam_mini": To("train.optim", _adam_mini),
    "use_apollo": Read("train.optim", "train: {optim: apollo_adamw}"),
    "apollo_layerwise": Read("train.optim", "train: {optim: apollo_adamw_layerwise}"),
    "apollo_target": To("train.optim", _every_matrix),
    "apollo_rank": To("train.apollo.rank"),
    "apollo_update_interval": To("train.apollo.update_proj_gap"),
    "apollo_scale": To("train.apollo.scale", values.decimal),
    "apollo_scale_type": To("train.apollo.scale_type", str),
    "apollo_proj": To("train.apollo.proj", str),
    "apollo_proj_type": Lacks("APOLLO projects the shorter side", ("std",)),
    "apollo_scale_front": Own("the limit is on the growth of an update, which a constant factor does not change"),
    "use_badam": _flag("train.optim", "badam"),
    "badam_mode": Lacks("BAdam trains whole layers, not parts of matrices", ("layer",)),
    "badam_start_block": To("train.badam.start_block"),
    "badam_switch_mode": To("train.badam.switch_mode", str),
    "badam_switch_interval": To("train.badam.switch_interval", _interval),
    **own("it only matters with badam_mode ratio", ("badam_update_ratio", "badam_mask_mode")),
    "badam_verbose": Own("the log has the loss of every step"),
    "use_dft_loss": _flag("loss.type", "dft"),
    "use_asft_loss": _flag("loss.type", "asft"),
    "asft_alpha": To("loss.asft_alpha", values.decimal),
    "use_eaft_loss": To("loss.type", _eaft),
    "eaft_alpha": To("loss.eaft_alpha", values.decimal),
    **own(
        "matrix products run in bfloat16, which is more precise",
        ("fp8", "fp8_backend", "fp8_enable_fsdp_float8_all_gather"),
    ),
    "use_mca": Own("how the work is spread over devices changes no result"),
    "early_stopping_steps": To("train.early_stopping_patience"),
    "compute_accuracy": Own("`lamina eval` measures after training"),
    "plot_loss": Own("metrics.jsonl has the loss of every step"),
    "include_effective_tokens_per_second": Own("the speed is printed and logged"),
}

_LOSS: dict[str, Entry] = {
    "pref_beta": To("loss.beta", values.decimal),
    "pref_loss": To("loss.loss_type", _preference),
    "pref_ftx": Read("loss.loss_weights", "loss: {type: dpo, loss_type: [sigmoid, sft], loss_weights: [1.0, 0.1]}"),
    "pref_bco_weight": Read(
        "loss.loss_weights", "loss: {type: dpo, loss_type: [sigmoid, bco_pair], loss_weights: [1.0, 0.1]}"
    ),
    "dpo_label_smoothing": To("loss.label_smoothing", lambda value: values.decimal(value) or Nothing("it is off")),
    "kto_chosen_weight": To("loss.desirable_weight", values.decimal),
    "kto_rejected_weight": To("loss.undesirable_weight", values.decimal),
    "simpo_gamma": To("loss.simpo_gamma", values.decimal),
    "ref_model": Lacks("the reference is the base with the adapter off, or the adapter of method.from"),
    "ref_model_adapters": Lacks("the reference is the base with the adapter off, or the adapter of method.from"),
    "ld_alpha": Lacks("LD-DPO is not here"),
    "reward_model": Lacks("training on answers that the model generates is not here"),
}

_TRAIN: dict[str, Entry] = {
    **own(
        "how the work is spread over devices changes no result",
        (
            "ray_num_workers",
            "ray_run_name",
            "cp_mode",
            "cp_size",
            "context_parallel_size",
            "tensor_model_parallel_size",
            "pipeline_model_parallel_size",
            "expert_model_parallel_size",
            "sequence_parallel",
            "use_distributed_optimizer",
            "overlap_param_gather",
            "overlap_grad_reduce",
        ),
    ),
    **own(
        _KERNELS,
        (
            "bias_activation_fusion",
            "apply_rope_fusion",
            "moe_grouped_gemm",
            "moe_token_dispatcher_type",
            "recompute_granularity",
            "mixed_precision",
            "use_packed_sequences",
            "export_hf_on_finish",
        ),
    ),
    **own(_TRACKER, ("use_swanlab", "swanlab_project", "swanlab_run_name", "swanlab_mode", "swanlab_api_key")),
    **own(
        _ANSWERS,
        ("max_new_tokens", "temperature", "top_p", "top_k", "do_sample", "num_beams", "repetition_penalty"),
    ),
}

LLAMA_FACTORY: dict[str, Entry] = {
    **TRAINING_ARGUMENTS,
    **BITS_AND_BYTES,
    **_MODEL,
    **_DATA,
    **_METHOD,
    **_LOSS,
    **_TRAIN,
}
