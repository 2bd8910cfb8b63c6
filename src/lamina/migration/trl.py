"""TRL and alignment-handbook: reads the data sets and the loss; the rest is in `dialects/trl.py`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lamina.dialects.outcome import Entry
from lamina.dialects.trl import CPO, DPO, KTO, PREFERENCE, SFT
from lamina.migration.draft import Draft
from lamina.migration.settle import settle
from lamina.migration.sources import NO_DATA, hub_path, simplified, sliced, source

TABLES: dict[str, Mapping[str, Entry]] = {
    "cross_entropy": SFT,
    "dpo": DPO,
    "kto": KTO,
    "cpo": CPO,
    "simpo": CPO,
    "orpo": PREFERENCE,
    "reward": PREFERENCE,
}
_GENERATING = ("grpo", "rloo", "ppo", "gkd", "online_dpo", "xpo", "nash_md")

# TRL's defaults where they are not lamina's: those of transformers' arguments, and its own for each loss.
DEFAULTS: dict[str, Any] = {
    "train.per_device_train_batch_size": 8,
    "train.lr_scheduler_type": "linear",
    "data.max_length": 1024,
    "data.overlong": "cut",
    "data.packing": False,
    "seed": 42,
}
_UNLIMITED = (
    "nothing is cut, as there: data.max_length follows the rows, up to the model's positions and 4,096 tokens; longer "
    "conversations are dropped and counted, and longer texts split; a larger data.max_length keeps them whole"
)
LEARNING_RATES = {
    "cross_entropy": 2e-5,
    "dpo": 1e-6,
    "kto": 1e-6,
    "cpo": 1e-6,
    "simpo": 1e-6,
    "orpo": 1e-6,
    "reward": 1e-4,
}
LORA_DEFAULTS: dict[str, Any] = {
    "method.r": 16,
    "method.lora_alpha": 32,
    "method.lora_dropout": 0.05,
    "method.target_modules": ["q_proj", "v_proj"],
}


def read(draft: Draft, words: Sequence[str]) -> None:
    """Fills in a draft from TRL's settings."""
    loss = _loss(draft, words)
    _data(draft)
    _method(draft)
    draft.look_up(TABLES.get(loss, SFT), ("model_name_or_path",))
    _evaluation(draft)
    draft.default({"train.learning_rate": LEARNING_RATES.get(loss, 2e-5), **default_values(draft)})
    if loss == "cross_entropy" and "data.train_on" not in draft.values:
        _in_the_loss(draft)
    settle(draft)


def default_values(draft: Draft, values: Mapping[str, Any] = DEFAULTS) -> dict[str, Any]:
    """Returns what TRL does by default. `max_length: null`, which is no limit there, has no default: it was given.

    Args:
        draft: The translation, whose table has been looked up.
        values: TRL's defaults by lamina's keys.
    """
    if draft.given.get("max_length", ...) is not None or "data.max_length" in draft.values:
        return dict(values)
    draft.own("max_length", None, _UNLIMITED)
    if draft.values.get("data.overlong") == "cut":
        draft.drop("data.overlong", "without max_length, nothing is cut")
    return {key: value for key, value in values.items() if key not in ("data.max_length", "data.overlong")}


def _loss(draft: Draft, words: Sequence[str]) -> str:
    """Finds out what is trained: by the script's or the folder's name, or else by keys that only one loss has."""
    given = draft.left
    named = next((word for word in reversed(words) if word in (*TABLES, *_GENERATING, "sft")), "")
    if named in _GENERATING or {"num_generations", "reward_funcs"} & set(given):
        draft.missing("script", named or "grpo", "training on answers that the model generates is not here")
        return "cross_entropy"
    if named in ("", "sft"):
        named = "cross_entropy" if named else _loss_by_keys(given)
    if given.get("loss_type") == "simpo":
        named = "simpo"
        draft.take("loss_type")
    if named != "cross_entropy":
        draft.set("script", named, {"loss.type": named}, "by the name of the script or folder, or by its settings")
    return named


