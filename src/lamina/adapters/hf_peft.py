"""HF PEFT's on-disk format: `adapter_config.json` and `adapter_model.safetensors`."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file

from lamina.compute.ops.adapter import AdapterModule
from lamina.config import MethodConfig
from lamina.config.methods.lora import LoraConfig
from lamina.errors import AdapterError
from lamina.files import write_json
from lamina.methods.shared.base import Injection, Method, all_methods, find_method
from lamina.methods.shared.score import SCORE, ScoreHead
from lamina.methods.shared.targets import short_targets
from lamina.methods.shared.trained_copy import TrainedCopy

CONFIG_FILE = "adapter_config.json"
TENSORS_FILE = "adapter_model.safetensors"

# What peft takes for the names of an embedding and of a head that is tied to it (`EMBEDDING_LAYER_NAMES`).
_TIED_IN_PEFT = ("embed_tokens", "lm_head")


def write_peft(
    folder: Path, peft_config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], stored: Path | None = None
) -> None:
    """Writes an adapter as HF peft does. Tensors are stored in float32, indices as the integers that they are.

    Args:
        folder: A folder that is there.
        peft_config: The content of `adapter_config.json`.
        tensors: The tensors, by name.
        stored: A file that holds them already, to which a link is made instead; None if there is none.
    """
    write_json(folder / CONFIG_FILE, dict(peft_config))
    if stored is not None:
        try:
            os.link(stored, folder / TENSORS_FILE)
        except OSError:  # a file system without links
            shutil.copyfile(stored, folder / TENSORS_FILE)
        return
    # Copies, because safetensors takes no two names for one memory, and layers may share a tensor.
    copies = {
        name: tensor.detach().to("cpu", _stored_dtype(tensor), copy=True).contiguous()
        for name, tensor in tensors.items()
    }
    save_file(copies, folder / TENSORS_FILE, metadata={"format": "pt"})


def peft_content(injection: Injection, config: MethodConfig, base_ref: str) -> dict[str, Any]:
    """What `adapter_config.json` holds for an adapter in its place.

    Args:
        injection: The adapter.
        config: Its configuration as it is saved.
        base_ref: Where peft finds the base.
    """
    model = injection.model
    names = [name for name, layer in injection.layers.items() if name and not isinstance(layer, ScoreHead)]
    targets = short_targets(model, names)
    pattern = dict(config).get("target_modules")
    if isinstance(pattern, str) and pattern != "all-linear":
        bare = [name for name, _ in model.named_modules() if not any(name.startswith(f"{layer}.") for layer in names)]
        matched = [name for name in bare if re.fullmatch(pattern, name)]
        if not set(matched) <= set(names):  # also what can have no adapter, at which peft stops
            targets = short_targets(model, [name for name in matched if name in injection.layers])
            config = config.model_copy(update={"target_modules": targets})
    if isinstance(config, LoraConfig) and config.ensure_weight_tying:
        config = config.model_copy(update=_tied_targets(injection, config.target_modules))
    content = find_method(config.type).peft_config(config, targets, base_ref)
    if (
        SCORE in injection.layers
    ):  # a reward model or a classifier, which peft puts on a model for sequence classification
        content |= {"task_type": "SEQ_CLS", "modules_to_save": [*(content.get("modules_to_save") or []), SCORE]}
    return content


def _tied_targets(injection: Injection, targets: str | list[str]) -> dict[str, Any]:
    """Returns target_modules by which peft ties the adapters of embedding and head, as far as that needs a change.

    peft ties them only where a target is called `embed_tokens` or `lm_head`, and otherwise passes over the head's part:
    of an adapter on GPT-2's `wte`, it would load half.
    """
    head = injection.model.get_output_embeddings()
    if not isinstance(head, AdapterModule) or isinstance(head, TrainedCopy):
        return {}
    if isinstance(targets, str):
        named = any(re.fullmatch(targets, name) for name in _TIED_IN_PEFT)
        return {} if named else {"target_modules": f"{targets}|{_TIED_IN_PEFT[1]}"}
    named = any(target.rpartition(".")[2] in _TIED_IN_PEFT for target in targets)
    return {} if named else {"target_modules": [*targets, _TIED_IN_PEFT[1]]}


def without_score(content: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the content for the adapter without a reward model's head, as a method reads it."""
    # peft names both of transformers' names for such heads.
    kept = [name for name in content.get("modules_to_save") or [] if name not in (SCORE, "classifier")]
    return {**content, "task_type": "CAUSAL_LM", "modules_to_save": kept or None}


