"""LLaMA-Factory: reads its data sets through `dataset_info.json`; the rest is in `dialects/llama_factory.py`."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lamina.config.load import read_yaml
from lamina.config.optimizers import OPTIMIZERS
from lamina.dialects.llama_factory import LLAMA_FACTORY
from lamina.dialects.values import decimal, names
from lamina.errors import ConfigError, Problem, nearest
from lamina.migration.draft import Draft
from lamina.migration.freeze import SETTINGS, adapt_new_blocks, freeze
from lamina.migration.settle import settle
from lamina.migration.sources import NO_DATA, evaluation_sets, first_names, hub_path, simplified, sliced, source
from lamina.migration.turns import turns_template

INFO = "dataset_info.json"
_MEDIA = ("images", "videos", "audios")
_DEFAULTS: dict[str, Any] = {
    "train.per_device_train_batch_size": 8,
    "train.learning_rate": 5e-5,
    "train.lr_scheduler_type": "linear",
    "data.max_length": 2048,
    "data.overlong": "cut",
    "data.packing": False,
    "seed": 42,
}
_V1_DEFAULTS: dict[str, Any] = {
    "train.per_device_train_batch_size": 1,
    "train.num_train_epochs": 3.0,
    "data.packing": False,
}
_PROJECTING: dict[str, dict[str, Any]] = {
    "galore": {"train.galore.rank": 16, "train.galore.scale": 2.0},
    "apollo": {"train.apollo.rank": 16, "train.apollo.scale": 32.0},
}


class _NoData(ValueError):
    """A data set cannot be resolved."""


def read(draft: Draft, words: Sequence[str]) -> None:
    """Fills in a draft from LLaMA-Factory's settings."""
    if "train_dataset" in draft.left or "model_class" in draft.left:
        _read_v1(draft)
        return
    if draft.left.get("do_train") is False or ("do_predict" in draft.left and not draft.left.get("do_train")):
        draft.missing("do_train", False, "it predicts or evaluates; `lamina eval` does that")
    if "export_dir" in draft.left:
        draft.missing("export_dir", draft.take("export_dir"), "it merges an adapter: `lamina merge RUN --out DIR`")
    _data(draft)
    _method(draft)
    _preference(draft)
    _weights(draft)
    draft.look_up(LLAMA_FACTORY, ("model_name_or_path", "stage", "finetuning_type"))
    _defaults(draft)
    settle(draft)


def _defaults(draft: Draft) -> None:
    draft.default(_DEFAULTS)
    if draft.values.get("method.type", "lora") == "lora" and "method.from" not in draft.values:
        rank = draft.values.get("method.r", 8)
        draft.default({"method.r": 8, "method.lora_alpha": 2 * rank, "method.target_modules": "all-linear"})
    if draft.values.get("loss.type") == "simpo":
        draft.default({"loss.beta": 0.1, "loss.simpo_gamma": 0.05}, "gamma is beta times simpo_gamma there")


def _method(draft: Draft) -> None:
    pissa, rounds = draft.take("pissa_init"), draft.take("pissa_iter", 16)
    if pissa:
        name = "pissa" if rounds == -1 else f"pissa_niter_{rounds}"
        draft.set("pissa_init", pissa, {"method.init_lora_weights": name})
    _projecting(draft)
    _deciding(draft)
    if draft.given.get("finetuning_type") == "freeze":
        draft.take("finetuning_type")
        given = {name: value for name in SETTINGS if (value := draft.take(name)) is not None}
        freeze(draft, "finetuning_type", given, spread=bool(draft.take("use_llama_pro")))
    elif "finetuning_type" not in draft.left:
        draft.default({"method.type": "lora"})
    if draft.take("use_llama_pro"):
        adapt_new_blocks(draft, draft.take("freeze_trainable_layers"))
    if draft.given.get("finetuning_type") in ("full", "oft"):
        for name in ("lora_rank", "lora_alpha", "lora_target", "lora_dropout"):
            if (given := draft.take(name)) is not None:
                draft.own(name, given, "there is no LoRA")


