"""TRL: `SFTConfig`, `DPOConfig` and their like, `ModelConfig` and `ScriptArguments` of its command line."""

from __future__ import annotations

from typing import Any

from lamina.dialects import values
from lamina.dialects.outcome import Entry, Lacks, Missing, Nothing, Own, Read, Set, To
from lamina.dialects.peft import BITS_AND_BYTES
from lamina.dialects.training_arguments import TRAINING_ARGUMENTS, own

_RENDERING = "lamina renders and tokenizes rows by itself, in as few passes as their number needs"
NO_REMOTE_CODE = (
    "transformers knows the usual models without it; if one needs it, write `trust_remote_code: true` yourself"
)
_REFERENCE = "the reference is the base with the adapter off, computed once before training"


def _assistant_only(value: Any) -> Any:
    return Set({"data.train_on": "assistant" if value else "all"})


def _completion_only(value: Any) -> Any:
    return Set({"data.train_on": "completions" if value else "all"})


def _packing_strategy(value: Any) -> Any:
    name = str(value).lower()
    note = "" if name == "bfd" else f"best fit in place of {name}; rows are cut only where they are longer than a batch"
    return (
        Set({"data.packing_strategy": "wrapped"}) if name == "wrapped" else Set({"data.packing_strategy": "bfd"}, note)
    )


def _truncation(value: Any) -> Any:
    if str(value) == "keep_start":
        return Set({"data.overlong": "cut"})
    return Missing("rows that are too long lose their end (`data.overlong: cut`), or are left out (`drop`)")


def _attention(value: Any) -> Any:
    return Nothing("lamina has its own attention, which keeps packed rows apart")


def _text_field(value: Any) -> Any:
    return Nothing("`text` is the default") if value == "text" else Set({"data.columns": {"text": value}})


def _sft_loss(value: Any) -> Any:
    name = str(value[0] if isinstance(value, list) and len(value) == 1 else value).lower()
    if name in ("nll", "chunked_nll"):
        return Nothing("cross entropy is the default")
    if name == "dft":
        return Set({"loss.type": "dft"})
    return Missing(f"the loss {name!r} is not here; `loss: {{type: cross_entropy}}` is the default")


DATA: dict[str, Entry] = {
    "dataset_name": Read("data.train", "data: {train: NAME}"),
    "dataset_config": Read("data.train", "data: {train: NAME/CONFIGURATION}"),
    "dataset_train_split": Read("data.train", "data: {train: NAME:SPLIT}"),
    "dataset_test_split": Read("data.eval", "data: {eval: NAME:SPLIT}"),
    "dataset_mixture": Read("data.train", "data: {train: [{path: NAME, weight: 1.0}]}"),
    "dataset_mixer": Read("data.train", "data: {train: [{path: NAME, weight: 1.0}]}"),
    "dataset_splits": Read("data.train", "data: {train: NAME:SPLIT}"),
    "dataset_configs": Read("data.train", "data: {train: NAME/CONFIGURATION}"),
    "dataset_streaming": Own("files are always streamed, and encoded rows kept in a cache"),
    "ignore_bias_buffers": Own("it is a workaround for DDP"),
}

_MODEL: dict[str, Entry] = {
    "model_name_or_path": To("model", str),
    "model_revision": To("revision", values.revision),
    "dtype": To("dtype", values.dtype),
    "torch_dtype": To("dtype", values.dtype),
    "attn_implementation": To("model", _attention),
    "trust_remote_code": Own(NO_REMOTE_CODE),
    "model_init_kwargs": Lacks("set dtype, quantization and offload in the configuration"),
    "use_peft": Read("method.type", "method: {type: lora}"),
    "lora_r": To("method.r"),
    "lora_alpha": To("method.lora_alpha"),
    "lora_dropout": To("method.lora_dropout", values.decimal),
    "lora_target_modules": To("method.target_modules", values.targets),
    "lora_target_parameters": To("method.target_parameters", values.names),
    "lora_modules_to_save": To("method.modules_to_save", values.names),
    "lora_task_type": Own("lamina trains causal language models"),
    "use_rslora": To("method.use_rslora"),
    "use_dora": To("method.use_dora"),
    **BITS_AND_BYTES,
}

