"""Settles what a translation leaves open: settings that have no effect together are errors in lamina, and defaults
that others rely on are written out."""

from __future__ import annotations

from lamina.config.losses import LOSS_CONFIGS
from lamina.config.methods import METHOD_CONFIGS
from lamina.config.optimizers import OPTIMIZERS, SPECIAL_SETTINGS
from lamina.migration.draft import Draft

_SCHEDULES_WITHOUT_WARMUP = ("constant",)


def settle(draft: Draft) -> None:
    """Removes values that have no effect beside others, with the reason in their rows."""
    _length(draft)
    _quantization(draft)
    _method(draft)
    _loss(draft)
    _optimizer(draft)
    _evaluation(draft)
    values = draft.values
    if values.get("train.lr_scheduler_type") in _SCHEDULES_WITHOUT_WARMUP:
        for key in ("train.warmup_ratio", "train.warmup_steps"):
            draft.drop(key, "the schedule `constant` has no warmup, there as here")
    if values.get("data.chat") is False:
        for name in ("chat_template", "chat_template_kwargs", "enable_thinking", "thinking"):
            draft.drop(f"data.{name}", "texts are taken as they are, without a template")
    if values.get("data.packing") and values.get("data.group_by_length"):
        draft.drop("data.group_by_length", "it has no effect with packing")
    if not values.get("data.packing", True):
        draft.drop("data.packing_strategy", "it has no effect without packing")


def _length(draft: Draft) -> None:
    if "train.max_steps" in draft.values:
        draft.drop("train.num_train_epochs", "max_steps decides")
    if draft.values.get("train.warmup_steps"):
        draft.drop("train.warmup_ratio", "warmup_steps decides")


def _quantization(draft: Draft) -> None:
    bits = draft.values.get("quantization.bits")
    if bits is None:
        draft.drop_section("quantization", "the base is not quantized")
    elif bits == 8:
        for key in ("quant_type", "double_quant", "blocksize"):
            draft.drop(f"quantization.{key}", "it applies to 4 bits only")


def _method(draft: Draft) -> None:
    name = draft.values.get("method.type", "lora")
    config = METHOD_CONFIGS.get(name)
    if config is None:
        return
    if draft.values.get("method.from") is not None:
        for key in [key for key in draft.values if key.startswith("method.")]:
            if key not in ("method.type", "method.from", "method.lora_dropout"):
                draft.drop(key, "the settings are those of the adapter that training starts from")
    for key in [key for key in draft.values if key.startswith("method.")]:
        if not config.takes(key.removeprefix("method.").partition(".")[0]):
            draft.drop(key, f"the method {name!r} has no such setting")
    if not config.base_is_read_only and "quantization.bits" in draft.values and name == "full":
        draft.missing("quantization", draft.values["quantization.bits"], "a quantized base is frozen; use an adapter")


def _loss(draft: Draft) -> None:
    name = draft.values.get("loss.type", "cross_entropy")
    config = LOSS_CONFIGS.get(name)
    if config is None:
        return
    for key in [key for key in draft.values if key.startswith("loss.")]:
        if key.removeprefix("loss.") not in config.model_fields:
            draft.drop(key, f"the loss {name!r} has no such setting")
    if config.whole_rows:
        if draft.values.get("data.overlong") == "cut":
            draft.drop("data.overlong", f"the loss {name!r} needs whole answers; rows that are too long are dropped")
        if draft.values.get("data.train_on") in ("all", "marked"):
            draft.drop("data.train_on", f"the loss {name!r} compares answers alone")


def _optimizer(draft: Draft) -> None:
    facts = OPTIMIZERS.get(draft.values.get("train.optim", "adamw_torch"))
    if facts is None:
        return
    for name in SPECIAL_SETTINGS:
        if name not in facts.reads:
            draft.drop(f"train.{name}", "the optimizer does not read it")
            for key in [key for key in draft.values if key.startswith(f"train.{name}.")]:
                draft.drop(key, "the optimizer does not read it")
    if facts.layerwise and draft.values.get("train.max_grad_norm") != 0.0:
        draft.set("max_grad_norm", None, {"train.max_grad_norm": 0.0}, "a layerwise optimizer cannot clip", "default")


def _evaluation(draft: Draft) -> None:
    if draft.values.get("data.eval", None) is not None:
        draft.default({"train.load_best_model_at_end": False}, "lamina would keep the best adapter, not the last")
        return
    for key in ("eval_steps", "early_stopping_patience", "load_best_model_at_end"):
        draft.drop(f"train.{key}", "there is no evaluation data")
    if "data.eval" not in draft.values:
        note = "no evaluation data is named; `data: {eval: 0.1}` splits some off"
        draft.set("eval", None, {"data.eval": None}, note, "default")
