"""Axolotl: reads its lists of data sets and its adapter settings; the rest is in `dialects/axolotl.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from lamina.dialects.axolotl import AXOLOTL
from lamina.dialects.outcome import Set
from lamina.dialects.templates import built_in
from lamina.dialects.values import METHODS, decimal
from lamina.migration.axolotl_data import Unreadable, read_source
from lamina.migration.draft import Draft
from lamina.migration.settle import settle
from lamina.migration.sources import NO_DATA, evaluation_sets, simplified

_DEFAULTS = {
    "train.per_device_train_batch_size": 1,
    "train.num_train_epochs": 1.0,
    "data.max_length": 512,
    "data.packing": False,
    "seed": 42,
}


def read(draft: Draft, words: Sequence[str]) -> None:
    """Fills in a draft from Axolotl's settings."""
    _adapter(draft)
    _data(draft)
    _batch(draft)
    _schedule(draft)
    draft.look_up(AXOLOTL, ("base_model", "rl", "reward_model"))
    _shares_of_the_run(draft)
    if "train.warmup_ratio" not in draft.values and "train.warmup_steps" not in draft.values:
        draft.default({"train.warmup_ratio": 0.03}, "the default there, up to 100 steps")
    draft.default(_DEFAULTS)
    settle(draft)


def _adapter(draft: Draft) -> None:
    adapter = draft.take("adapter")
    full = draft.take("full_finetune")
    target_linear = draft.take("lora_target_linear")
    unfrozen = draft.take("unfrozen_parameters")
    bits_kwargs = draft.take("bnb_config_kwargs") or {}
    peft = draft.take("peft") or {}
    if adapter is None:
        draft.set("adapter", adapter, {"method.type": "full"}, "without an adapter, all weights are trained")
    elif str(adapter).lower() == "qlora":
        bits = 8 if draft.given.get("load_in_8bit") else 4
        draft.set("adapter", adapter, {"method.type": "lora", "quantization.bits": bits})
    elif str(adapter).lower() in METHODS:
        found = METHODS[str(adapter).lower()]
        draft.become("adapter", adapter, found if not isinstance(found, str) else Set({"method.type": found}))
    else:
        draft.missing("adapter", adapter, "lamina has no such method; see `lamina methods`")
    if full:
        draft.own("full_finetune", full, "without an adapter, all weights are trained")
    if adapter is None:
        for name in [name for name in draft.left if name.startswith(("lora_", "peft_"))]:
            if (given := draft.take(name)) not in (None, False):
                draft.own(name, given, "there is no adapter")
        if draft.take("load_in_4bit") or draft.take("load_in_8bit"):
            draft.missing("load_in_4bit", True, "a quantized base is frozen; add `adapter: qlora`")
        draft.take("load_in_8bit")
    elif target_linear and not draft.given.get("lora_target_modules"):
        draft.set("lora_target_linear", target_linear, {"method.target_modules": "all-linear"})
    elif target_linear:
        draft.take("lora_target_modules")
        draft.set(
            "lora_target_linear",
            target_linear,
            {"method.target_modules": "all-linear"},
            "all linear layers, and with them lora_target_modules",
        )
    if unfrozen:
        if adapter:
            draft.own("unfrozen_parameters", unfrozen, "with an adapter, the base is frozen")
        elif any(str(name).strip("^$.*") == "model.language_model" for name in unfrozen):
            draft.own("unfrozen_parameters", unfrozen, "those are all parameters of the language model")
        elif any("[:" in str(name) for name in unfrozen):
            draft.missing("unfrozen_parameters", unfrozen, "a part of a parameter cannot be trained alone")
        else:
            draft.set("unfrozen_parameters", unfrozen, {"method.parameters": [str(name) for name in unfrozen]})
    if "bnb_4bit_use_double_quant" in bits_kwargs:
        double = bits_kwargs["bnb_4bit_use_double_quant"]
        draft.set("bnb_config_kwargs", bits_kwargs, {"quantization.double_quant": double})
    if loftq := peft.get("loftq_config"):
        values = {"method.init_lora_weights": "loftq", "quantization.bits": loftq.get("loftq_bits", 4)}
        draft.set("peft.loftq_config", loftq, values)