def _loss_by_keys(given: Mapping[str, Any]) -> str:
    if {"desirable_weight", "undesirable_weight"} & set(given):
        return "kto"
    if "cpo_alpha" in given or "simpo_gamma" in given:
        return "cpo"
    if "center_rewards_coefficient" in given:
        return "reward"
    if "beta" in given or "precompute_ref_log_probs" in given:
        return "dpo"
    return "cross_entropy"


def _data(draft: Draft) -> None:
    mixture, mixer = draft.take("dataset_mixture"), draft.take("dataset_mixer")
    name, configuration = draft.take("dataset_name"), draft.take("dataset_config")
    train_split, test_split = draft.take("dataset_train_split"), draft.take("dataset_test_split")
    splits = draft.take("dataset_splits") or []
    splits = [splits] if isinstance(splits, str) else splits
    if mixture:
        _mixture(draft, mixture)
    elif mixer and not isinstance(mixer, Mapping):
        draft.missing("dataset_mixer", mixer, "it must map data sets to their shares", "data.train")
    elif mixer:
        first = splits[0] if splits else "train"
        sources = [
            source(hub_path(each, None, first), weight=1.0 if weight is None else float(weight))
            for each, weight in mixer.items()
        ]
        draft.set("dataset_mixer", mixer, simplified(sources))
        if len(splits) > 1:
            draft.set("dataset_splits", splits, {"data.eval": hub_path(next(iter(mixer)), None, splits[1])})
    elif name and not isinstance(name, str):
        draft.missing("dataset_name", name, "it is one name; several are a `dataset_mixture`", "data.train")
    elif name:
        _named(draft, name, configuration, train_split, test_split)
    else:
        draft.missing("dataset_name", None, NO_DATA, "data.train")


def _named(draft: Draft, name: str, configuration: Any, train_split: Any, test_split: Any) -> None:
    """Reads one data set: a file, a folder with splits, or one of the hub."""
    local = _local(draft, name)
    is_file = bool(local) and Path(local).is_file()
    if is_file and configuration:
        draft.missing("dataset_config", configuration, "a file has no configurations; give the path of its file")
    values: dict[str, Any] = {"data.train": hub_path(name, configuration, train_split)}
    if local:  # a slice is a part of a name of the hub alone
        split, limits = _part(draft, train_split)
        if is_file and split not in (None, "", "train"):
            reason = "a file has no splits; `data.train` is the path of the file with these rows"
            draft.missing("dataset_train_split", train_split, reason, "data.train")
        values = simplified([source(local if is_file else hub_path(local, configuration, split), **limits)])
    draft.set("dataset_name", name, values)
    strategy = str(draft.given.get("eval_strategy", draft.given.get("evaluation_strategy", "no")))
    if strategy in ("no", "False"):
        if test_split:
            draft.own("dataset_test_split", test_split, "without eval_strategy, nothing is evaluated, there as here")
    elif is_file:
        if test_split:
            reason = "a file has no splits; `data.eval` is the path of the file with these rows, or a share"
            draft.missing("dataset_test_split", test_split, reason, "data.eval")
    else:
        split = test_split or "test"
        draft.set("dataset_test_split", split, {"data.eval": f"{hub_path(local or name, configuration)}:{split}"})


def _part(draft: Draft, given: Any) -> tuple[str | None, dict[str, Any]]:
    """Returns the split and the limits of a local source for `train[:500]`."""
    try:
        split, limits = sliced(None if given is None else str(given))
    except ValueError as error:
        draft.missing("dataset_train_split", given, str(error), "data.train")
        return None, {}
    if "weight" in limits:
        draft.own("dataset_train_split", given, "that share of the rows, drawn by seed, not the first ones")
    elif limits:
        draft.own("dataset_train_split", given, "the first rows alone (`max_rows`)")
    return split, limits


def _local(draft: Draft, name: str) -> str:
    """Returns a file or folder that the name means; empty if there is none."""
    for folder in (draft.folder, Path()):
        if (folder / name).exists():
            return str(folder / name)
    return ""