_SFT: dict[str, Entry] = {
    "max_length": To("data.max_length", lambda value: value or Nothing("the default is 1024")),
    "max_seq_length": To("data.max_length"),
    "packing": To("data.packing"),
    "eval_packing": Own("evaluation packs rows whenever the model allows it, with the same loss"),
    "packing_strategy": To("data.packing_strategy", _packing_strategy),
    "padding_free": Own("`data.packing: true` is free of padding"),
    "pad_to_multiple_of": Own("packed rows need no padding"),
    "dataset_text_field": To("data.columns", _text_field),
    "dataset_kwargs": Own(_RENDERING),
    "dataset_num_proc": Own(_RENDERING),
    "dataset_batch_size": Own(_RENDERING),
    "num_of_sequences": Own(_RENDERING),
    "chars_per_token": Own(_RENDERING),
    "shuffle_dataset": Own("rows are shuffled by seed and epoch"),
    "completion_only_loss": To("data.train_on", _completion_only),
    "assistant_only_loss": To("data.train_on", _assistant_only),
    "truncation_mode": To("data.overlong", _truncation),
    "chat_template_path": To("data.chat_template", str),
    "chat_template": To("data.chat_template", str),
    "eos_token": Own("an answer's stop token is the one that the chat template writes"),
    "pad_token": Own("packed rows need no padding"),
    "activation_offloading": Own("`gradient_checkpointing` recomputes activations where they would not fit"),
    "loss_type": To("loss", _sft_loss),
    "router_aux_loss_coef": Lacks("a router's balance loss is not part of the loss here"),
    "use_liger": Own("lamina's own kernels do the same"),
    **own(
        "how the work is spread over devices changes no result; lamina chooses it, or the launcher does",
        ("accelerate_config", "num_machines", "machine_rank", "main_process_ip", "main_process_port"),
    ),
    "formatting_func": Own("`data.columns` fills a field from a Jinja template over the row"),
}

SFT: dict[str, Entry] = {**TRAINING_ARGUMENTS, **_MODEL, **DATA, **_SFT}


def _dpo_loss(value: Any) -> Any:
    given = value if isinstance(value, list) else [value]
    known = ("sigmoid", "hinge", "ipo", "robust", "apo_zero", "apo_down", "sigmoid_norm", "bco_pair", "sft")
    others = [name for name in given if name not in known]
    if others:
        return Missing(f"DPO's {', '.join(map(repr, others))} is not here; there are {', '.join(known)}")
    return Set({"loss.loss_type": given})


_PREFERENCE: dict[str, Entry] = {
    "beta": To("loss.beta", values.decimal),
    "label_smoothing": To("loss.label_smoothing", values.decimal),
    "loss_weights": To("loss.loss_weights"),
    "max_prompt_length": Own("`data.max_length` bounds prompt and answer together"),
    "max_completion_length": Own("`data.max_length` bounds prompt and answer together"),
    "max_target_length": Own("`data.max_length` bounds prompt and answer together"),
    "disable_dropout": Own("set method.lora_dropout to 0"),
    "is_encoder_decoder": Lacks("lamina trains causal language models"),
    "generate_during_eval": Own("`lamina eval` asks for answers after training"),
    "ref_model": Own(_REFERENCE),
    **own(
        _REFERENCE,
        (
            "precompute_ref_log_probs",
            "precompute_ref_batch_size",
            "ref_model_init_kwargs",
            "model_adapter_name",
            "ref_adapter_name",
            "force_use_ref_model",
            "ref_model_mixup_alpha",
            "ref_model_sync_steps",
            "rpo_alpha",
        ),
    ),
    "sync_ref_model": Lacks("the reference stays fixed"),
    "reference_free": Lacks("for a loss without reference: `loss: {type: simpo}`, cpo or orpo"),
    "use_weighting": Lacks("WPO's weights are not here"),
    "ld_alpha": Lacks("LD-DPO is not here"),
    "f_divergence_type": Lacks("the divergence is the reverse KL", ("reverse_kl", "FDivergenceType.REVERSE_KL")),
    "f_alpha_divergence_coef": Own("it only matters with another divergence"),
    "discopop_tau": Own("it only matters with loss_type discopop"),
    "desirable_weight": To("loss.desirable_weight", values.decimal),
    "undesirable_weight": To("loss.undesirable_weight", values.decimal),
    "cpo_alpha": To("loss.cpo_alpha", values.decimal),
    "simpo_gamma": To("loss.simpo_gamma", values.decimal),
    "center_rewards_coefficient": To("loss.center_rewards_coefficient", values.decimal),
}

PREFERENCE: dict[str, Entry] = {**SFT, **_PREFERENCE}
DPO: dict[str, Entry] = {**PREFERENCE, "loss_type": To("loss.loss_type", _dpo_loss)}
KTO: dict[str, Entry] = {**PREFERENCE, "loss_type": To("loss.loss_type", str)}
CPO: dict[str, Entry] = {**PREFERENCE, "loss_type": To("loss.loss_type", str)}