def _projecting(draft: Draft) -> None:
    """Optimizers that project gradients, with the defaults that they have there."""
    for name, defaults in _PROJECTING.items():
        asked, layerwise = draft.take(f"use_{name}"), draft.take(f"{name}_layerwise")
        if asked:
            moments = "_8bit" if "8bit" in str(draft.take("optim")) else ""
            optim = f"{name}_adamw{moments}{'_layerwise' if layerwise else ''}"
            if optim in OPTIMIZERS:
                draft.set(f"use_{name}", asked, {"train.optim": optim})
            else:
                draft.missing("optim", draft.given["optim"], f"{name} has no 8-bit moments here, nor there")
            given = {f"train.{name}.{key}" for key in ("rank", "scale") if draft.left.get(f"{name}_{key}") is not None}
            draft.default({key: value for key, value in defaults.items() if key not in given})


def _deciding(draft: Draft) -> None:
    """Optimizers that have their own switch, which `optim` does not change."""
    for name in ("use_badam", "use_muon", "use_adam_mini"):
        if draft.left.get(name) and (given := draft.take("optim")) is not None:
            draft.own("optim", given, f"{name} decides")
    if draft.left.get("badam_switch_interval") == -1:
        draft.take("badam_switch_mode")


def _weights(draft: Draft) -> None:
    """Of several losses with weights of tokens, the first one counts."""
    asked = [name for name in ("use_dft_loss", "use_eaft_loss", "use_asft_loss") if draft.left.get(name)]
    for name in asked[1:]:
        draft.own(name, draft.take(name), f"{asked[0]} decides")


def _preference(draft: Draft) -> None:
    share, unpaired = draft.take("pref_ftx"), draft.take("pref_bco_weight")
    if share:
        draft.set("pref_ftx", share, {"loss.loss_type": ["sigmoid", "sft"], "loss.loss_weights": [1.0, float(share)]})
    if unpaired:
        values = {"loss.loss_type": ["sigmoid", "bco_pair"], "loss.loss_weights": [1.0, float(unpaired)]}
        draft.set("pref_bco_weight", unpaired, values)
    gamma = draft.take("simpo_gamma")
    if gamma is not None and draft.given.get("pref_loss") == "simpo":
        beta = decimal(draft.given.get("pref_beta", 0.1))
        draft.set("simpo_gamma", gamma, {"loss.simpo_gamma": round(beta * decimal(gamma), 6)}, "times beta, as there")


def _data(draft: Draft) -> None:
    wanted, evaluated = names(draft.take("dataset") or []), names(draft.take("eval_dataset") or [])
    folder, size = draft.take("dataset_dir") or "data", draft.take("val_size")
    if not wanted:
        draft.missing("dataset", None, NO_DATA, "data.train")
        return
    catalog = _Catalog(draft.folder, folder)
    sources: list[str | dict[str, Any]] = []
    for name in wanted:
        try:
            sources.append(catalog.source(str(name)))
        except _NoData as error:
            draft.missing("dataset", name, str(error), "data.train")
    if sources:
        draft.set("dataset", ",".join(map(str, wanted)), simplified(sources))
    if evaluated:
        try:
            found = {str(name): catalog.source(str(name)) for name in evaluated}
        except _NoData as error:
            draft.missing("eval_dataset", evaluated, str(error))
        else:
            draft.set("eval_dataset", ",".join(map(str, evaluated)), {"data.eval": evaluation_sets(found)})
    elif size:
        draft.set("val_size", size, {"data.eval": int(size) if decimal(size) >= 1 else decimal(size)})


