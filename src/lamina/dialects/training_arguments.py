"""transformers' `TrainingArguments`, which TRL's and LLaMA-Factory's configurations have too."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lamina.dialects import values
from lamina.dialects.outcome import Entry, Lacks, Missing, Nothing, Own, Set, To

_SPREAD = "how the work is spread over devices changes no result; lamina chooses it, or the launcher does"
_LOADER = "rows are encoded once, and read from a cache without worker processes"
_PUSH = "nothing is pushed while training; `lamina registry push` uploads a finished adapter"
_LOG = "lamina's own log has every step (metrics.jsonl)"
_MEMORY = "lamina plans the memory of a step before it starts"
_EVALUATION = "evaluation measures the loss over the supervised tokens"


def own(reason: str, names: Iterable[str]) -> dict[str, Entry]:
    """Returns an entry with the same reason for each name."""
    return dict.fromkeys(names, Own(reason))


def steps(key: str) -> To:
    """Returns the entry of a number of steps, or of a share of them (below 1)."""
    return To(key, lambda value: values.number(value))


def _max_steps(value: Any) -> Any:
    return value if value > 0 else Nothing("num_train_epochs decides")


def _checkpointing(value: Any) -> Any:
    if value in (True, "true", "True"):
        return Set({"train.gradient_checkpointing": True})
    if value in (False, "false", "False"):
        return Set({"train.gradient_checkpointing": False})
    return Missing("it is true, false, auto or selective")


def _eval_strategy(value: Any) -> Any:
    name = str(getattr(value, "value", value)).lower()
    if name in ("no", "false"):
        return Set({"data.eval": None}, "no evaluation")
    return Nothing("lamina evaluates at the end of every epoch, or every `eval_steps`")


def _save_strategy(value: Any) -> Any:
    name = str(getattr(value, "value", value)).lower()
    if name == "no":
        return Nothing("a checkpoint every `save_steps` makes a run resumable; save_total_limit removes old ones")
    return Nothing("lamina saves every `save_steps`, at the end, and the best one")


def _compile(value: Any) -> Any:
    return Set({"train.compile": True}) if value else Nothing("`compile: auto` takes lamina's own kernels on a CPU")


def _sampling(value: Any) -> Any:
    name = str(getattr(value, "value", value)).lower()
    if name == "group_by_length":
        return Set({"data.group_by_length": True, "data.packing": False})
    return Nothing("the order is random, by seed and epoch") if name == "random" else Missing("the order is random")


def _group_by_length(value: Any) -> Any:
    return Set({"data.group_by_length": True, "data.packing": False}) if value else Nothing("it is off")


def _label_smoothing(value: Any) -> Any:
    return Nothing("it is off") if not value else Missing("cross entropy has no label smoothing here")


def _cpu(value: Any) -> Any:
    return "cpu" if value else Nothing("lamina takes the first GPU, if there is one")


def _processes(value: Any) -> Any:
    return Nothing(
        f"the batch there is {value} times as large: start as many processes here, or multiply "
        f"gradient_accumulation_steps by {value}"
    )


TRAINING_ARGUMENTS: dict[str, Entry] = {
    "output_dir": To("output_dir", str),
    "overwrite_output_dir": Own("a run never writes over another one; give another output_dir, or remove the old"),
    "do_train": Own("`lamina train` trains"),
    "do_eval": Own("lamina evaluates if `data.eval` is set"),
    "do_predict": Lacks("answers are written by `lamina eval --predictions` or `lamina generate` after training"),
    "seed": To("seed", values.number),
    "data_seed": Own("`seed` is the seed of everything"),
    "full_determinism": Own("a run is deterministic for its seed and number of threads"),
    # Length and batch.
    "num_train_epochs": To("train.num_train_epochs", values.decimal),
    "max_steps": To("train.max_steps", _max_steps),
    "per_device_train_batch_size": To("train.per_device_train_batch_size"),
    "per_gpu_train_batch_size": To("train.per_device_train_batch_size"),
    "train_batch_size": To("train.per_device_train_batch_size"),
    "batch_size": To("train.per_device_train_batch_size"),
    "gradient_accumulation_steps": To("train.gradient_accumulation_steps"),
    "auto_find_batch_size": Own(f"{_MEMORY}; lower per_device_train_batch_size if it says so"),
    "average_tokens_across_devices": Own("the loss is divided by the supervised tokens of the whole step"),
    # Optimizer and schedule.
    "learning_rate": To("train.learning_rate", values.decimal),
    "lr_scheduler_type": To("train.lr_scheduler_type", values.schedule),
    "lr_scheduler_kwargs": To("train.lr_scheduler_kwargs", lambda value: value or Nothing("it is empty")),
    "warmup_ratio": To("train.warmup_ratio", values.decimal),
    "warmup_steps": To("train.warmup_steps", values.warmup),
    "optim": To("train.optim", values.optimizer),
    "optim_args": Lacks("set the optimizer's own keys, such as `train.galore` or `train.apollo`"),
    "optim_target_modules": Own("the galore and apollo optimizers take every matrix of `method: {type: full}`"),
    "weight_decay": To("train.weight_decay", values.decimal),
    "adam_beta1": To("train.adam_beta1", values.decimal),
    "adam_beta2": To("train.adam_beta2", values.decimal),
    "adam_epsilon": To("train.adam_epsilon", values.decimal),
    "adafactor": To("train.optim", lambda value: "adafactor" if value else Nothing("it is off")),
    "max_grad_norm": To("train.max_grad_norm", values.decimal),
    "label_smoothing_factor": To("loss", _label_smoothing),
    "neftune_noise_alpha": Lacks("NEFTune's noise on embeddings is not here"),
    # Precision, memory and speed.
    **own(
        "lamina takes bfloat16 where the hardware multiplies it natively; `dtype: float32` forces float32",
        (
            "bf16",
            "fp16",
            "bf16_full_eval",
            "fp16_full_eval",
            "half_precision_backend",
            "fp16_opt_level",
            "fp16_backend",
        ),
    ),
    "tf32": Own("matrix products run in the base model's dtype"),
    "gradient_checkpointing": To("train.gradient_checkpointing", _checkpointing),
    "gradient_checkpointing_kwargs": Own("lamina recomputes with its own layers"),
    "activation_checkpointing": To("train.gradient_checkpointing", _checkpointing),
    "activation_checkpointing_kwargs": Own("lamina recomputes with its own layers"),
    "torch_compile": To("train.compile", _compile),
    **own("`train.compile` decides alone", ("torch_compile_backend", "torch_compile_mode", "jit_mode_eval")),
    **own("lamina's own kernels do the same", ("use_liger_kernel", "liger_kernel_config", "use_ipex")),
    "torch_empty_cache_steps": Own(_MEMORY),
    "use_cache": Own("training keeps no keys and values; generation does"),
    "use_cpu": To("device", _cpu),
    "no_cuda": To("device", _cpu),
    "use_mps_device": To("device", lambda value: "mps" if value else Nothing("it is off")),
    # Logging and trackers.
    "logging_steps": To("train.logging_steps", lambda value: max(1, int(value)) if value >= 1 else 1),
    "report_to": To("train.report_to", values.trackers),
    **own(
        _LOG,
        (
            "logging_strategy",
            "logging_first_step",
            "logging_dir",
            "log_on_each_node",
            "logging_nan_inf_filter",
            "include_num_input_tokens_seen",
            "include_tokens_per_second",
            "log_level",
            "log_level_replica",
            "disable_tqdm",
            "run_name",
            "project",
            "trackio_space_id",
            "trackio_bucket_id",
            "trackio_static_space_id",
            "skip_memory_metrics",
        ),
    ),
    # Evaluation.
    "eval_strategy": To("data.eval", _eval_strategy),
    "evaluation_strategy": To("data.eval", _eval_strategy),
    "eval_steps": steps("train.eval_steps"),
    "eval_on_start": Own("the bare base is always evaluated before the first step"),
    "eval_delay": Own("lamina evaluates from the start"),
    "per_device_eval_batch_size": To("train.per_device_eval_batch_size"),
    "load_best_model_at_end": To("train.load_best_model_at_end"),
    **own("the best model is the one with the lowest evaluation loss", ("metric_for_best_model", "greater_is_better")),
    **own(
        _EVALUATION,
        (
            "prediction_loss_only",
            "eval_do_concat_batches",
            "eval_use_gather_object",
            "eval_accumulation_steps",
            "include_for_metrics",
            "include_inputs_for_metrics",
            "batch_eval_metrics",
            "label_names",
            "predict_with_generate",
        ),
    ),
    # Checkpoints.
    "save_strategy": To("train.save_steps", _save_strategy),
    "save_steps": steps("train.save_steps"),
    "save_total_limit": To("train.save_total_limit"),
    **own(
        "a checkpoint holds the adapter and everything that an exact resume needs, as safetensors",
        ("save_only_model", "save_on_each_node", "save_safetensors", "enable_jit_checkpoint"),
    ),
    **own("`lamina train CONFIG --resume` goes on with a run, exactly", ("resume_from_checkpoint", "ignore_data_skip")),
    "restore_callback_states_from_checkpoint": Own("lamina has events in place of callbacks"),
    # The hub.
    **own(
        _PUSH,
        (
            "push_to_hub",
            "hub_token",
            "hub_private_repo",
            "hub_model_id",
            "hub_strategy",
            "hub_always_push",
            "hub_revision",
            "hub_model_revision",
        ),
    ),
    # Data loading.
    **own(
        _LOADER,
        (
            "dataloader_num_workers",
            "dataloader_pin_memory",
            "dataloader_persistent_workers",
            "dataloader_prefetch_factor",
            "dataloader_multiprocessing_context",
            "dataloader_in_order",
            "length_column_name",
        ),
    ),
    "dataloader_drop_last": Own("every row is seen; the last batch of an epoch may be smaller"),
    "remove_unused_columns": Own("columns that the format does not read are left out"),
    "train_sampling_strategy": To("data.group_by_length", _sampling),
    "group_by_length": To("data.group_by_length", _group_by_length),
    # Several devices.
    "num_processes": To("train.gradient_accumulation_steps", _processes),
    **own(
        _SPREAD,
        (
            "accelerator_config",
            "parallelism_config",
            "ddp_find_unused_parameters",
            "ddp_bucket_cap_mb",
            "ddp_broadcast_buffers",
            "ddp_static_graph",
            "ddp_backend",
            "ddp_timeout",
            "fsdp",
            "fsdp_config",
            "fsdp_min_num_params",
            "fsdp_transformer_layer_cls_to_wrap",
            "deepspeed",
            "local_rank",
            "tpu_num_cores",
        ),
    ),
    "debug": Own("`lamina doctor` and `lamina verify` look for faults"),
}
