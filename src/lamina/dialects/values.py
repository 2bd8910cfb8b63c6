"""Values that other libraries name differently: optimizers, schedules, methods, losses, dtypes, trackers."""

from __future__ import annotations

from typing import Any

from lamina import plugins
from lamina.dialects.outcome import Convert, Missing, Nothing, Set, chosen

NEAR = "the nearest optimizer that lamina has"

OPTIMIZERS: dict[str, Any] = {
    "adamw": "adamw_torch",
    "adamw_hf": "adamw_torch",
    "adamw_torch": "adamw_torch",
    "adamw_torch_fused": "adamw_torch",
    "adamw_torch_xla": "adamw_torch",
    "adamw_torch_npu_fused": "adamw_torch",
    "adamw_apex_fused": "adamw_torch",
    "adamw_anyprecision": Set({"train.optim": "adamw_torch"}, f"{NEAR}: moments in float32"),
    "adamw_8bit": "adamw_8bit",
    "adamw_bnb_8bit": "adamw_8bit",
    "adamw_torch_8bit": Set({"train.optim": "adamw_8bit"}, f"{NEAR}: 8 bits by bitsandbytes, not torchao"),
    "adamw_torch_4bit": Set({"train.optim": "adamw_8bit"}, f"{NEAR}: moments in 8 bits, not 4"),
    "ao_adamw_8bit": "adamw_8bit",
    "ao_adamw_4bit": Set({"train.optim": "adamw_8bit"}, f"{NEAR}: moments in 8 bits, not 4"),
    "ao_adamw_fp8": Set({"train.optim": "adamw_8bit"}, f"{NEAR}: 8-bit integers, not FP8"),
    "paged_adamw": "paged_adamw_32bit",
    "paged_adamw_32bit": "paged_adamw_32bit",
    "paged_adamw_8bit": "paged_adamw_8bit",
    "adafactor": "adafactor",
    "lion": "lion",
    "lion_32bit": "lion",
    "lion_8bit": Set({"train.optim": "lion"}, f"{NEAR}: momentum in float32"),
    "paged_lion_32bit": "lion",
    "paged_lion_8bit": Set({"train.optim": "lion"}, f"{NEAR}: momentum in float32"),
    "muon": "muon",
    "apollo_adamw": "apollo_adamw",
    "apollo_adamw_layerwise": "apollo_adamw_layerwise",
    "galore_adamw": "galore_adamw",
    "galore_adamw_8bit": "galore_adamw_8bit",
    "galore_adamw_layerwise": "galore_adamw_layerwise",
    "galore_adamw_8bit_layerwise": "galore_adamw_8bit_layerwise",
}

SCHEDULES: dict[str, Any] = {
    name: name
    for name in (
        "cosine",
        "linear",
        "constant",
        "constant_with_warmup",
        "polynomial",
        "inverse_sqrt",
        "cosine_with_restarts",
        "cosine_with_min_lr",
        "warmup_stable_decay",
    )
}

_FOUR_BITS = {"quantization.bits": 4}
_GALORE = Set({"method.type": "full", "train.optim": "galore_adamw"}, "GaLore is an optimizer that trains all weights")
_BOTTLENECK = {"method.type": "bottleneck"}

METHODS: dict[str, Any] = {
    "lora": "lora",
    "qlora": Set({"method.type": "lora", **_FOUR_BITS}),
    "dora": "dora",
    "qdora": Set({"method.type": "dora", **_FOUR_BITS}),
    "lora+": Set({"method.type": "lora", "train.loraplus_lr_ratio": 16.0}),
    "loraplus": Set({"method.type": "lora", "train.loraplus_lr_ratio": 16.0}),
    "rslora": Set({"method.type": "lora", "method.use_rslora": True}),
    "pissa": Set({"method.type": "lora", "method.init_lora_weights": "pissa"}),
    "olora": Set({"method.type": "lora", "method.init_lora_weights": "olora"}),
    "eva": Set({"method.type": "lora", "method.init_lora_weights": "eva"}),
    "loftq": Set({"method.type": "lora", "method.init_lora_weights": "loftq", **_FOUR_BITS}),
    "lora_fa": Set({"method.type": "lora", "method.lora_fa": True}),
    "lora-fa": Set({"method.type": "lora", "method.lora_fa": True}),
    "adapter": Set(_BOTTLENECK),
    "adapters": Set(_BOTTLENECK),
    "bottleneck_adapter": Set(_BOTTLENECK),
    "houlsby": Set({**_BOTTLENECK, "method.variant": "houlsby"}),
    "pfeiffer": Set({**_BOTTLENECK, "method.variant": "pfeiffer"}),
    "prefix": "prefix_tuning",
    "prefix-tuning": "prefix_tuning",
    "prompt-tuning": "prompt_tuning",
    "p-tuning": "p_tuning",
    "ptuning": "p_tuning",
    "(ia)3": "ia3",
    "full": "full",
    "full_finetune": "full",
    "full-finetuning": "full",
    "none": "full",
    "oft": Set({"method.type": "peft", "method.peft_type": "OFT"}),
    "boft": Set({"method.type": "peft", "method.peft_type": "BOFT"}),
    "galore": _GALORE,
    "freeze": Missing(
        "name the layers: `method: {type: full, parameters: ['[^0-9]*[.](30|31)[.]']}`; for an adapter on them: "
        "`method: {type: lora, layers_to_transform: [30, 31]}`"
    ),
    "bitfit": "bitfit",
}
"""Names of methods: what `method.type` is for them."""


