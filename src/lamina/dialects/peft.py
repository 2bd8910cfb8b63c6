"""peft's `LoraConfig` and bitsandbytes' `BitsAndBytesConfig`."""

from __future__ import annotations

from typing import Any

from lamina.dialects import values
from lamina.dialects.outcome import Entry, Lacks, Missing, Nothing, Own, Set, To

_BY_PEFT = "peft's own LoRA does it: `method: {type: peft, peft_type: LORA}`, with peft's fields"


def _task(value: Any) -> Any:
    name = str(getattr(value, "value", value)).upper().removeprefix("TASKTYPE.")
    if name == "CAUSAL_LM":
        return Nothing("lamina trains causal language models")
    if name == "SEQ_CLS":
        return Set({"loss.type": "classification"}, "for a reward model: reward")
    return Missing("lamina trains causal language models")


def _peft_type(value: Any) -> Any:
    name = str(getattr(value, "value", value)).upper().removeprefix("PEFTTYPE.")
    if name.lower() in ("lora", "adalora", "ia3", "loha", "lokr", "vera", "ln_tuning"):
        return Set({"method.type": name.lower()})
    return Set({"method.type": "peft", "method.peft_type": name})


def _init(value: Any) -> Any:
    if isinstance(value, str) and value.lower() in ("corda", "lora_ga", "mica"):
        return Missing(f"the initialization {value!r} is peft's: {_BY_PEFT}")
    return value


def _loftq(value: Any) -> Any:
    if not value:
        return Nothing("it is empty")
    iterations = value.get("loftq_iter", 1) if isinstance(value, dict) else getattr(value, "loftq_iter", 1)
    bits = value.get("loftq_bits", 4) if isinstance(value, dict) else getattr(value, "loftq_bits", 4)
    if bits not in (4, 8):
        return Missing(f"LoftQ in {bits} bits; lamina has it for 4")
    return Set(
        {
            "method.init_lora_weights": "loftq",
            "method.loftq_config": {"loftq_iter": iterations},
            "quantization.bits": 4,
        }
    )


LORA_CONFIG: dict[str, Entry] = {
    "peft_type": To("method.type", _peft_type),
    "task_type": To("method.type", _task),
    "r": To("method.r"),
    "lora_alpha": To("method.lora_alpha"),
    "lora_dropout": To("method.lora_dropout", values.decimal),
    "target_modules": To("method.target_modules", values.targets),
    "target_parameters": To("method.target_parameters", values.names),
    "exclude_modules": To("method.exclude_modules", values.names),
    "bias": To("method.bias"),
    "use_rslora": To("method.use_rslora"),
    "use_dora": To("method.use_dora"),
    "modules_to_save": To("method.modules_to_save", values.names),
    "init_lora_weights": To("method.init_lora_weights", _init),
    "layers_to_transform": To("method.layers_to_transform"),
    "layers_pattern": To("method.layers_pattern"),
    "rank_pattern": To("method.rank_pattern"),
    "alpha_pattern": To("method.alpha_pattern"),
    "loftq_config": To("method.loftq_config", _loftq),
    "eva_config": To("method.eva_config"),
    "fan_in_fan_out": Own("lamina sees how a layer stores its weight"),
    "inference_mode": Own("training trains, and loading does not"),
    "auto_mapping": Own("the base model's class is known"),
    "base_model_name_or_path": To("model", str),
    "revision": To("revision", values.revision),
    "peft_version": Own("it records which peft wrote the file"),
    "megatron_config": Lacks("Megatron's layers are not here"),
    "megatron_core": Own("it only matters with megatron_config"),
    "runtime_config": Own("lamina chooses how its layers run"),
    "qalora_group_size": Own("it only matters with use_qalora"),
    **dict.fromkeys(
        (
            "trainable_token_indices",
            "layer_replication",
            "corda_config",
            "lora_ga_config",
            "velora_config",
            "alora_invocation_tokens",
            "use_qalora",
            "monteclora_config",
            "lora_bias",
            "use_bdlora",
            "arrow_config",
            "kasa_config",
            "ensure_weight_tying",
        ),
        Lacks(_BY_PEFT),
    ),
}


def _bits(bits: int) -> Any:
    return lambda value: Set({"quantization.bits": bits}) if value else Nothing("it is off")


def _compute_dtype(value: Any) -> Any:
    name = str(value).removeprefix("torch.").lower()
    if name == "float32":
        return Set({"quantization.compute_dtype": "float32"})
    return Nothing("lamina multiplies in bfloat16 where the hardware does so natively, and in float32 elsewhere")


BITS_AND_BYTES: dict[str, Entry] = {
    "load_in_4bit": To("quantization.bits", _bits(4)),
    "load_in_8bit": To("quantization.bits", _bits(8)),
    "bnb_4bit_quant_type": To("quantization.quant_type", str),
    "bnb_4bit_use_double_quant": To("quantization.double_quant"),
    "use_bnb_nested_quant": To("quantization.double_quant"),
    "bnb_4bit_compute_dtype": To("quantization.compute_dtype", _compute_dtype),
    "bnb_4bit_quant_storage": Own("it packs weights for FSDP; lamina stores bytes"),
    "bnb_4bit_blocksize": To("quantization.blocksize"),
    "llm_int8_skip_modules": To("quantization.modules_to_not_convert", values.names),
    "llm_int8_threshold": Own("8 bits are LLM.int8's weights; activations stay in 16 or 32 bits, outliers with them"),
    "llm_int8_enable_fp32_cpu_offload": Own("`offload` leaves layers on disk if the base does not fit in memory"),
    "llm_int8_has_fp16_weight": Lacks("8-bit weights are frozen"),
    "quant_method": Own("lamina quantizes by itself; a base that is stored quantized says so in its own files"),
    "device_map": To("device", lambda value: values.device_map(value or "auto")),
}