def _data(draft: Draft) -> None:
    sources: list[str | dict[str, Any]] = []
    preambles: list[bool] = []
    plain: list[bool] = []
    marked: list[bool] = []
    columns_from = ("datasets", "pretraining_dataset")
    given_any = False
    for name in columns_from:
        listed = draft.take(name)
        if not listed:
            continue
        given_any = True
        for number, item in enumerate(listed if isinstance(listed, list) else [listed]):
            where = f"{name}[{number}]"
            try:
                found = read_source(item, where, draft)
            except Unreadable as error:
                draft.missing(error.name, error.given, str(error))
                continue
            sources += found.sources
            preambles.append(found.alpaca)
            plain.append(found.plain)
            marked.append(found.marked)
            if found.template is not None:
                draft.become(f"{where}.chat_template", found.template, built_in(found.template))
    if sources:
        draft.set("datasets", [_name(source) for source in sources], simplified(sources))
    elif not given_any:
        draft.missing("datasets", None, NO_DATA, "data.train")
    if any(marked):
        _marked(draft, marked)
    if plain and all(plain):
        draft.take("chat_template")
        draft.set("datasets.type", "texts", {"data.chat": False}, "prompts as they are, without a chat template")
    if preambles and all(preambles):
        if draft.take("chat_template"):
            draft.own("chat_template", draft.given["chat_template"], "rows of type alpaca do not use it")
        draft.set("datasets.type", "alpaca", {"data.chat_template": "alpaca"}, "Alpaca's own text, as there")
    elif any(preambles):
        draft.own("datasets.type", "alpaca", "its rows go through the chat template of the others")
    tests = draft.take("test_datasets")
    if tests:
        _test(draft, tests)


def _marked(draft: Draft, marked: Sequence[bool]) -> None:
    """Of some data sets, only marked turns are in the loss."""
    if all(marked):
        draft.set("datasets.roles_to_train", [], {"data.train_on": "marked"}, "turns with `train: true`, as there")
        if draft.take("train_on_inputs"):
            draft.own("train_on_inputs", True, "the marks of the turns decide, there as here")
    else:
        reason = (
            "`data.train_on: marked` is for all data sets; mark the turns of the others too, or train on them apart"
        )
        draft.missing("datasets.roles_to_train", [], reason, "data.train_on")


def _test(draft: Draft, tests: list[Any]) -> None:
    draft.take("val_set_size")
    try:
        found = [read_source(item, f"test_datasets[{number}]", draft) for number, item in enumerate(tests)]
    except Unreadable as error:
        draft.missing(error.name, error.given, str(error))
        return
    sources = [source for each in found for source in each.sources]
    named = {f"{PurePosixPath(_name(source)).stem or 'test'}-{n}": source for n, source in enumerate(sources, 1)}
    draft.set("test_datasets", [_name(source) for source in sources], {"data.eval": evaluation_sets(named)})


def _name(source: str | Mapping[str, Any]) -> str:
    return source if isinstance(source, str) else str(source["path"])


def _batch(draft: Draft) -> None:
    whole = draft.take("batch_size")
    if not whole:
        return
    micro = draft.given.get("micro_batch_size") or 1
    if draft.given.get("gradient_accumulation_steps"):
        draft.own("batch_size", whole, "gradient_accumulation_steps decides")
    else:
        draft.set("batch_size", whole, {"train.gradient_accumulation_steps": max(1, int(whole) // int(micro))})


def _schedule(draft: Draft) -> None:
    """A smallest learning rate makes `cosine` into `cosine_with_min_lr`."""
    share, smallest = draft.take("cosine_min_lr_ratio"), draft.take("eta_min")
    if draft.given.get("lr_scheduler", "cosine") != "cosine":
        return
    if share is not None:
        draft.take("lr_scheduler")
        if decimal(share) >= 1.0:
            draft.set("cosine_min_lr_ratio", share, {"train.lr_scheduler_type": "constant_with_warmup"})
            return
        values = {
            "train.lr_scheduler_type": "cosine_with_min_lr",
            "train.lr_scheduler_kwargs": {"min_lr_rate": decimal(share)},
        }
        draft.set("cosine_min_lr_ratio", share, values)
    elif smallest is not None:
        draft.take("lr_scheduler")
        values = {
            "train.lr_scheduler_type": "cosine_with_min_lr",
            "train.lr_scheduler_kwargs": {"min_lr": decimal(smallest)},
        }
        draft.set("eta_min", smallest, values)


def _shares_of_the_run(draft: Draft) -> None:
    """Turns shares of an epoch into shares of the run, as Axolotl does."""
    epochs = 1.0 if "train.max_steps" in draft.values else draft.values.get("train.num_train_epochs", 1.0)
    for key, name in (("train.eval_steps", "evals_per_epoch"), ("train.save_steps", "saves_per_epoch")):
        times = draft.given.get(name)
        if not times or key not in draft.values:
            continue
        share = round(1 / (times * epochs), 6)
        if share < 1.0:
            draft.set(name, times, {key: share})
            draft.rows.remove(next(row for row in draft.rows if row.name == name))
        else:
            draft.drop(key, "once, at the end, as lamina does anyway")
