"""Checks that a model folder holds a causal language model, by its config.json and by its weights.

transformers loads nearly any folder as a causal language model: it drops a reward model's score head, initializes a
missing head randomly, and only logs both. Here they are errors, and any other ignored weights are reported.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors import safe_open
from transformers import PreTrainedModel
from transformers.models.auto import modeling_auto

from lamina.errors import ModelError
from lamina.models.fingerprint import weight_files
from lamina.models.stored import read_config
from lamina.structure.layers import decoder_layers

# Names of language models that transformers does not have: custom code, and old names of its own.
_LANGUAGE_MODEL = re.compile(r"(ForCausalLM|LMHeadModel|DoubleHeadsModel)$")

# Other tasks in transformers' mappings that a causal language model may have.
_WITH_OTHER_INPUTS = ("IMAGE_TEXT_TO_TEXT", "MULTIMODAL_LM")

_MADE_FROM = "name the language model that it was made from"
_OTHER = "name a causal language model"


def check_architecture(folder: Path) -> None:
    """Checks that config.json does not name another kind of model.

    Raises:
        ModelError: It names a classifier, a masked language model, an embedding model, an encoder-decoder, or the like.
    """
    config = read_config(folder)
    names = _architectures(config)
    if not names or any(_is_language_model(name, config) for name in names):
        return
    name = names[0]
    if config.get("is_encoder_decoder"):
        raise ModelError(f"{_names(folder, name)}, an encoder with a decoder. {_only(_OTHER)}")
    if name in _classes("MODEL_MAPPING_NAMES"):
        if (folder / "modules.json").is_file():
            raise ModelError(
                f"{_names(folder, name)}, a model without an output head, and modules.json shows that it is an "
                f"embedding model of sentence-transformers. {_only(_MADE_FROM)}"
            )
        return  # `check_weights` finds out whether it has a head after all
    if _takes_more(name):
        return  # `read_model` finds out whether transformers has a causal language model for it
    task = _task(name)
    if task is not None:
        fix = _MADE_FROM if task.endswith(("classification", "answering")) else _OTHER
        raise ModelError(f"{_names(folder, name)}, a model for {task}. {_only(fix)}")
    raise ModelError(
        f"{_names(folder, name)}, which is not a causal language model in transformers; loaded as one, it would be "
        "another model. Fix: name a causal language model; if it is one, correct `architectures` in its config.json."
    )


def not_a_language_model(folder: Path) -> str:
    """Builds the error message for a config.json for which transformers has no causal language model."""
    config = read_config(folder)
    kind, names = config.get("model_type"), _architectures(config)
    takes = f" ({names[0]}, which takes more than text)" if names and _takes_more(names[0]) else ""
    return f"{folder}: transformers has no causal language model of the type {kind!r}{takes}. {_only(_MADE_FROM)}"


def check_weights(folder: Path, model: PreTrainedModel, missing: Iterable[str], extra: Iterable[str]) -> list[str]:
    """Checks that a model and the files that it was loaded from have the same weights.

    Args:
        folder: The model folder.
        model: The loaded model.
        missing: Names of weights that the files lack.
        extra: Names of weights in the files that the model does not have.

    Returns:
        Notes for the user on weights in the files that are not loaded.

    Raises:
        ModelError: Weights are missing, or weights of decoder layers would not be loaded.
    """
    lacking, left = sorted(missing), sorted(_without_constants(folder, extra))
    if lacking:
        raise ModelError(_missing(folder, model, lacking))
    inside = [name for name in left if _is_inside(name, model)]
    if inside:
        raise ModelError(
            f"{folder}: {len(inside)} weights of its files have names in the decoder layers of "
            f"{type(model).__name__}, but with its config.json the layers do not have them (first: {inside[0]}); "
            "without them it would be another model. Fix: take config.json and weights from the same source; if these "
            "weights are not needed, save the folder without them in transformers: "
            "`AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW)`."
        )
    config = read_config(folder)
    names = _architectures(config)
    notes = []
    if names and names[0] in _classes("MODEL_MAPPING_NAMES"):
        notes.append(
            f"config.json names {names[0]}, which has no output head; it is loaded as {type(model).__name__}, whose "
            "head is its embedding (tie_word_embeddings)."
        )
    elif names and type(model).__name__ not in names and _takes_more(names[0]):
        notes.append(
            f"config.json names {names[0]}; only its {type(model).__name__} is loaded. Its parts for images or audio "
            "are left out, also from models that are saved from it."
        )
    if left:
        notes.append(
            f"{len(left)} weights of its files are not part of {type(model).__name__} and are left out, also from "
            f"models that are saved from it (first: {left[0]})."
        )
    return notes


def _missing(folder: Path, model: PreTrainedModel, missing: list[str]) -> str:
    names = _architectures(read_config(folder))
    head = model.get_output_embeddings()
    of_head = {f"{name}.weight" for name, module in model.named_modules() if module is head}
    if set(missing) == of_head:
        what = f"config.json names {names[0]}, and " if names and names[0] in _classes("MODEL_MAPPING_NAMES") else ""
        return (
            f"{folder}: {what}its files have no output head ({missing[0]}), so it computes hidden states and no token "
            f"probabilities. {_only(_MADE_FROM)} If its embedding is also its head, set `tie_word_embeddings: true` in "
            "its config.json."
        )
    return (
        f"{folder}: {len(missing)} weights are missing from its files (first: {missing[0]}). "
        "Fix: fetch the model again; it is incomplete."
    )


def _without_constants(folder: Path, names: Iterable[str]) -> set[str]:
    """Removes attention masks and scalars, which old releases of transformers saved with the weights."""
    left = set(names)
    for path in weight_files(folder) if left else ():
        with safe_open(path, "pt") as file:
            for name in left & set(file.keys()):
                shape = file.get_slice(name).get_shape()
                if not shape or (len(shape) == 4 and shape[:2] == [1, 1]):
                    left.remove(name)
    return left


def _is_inside(name: str, model: PreTrainedModel) -> bool:
    """Whether a weight's name belongs to a decoder layer, including layers beyond those of the model."""
    places = {id(module): path for path, module in model.named_modules()}
    layers = [places[id(layer)] for layer in decoder_layers(model)]
    lists = {path.rpartition(".")[0] for path in layers}
    return any(re.match(rf"(.*\.)?{re.escape(path)}\.\d+\.", name) for path in lists)