class _Catalog:
    """The data sets that a `dataset_info.json` describes."""

    def __init__(self, folder: Path, named: Any) -> None:
        self.named = str(named)
        self.online = self.named == "ONLINE"
        self.folder = self._find(folder)
        self.listed: dict[str, Any] | None = None
        if self.folder is not None:
            try:
                self.listed = json.loads((self.folder / INFO).read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                message = f"{self.folder / INFO} cannot be read ({error})"
                raise ConfigError(Problem("dataset_dir", message, "correct that file")) from error

    def _find(self, folder: Path) -> Path | None:
        if self.online or self.named.startswith("REMOTE:"):
            return None
        above = [folder, *folder.absolute().parents[:4], Path()]
        places = [place / self.named for place in above] + [folder]
        return next((place for place in places if (place / INFO).is_file()), None)

    def source(self, name: str) -> str | dict[str, Any]:
        """Returns the source of a data set.

        Raises:
            _NoData: It is not described, or in a way that has no counterpart.
        """
        if self.online:
            return hub_path(name)
        if self.named.startswith("REMOTE:"):
            repository = self.named[7:]
            download = f"`hf download {repository} --repo-type dataset --local-dir data`, and `dataset_dir: data`"
            raise _NoData(f"the {INFO} of {repository} is on the hub; download it: {download}")
        if self.listed is None or self.folder is None:
            if Path(name).exists():
                return name
            raise _NoData(f"there is no {INFO} in {self.named!r}, beside the file or above it, so this is only a name")
        if name not in self.listed:
            raise _NoData(f"{self.folder / INFO} does not describe it. {nearest(name, self.listed)}".strip())
        return described(self.listed[name], self.folder)


def described(entry: Mapping[str, Any], folder: Path) -> str | dict[str, Any]:
    """Returns the source for an entry of `dataset_info.json`.

    Raises:
        _NoData: It has no counterpart.
    """
    columns, tags = entry.get("columns") or {}, entry.get("tags") or {}
    if media := [name for name in _MEDIA if columns.get(name)]:
        raise _NoData(f"its rows have {', '.join(media)}; lamina trains on text")
    limits = {"max_rows": entry.get("num_samples")}
    if "file_name" in entry:
        path = _relative(folder / str(entry["file_name"]))
    elif "hf_hub_url" in entry:
        path = hub_path(str(entry["hf_hub_url"]), entry.get("subset"), entry.get("split"))
        if entry.get("folder"):
            raise _NoData("a folder within a data set of the hub has no counterpart; download it")
    else:
        raise _NoData("it comes from a script, or from another hub; save its rows as a file")
    return source(path, **_format(entry, columns, tags), **limits)


def _format(entry: Mapping[str, Any], columns: Mapping[str, Any], tags: Mapping[str, Any]) -> dict[str, Any]:
    formatting = entry.get("formatting", "alpaca")
    fields = {"system": "system", "tools": "tools", "kto_tag": "label", "chosen": "chosen", "rejected": "rejected"}
    if formatting in ("sharegpt", "openai"):
        mapped = first_names(columns, {"messages": "messages", **fields})
        try:
            own_turns = turns_template(mapped.get("messages", "conversations"), tags)
        except ValueError as error:
            raise _NoData(str(error)) from None
        if own_turns and (entry.get("ranking") or mapped.get("label")):
            named = ", ".join(f"{name}: {value}" for name, value in tags.items())
            raise _NoData(f"in pairs and labeled rows, turns have the usual names and roles, not {named}")
        if own_turns:
            return {"format": "messages", "columns": {**mapped, "messages": own_turns}}
        if entry.get("ranking"):
            return {"format": "preference", "columns": {"messages": "conversations", **mapped}}
        if mapped.get("label"):
            return {"format": "unpaired_preference", "columns": {"messages": "conversations", **mapped}}
        plain = mapped in ({}, {"messages": "messages"})
        return {
            "format": "messages",
            "columns": {} if plain and "messages" in mapped else {"messages": "conversations", **mapped},
        }
    alpaca = {"prompt": "instruction", "query": "input", "response": "output", "history": "history"}
    mapped = first_names(columns, {**alpaca, **fields})
    if entry.get("ranking"):
        return {"format": "preference", "columns": mapped or {}}
    if set(mapped) == {"instruction"}:  # a text to continue
        return {"format": "text", "columns": {"text": mapped["instruction"]} if mapped["instruction"] != "text" else {}}
    if mapped.get("label"):
        return {"format": "unpaired_preference", "columns": mapped}
    return {"format": "alpaca", "columns": mapped}


def _relative(path: Path) -> str:
    """Returns a path as it reads from the working directory, if it is below that."""
    relative = os.path.relpath(path)
    return str(path.resolve()) if relative.startswith("..") else relative


def _read_v1(draft: Draft) -> None:
    """Reads the newer form, with sections such as `peft_config`."""
    renamed = {"model": "model_name_or_path", "micro_batch_size": "per_device_train_batch_size"}
    for old, new in renamed.items():
        if old in draft.left:
            draft.left[new] = draft.take(old)
    _v1_sections(draft)
    _v1_data(draft)
    draft.look_up(LLAMA_FACTORY, ("model_name_or_path",))
    draft.default(_V1_DEFAULTS)
    settle(draft)


def _v1_sections(draft: Draft) -> None:
    peft, quant = draft.take("peft_config") or {}, draft.take("quant_config") or {}
    kind = peft.get("name", "full")
    if kind == "freeze":
        freeze(draft, "peft_config.name", {name: value for name, value in peft.items() if name in SETTINGS})
    elif kind == "full":
        draft.set("peft_config", None, {"method.type": "full"}, "without an adapter, all weights are trained")
    else:
        draft.set("peft_config.name", kind, {"method.type": kind})
    inner = {"r": "lora_rank", "target_modules": "lora_target", "adapter_name_or_path": "adapter_name_or_path"}
    for name, value in peft.items():
        if name != "name" and kind != "freeze":
            entry = LLAMA_FACTORY.get(inner.get(str(name), str(name)))
            if entry is None:
                draft.missing(f"peft_config.{name}", value, "no such setting is known")
            else:
                draft.become(f"peft_config.{name}", value, entry.outcome(value))
    if quant:
        bits = quant.get("quantization_bit", 4)
        draft.become("quant_config", quant, LLAMA_FACTORY["quantization_bit"].outcome(bits))
    for name, reason in (
        ("kernel_config", "lamina has its own kernels"),
        ("dist_config", "how the work is spread over devices changes no result"),
        ("init_config", "weights are read from disk as they are needed"),
        ("batching_strategy", "`packing` decides"),
        ("batching_workers", "rows are encoded once"),
        ("sample_backend", "`lamina generate` answers after training"),
    ):
        if (given := draft.take(name)) is not None:
            draft.own(name, given, reason)
    optimizer = draft.take("optim_config") or {}
    if optimizer:
        draft.become("optim_config", optimizer, LLAMA_FACTORY["optim"].outcome(optimizer.get("name", "adamw")))
    if (kind := draft.take("model_class", "llm")) != "llm":
        draft.missing("model_class", kind, "lamina trains causal language models on text")


def _v1_data(draft: Draft) -> None:
    named = draft.take("train_dataset")
    if not named:
        draft.missing("train_dataset", None, NO_DATA, "data.train")
        return
    places = [draft.folder, *draft.folder.absolute().parents[:4], Path()]
    path = next((place / str(named) for place in places if (place / str(named)).is_file()), None)
    if path is None:
        draft.missing("train_dataset", named, "there is no such file beside this one or above it", "data.train")
        return
    if path.suffix not in (".yaml", ".yml"):
        draft.set("train_dataset", named, {"data.train": _relative(path)})
        return
    sources: list[str | dict[str, Any]] = []
    for name, entry in read_yaml(path, "train_dataset").items():
        converter = entry.get("converter", "alpaca")
        formats = {"alpaca": "alpaca", "sharegpt": "sharegpt", "pair": "preference"}
        split, limits = sliced(entry.get("split"))
        if converter not in formats:
            draft.missing(f"train_dataset.{name}.converter", converter, "fill the fields with `columns`")
            continue
        local = entry.get("source") == "local"
        at = _relative(path.parent.parent / entry["path"]) if local else hub_path(entry["path"], None, split)
        sources.append(source(at, format=formats[converter], **{"max_rows": entry.get("size"), **limits}))
        if converter == "pair":
            draft.values["loss.type"] = "dpo"
    draft.set("train_dataset", named, simplified(sources))