def unless(value: Any, reason: str) -> Convert:
    """Returns a conversion that sets nothing for one value, and keeps all others."""
    return lambda given: Nothing(reason) if given == value else given


def number(value: Any) -> Any:
    """Returns a whole number as an int, as lamina's strict configuration wants it."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def decimal(value: Any) -> Any:
    """Returns an int, or a text such as `2e-5` (which YAML 1.1 reads as text), as a float."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def names(value: Any) -> Any:
    """Returns `a,b` as a list of names; a list or a set as a list."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return sorted(value) if isinstance(value, set | frozenset) else list(value) if isinstance(value, tuple) else value


def targets(value: Any) -> Any:
    """Returns target modules: `all` is `all-linear`, and `q_proj,v_proj` a list."""
    if value in ("all", "all-linear", ["all"], ["all-linear"], "all_linear"):
        return "all-linear"
    if isinstance(value, str) and "," in value and not set(value) & set("()[]*\\^$|"):
        return names(value)
    if isinstance(value, str) and not set(value) & set("()[]*\\^$|.+?"):
        return [value]
    return names(value) if not isinstance(value, str) else value


def dtype(value: Any) -> Any:
    """Returns a torch dtype, or its name, as `dtype:` has it."""
    name = str(value).removeprefix("torch.").lower()
    if name in ("auto", "bfloat16", "bf16", "none"):
        return Nothing("lamina takes bfloat16 where the hardware multiplies it natively, and float32 elsewhere")
    if name in ("float32", "fp32"):
        return Set({"dtype": "float32"})
    if name in ("float16", "fp16", "half"):
        return Nothing("lamina takes float16 on GPUs without bfloat16; `dtype: float16` forces it")
    return Missing(f"the dtype {name!r} is none that lamina computes in; leave it out, or set dtype")


_NO_TRACKERS = ("none", "all", "null", "")


def trackers(value: Any) -> Any:
    """Returns the trackers as a list of those that lamina reports to."""
    given = [str(each).lower() for each in names(value)] if value else []
    wanted = [each for each in given if each not in _NO_TRACKERS]
    if not wanted:
        return Nothing("it is off")
    known = [each for each in wanted if each in plugins.members("trackers")]
    others = [each for each in wanted if each not in known]
    note = f"without {', '.join(others)}, which lamina does not report to" if others else ""
    if not known:
        return Nothing(f"lamina does not report to {', '.join(others)}; a plug-in can (docs/trackers.md)")
    return Set({"train.report_to": known}, note)


SEVERAL_GPUS = (
    "lamina places the base on one device. One that is larger than a GPU is divided over several with "
    "`lamina train CONFIG --nproc auto` (distributed.strategy: fsdp); on CPUs under Linux, its layers stay on disk "
    "(`offload`)"
)


def device_map(value: Any) -> Any:
    """Returns `device` for a map to one device; the base is not spread over several of them by a map."""
    if isinstance(value, str) and value in ("auto", "balanced", "balanced_low_0", "sequential", "none", ""):
        return Nothing(SEVERAL_GPUS)
    places = {_device(place) for place in value.values()} if isinstance(value, dict) else {_device(value)}
    return Set({"device": places.pop()}) if len(places) == 1 else Missing(SEVERAL_GPUS)


def _device(place: Any) -> str:
    if isinstance(place, int):
        return f"cuda:{place}"
    return f"cuda:{place}" if str(place).isdigit() else str(place)


def revision(value: Any) -> Any:
    """Returns a revision of a model on the hub; the main branch is the default."""
    return Nothing("the main branch is the default") if value == "main" else str(value)


def warmup(value: Any) -> Any:
    """Returns `warmup_steps`: from transformers 5 on, a number below 1 is a share of the steps."""
    value = decimal(value)
    if isinstance(value, float) and 0.0 < value < 1.0:
        return Set({"train.warmup_ratio": value})
    return Set({"train.warmup_steps": number(value)}) if value else Nothing("no warmup is the default")


optimizer = chosen(OPTIMIZERS, "train.optim", "lamina has no optimizer {!r}; `adamw_torch` is its default")
schedule = chosen(SCHEDULES, "train.lr_scheduler_type", "lamina has no schedule {!r}; `cosine` is its default")
method = chosen(METHODS, "method.type", "lamina has no method {!r}; see `lamina methods`")