def _is_language_model(name: str, config: dict[str, Any]) -> bool:
    custom = "AutoModelForCausalLM" in (config.get("auto_map") or {})
    return name in _classes("MODEL_FOR_CAUSAL_LM_MAPPING_NAMES") or bool(_LANGUAGE_MODEL.search(name)) or custom


def _takes_more(name: str) -> bool:
    """Whether a class accepts images or audio in addition to text."""
    return any(name in _classes(f"MODEL_FOR_{task}_MAPPING_NAMES") for task in _WITH_OTHER_INPUTS)


def _task(name: str) -> str | None:
    """Finds the task of a class in transformers, in words, such as `sequence classification`."""
    found = [re.fullmatch(r"MODEL_FOR_(\w+)_MAPPING_NAMES", mapping) for mapping in vars(modeling_auto)]
    tasks = [match[1] for match in found if match and name in _classes(match[0])]
    if not tasks:
        return None
    # Prefer any other task to pretraining, which is less specific.
    task = min(tasks, key=lambda task: task == "PRETRAINING")
    return _IN_WORDS.get(task, task.lower().replace("_", " "))


_IN_WORDS = {
    "MASKED_LM": "masked language modeling, which sees the tokens after a gap",
    "SEQ_TO_SEQ_CAUSAL_LM": "sequence to sequence, an encoder with a decoder",
}


def _classes(mapping: str) -> set[str]:
    values = getattr(modeling_auto, mapping).values()
    return {name for value in values for name in (value if isinstance(value, tuple) else (value,))}


def _architectures(config: dict[str, Any]) -> list[str]:
    return [name for name in config.get("architectures") or [] if isinstance(name, str)]


def _names(folder: Path, name: str) -> str:
    return f"{folder}: config.json names {name}"


def _only(fix: str) -> str:
    return f"lamina trains only causal language models. Fix: {fix}."