def _mixture(draft: Draft, given: Any) -> None:
    mixture = _read_mixture(given)
    if mixture is None:
        wanted = "it must have `datasets`, a list of mappings with an `id`"
        draft.missing("dataset_mixture", given, wanted, "data.train")
        return
    sources = [
        source(
            hub_path(str(each["id"]), each.get("config"), each.get("split")), weight=float(each.get("weight") or 1.0)
        )
        for each in mixture["datasets"]
    ]
    draft.set("dataset_mixture.datasets", [each.get("id") for each in mixture["datasets"]], simplified(sources))
    size = mixture.get("test_split_size")
    if size:
        draft.set("dataset_mixture.test_split_size", size, {"data.eval": int(size) if size >= 1 else float(size)})
    if mixture.get("seed") is not None:
        draft.own("dataset_mixture.seed", mixture["seed"], "`seed` is the seed of everything")


def _read_mixture(given: Any) -> Mapping[str, Any] | None:
    """Returns a mixture, which may be JSON in a text; None if it is none."""
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except ValueError:
            return None
    listed = given.get("datasets") if isinstance(given, Mapping) else None
    is_one = (
        isinstance(listed, list) and listed and all(isinstance(each, Mapping) and each.get("id") for each in listed)
    )
    return given if is_one else None


def _method(draft: Draft) -> None:
    use_peft = draft.take("use_peft")
    asks = use_peft or (use_peft is None and any(draft.given.get(name) for name in ("lora_r", "lora_target_modules")))
    if not asks:
        draft.set("use_peft", bool(use_peft), {"method.type": "full"}, "without use_peft, all weights are trained")
        for name in [name for name in draft.left if name.startswith("lora_")]:
            draft.own(name, draft.take(name), "there is no adapter")
        return
    draft.set("use_peft", use_peft, {"method.type": "lora"})
    for key, value in LORA_DEFAULTS.items():
        name = key.removeprefix("method.")
        if name.removeprefix("lora_") not in {each.removeprefix("lora_") for each in draft.given}:
            note = "peft's default for most models" if name == "target_modules" else "the default there"
            draft.set(name, None, {key: value}, note, "default")


def _evaluation(draft: Draft) -> None:
    strategy = str(draft.given.get("eval_strategy", draft.given.get("evaluation_strategy", "no")))
    if draft.values.get("data.eval") is None:
        return
    if strategy == "epoch":
        draft.drop("train.eval_steps", "at the end of every epoch")
    elif strategy == "steps" and "train.eval_steps" not in draft.values:
        draft.default({"train.eval_steps": draft.values.get("train.logging_steps", 500)})


def _in_the_loss(draft: Draft) -> None:
    path = draft.values.get("data.train")
    kind = _kind_of_rows(Path(path)) if isinstance(path, str) else ""
    if kind == "plain":
        draft.default({"data.chat": False}, "TRL takes prompts and completions that are texts as they are")
    elif kind == "conversation":
        draft.default({"data.train_on": "all"}, "TRL puts whole conversations into the loss by default")
    elif kind == "":
        draft.own(
            "assistant_only_loss",
            False,
            "lamina puts answers alone into the loss; of rows with `messages`, TRL's default is everything: "
            "`data: {train_on: all}`",
        )


def _kind_of_rows(path: Path) -> str:
    """Returns what `kind_of_row` does for the first row of a file in JSON lines; empty if that cannot be told."""
    if path.suffix != ".jsonl" or not path.is_file():
        return ""
    try:
        with path.open(encoding="utf-8") as lines:
            row = json.loads(next(lines, "{}"))
    except (OSError, ValueError):
        return ""
    return kind_of_row(row) if isinstance(row, dict) else ""


def kind_of_row(row: Mapping[str, Any]) -> str:
    """Returns `conversation` (with `messages`), `plain` (prompt and completion are texts), or `other`."""
    if row.get("messages") is not None:
        return "conversation"
    is_plain = all(name in row and not isinstance(row[name], list | dict) for name in ("prompt", "completion"))
    return "plain" if is_plain else "other"