def read_peft_config(folder: Path) -> dict[str, Any]:
    """Reads `adapter_config.json`.

    Raises:
        AdapterError: It is not there or not JSON.
    """
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise AdapterError(f"{folder}: holds no {CONFIG_FILE}, so it is no adapter. Fix: {_adapters_in(folder)}.")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise AdapterError(f"{path}: is not JSON ({error}). Fix: copy the adapter again.") from None


def _adapters_in(folder: Path) -> str:
    """What to name in the place of a folder that is no adapter, as a trainer's that holds one for each checkpoint."""
    inside = sorted(str(path.parent) for path in folder.glob(f"*/{CONFIG_FILE}"))
    shown = " or ".join(inside[:3]) + (" or another of its folders" if len(inside) > 3 else "")
    return f"name {shown}" if inside else "name a run directory or an adapter folder"


def read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Reads the adapter's tensors, by their names in the file: float32, and indices as the integers that they are.

    Raises:
        AdapterError: The file is missing or damaged, or a pickle, which only `convert` reads.
    """
    path = folder / TENSORS_FILE
    if not path.is_file():
        if (folder / "adapter_model.bin").is_file():
            raise AdapterError(
                f"{folder}: holds a pickled adapter_model.bin and no {TENSORS_FILE}. Pickles can run code, so they are "
                f"not read here. Fix: write it as safetensors: lamina convert {shlex.quote(str(folder))} --out NEW"
            )
        raise AdapterError(f"{folder}: holds no {TENSORS_FILE}. Fix: copy the adapter again.")
    try:
        # Read as a whole, not mapped into memory: a file that is overwritten later changes nothing that was checked.
        tensors = load(path.read_bytes())
    except OSError as error:
        raise AdapterError(f"{path}: cannot be read ({error.strerror}).") from None
    except (SafetensorError, ValueError) as error:
        raise AdapterError(f"{path}: is damaged ({error}). Fix: copy the adapter again.") from None
    return {name: tensor.to(_stored_dtype(tensor)) for name, tensor in sorted(tensors.items())}


def method_config(peft_config: Mapping[str, Any]) -> MethodConfig:
    """The method and its fields that a peft configuration stands for: lamina's own, unless that lacks one that is set.

    Raises:
        AdapterError: No method of lamina reads it.
    """
    task = peft_config.get("task_type") or "CAUSAL_LM"
    if task == "SEQ_CLS":  # the head is found by its tensor
        peft_config, task = without_score(peft_config), "CAUSAL_LM"
    if task in _OTHER_TASKS:
        raise AdapterError(
            f"the adapter was trained for {_OTHER_TASKS[task]} (task_type {task}), and lamina runs causal language "
            "models. Fix: use it with peft."
        )
    reasons = []
    for method in _readers(peft_config):
        try:
            return method.from_peft(peft_config)
        except AdapterError as error:
            reasons.append(str(error))
    if not reasons:
        known = ", ".join(all_methods())
        kind = peft_config.get("peft_type")
        raise AdapterError(f"the adapter's peft_type {kind!r} is not supported; methods: {known}.")
    # The last is that of the method with all fields; without peft, the first says why that one is needed.
    raise AdapterError(reasons[-1] if importlib.util.find_spec("peft") else " ".join(reasons))


def fallback_config(peft_config: Mapping[str, Any]) -> MethodConfig | None:
    """The same by the `fallback`, which has all fields, for a model that lamina's own method does not fit; None if it
    does not read the configuration.

    Raises:
        AdapterError: It cannot be used.
    """
    return next((method.from_peft(peft_config) for method in _readers(peft_config) if method.fallback), None)


def _readers(peft_config: Mapping[str, Any]) -> list[Method]:
    """The methods that a peft configuration may be of, a `fallback` after all others."""
    return sorted((m for m in all_methods().values() if m.reads_peft(peft_config)), key=lambda method: method.fallback)


# Tasks for which peft trains a head that no causal language model has, or another kind of model.
_OTHER_TASKS = {
    "TOKEN_CLS": "the classification of tokens",
    "QUESTION_ANS": "finding answers in a text",
    "SEQ_2_SEQ_LM": "an encoder with a decoder",
}


def _stored_dtype(tensor: torch.Tensor) -> torch.dtype:
    return torch.float32 if tensor.is_floating_point() else tensor.dtype
