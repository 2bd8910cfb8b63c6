"""Whether a model folder holds a causal language model, by what its config.json names and by which weights it has.

transformers reads nearly any folder as a causal language model: a reward model's score head is left out, a missing head
is made of random numbers, and both are only logged. Here they are errors, and whatever else is left out is said.
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

# Of classes that transformers does not have itself: code of others, and old names of its own.
_LANGUAGE_MODEL = re.compile(r"(ForCausalLM|LMHeadModel|DoubleHeadsModel)$")

# The tasks of transformers' classes that a causal language model may do besides.
_WITH_OTHER_INPUTS = ("IMAGE_TEXT_TO_TEXT", "MULTIMODAL_LM")

_MADE_FROM = "name the language model that it was made from"
_OTHER = "name a causal language model"


def check_architecture(folder: Path) -> None:
    """Checks that config.json does not name a model of another kind.

    Raises:
        ModelError: It does: one that classifies, that fills masks, that embeds, that has an encoder, and so on.
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
                f"{_names(folder, name)}, a model without an output head, and modules.json says that sentence-"
                f"transformers makes embeddings with it. {_only(_MADE_FROM)}"
            )
        return  # whether it has a head all the same, its weights say
    if _takes_more(name):
        return  # whether transformers has a language model of it, reading it says
    task = _task(name)
    if task is not None:
        fix = _MADE_FROM if task.endswith(("classification", "answering")) else _OTHER
        raise ModelError(f"{_names(folder, name)}, a model for {task}. {_only(fix)}")
    raise ModelError(
        f"{_names(folder, name)}, which transformers does not know as a causal language model: read as one, it would "
        "be another model. Fix: name a causal language model; if it is one, let `architectures` in its config.json say "
        "so."
    )


def not_a_language_model(folder: Path) -> str:
    """What to say where transformers has no class of causal language models for a folder's config.json."""
    config = read_config(folder)
    kind, names = config.get("model_type"), _architectures(config)
    takes = f" ({names[0]}, which takes more than text)" if names and _takes_more(names[0]) else ""
    return (
        f"{folder}: transformers has no causal language model of the type {kind!r}{takes}, so it cannot be read as "
        f"one. {_only(_MADE_FROM)}"
    )


def check_weights(folder: Path, model: PreTrainedModel, missing: Iterable[str], extra: Iterable[str]) -> list[str]:
    """Checks that a model and the files that it was read from hold the same weights.

    Args:
        folder: Of the files.
        model: As it was read.
        missing: Names of weights that the files lack.
        extra: Names in the files that the model has no place for.

    Returns:
        What a user should know: parts that the files hold beside the language model and that are left out.

    Raises:
        ModelError: Weights are missing, or a layer's own weights would be left out.
    """
    lacking, left = sorted(missing), sorted(_without_constants(folder, extra))
    if lacking:
        raise ModelError(_missing(folder, model, lacking))
    inside = [name for name in left if _is_inside(name, model)]
    if inside:
        raise ModelError(
            f"{folder}: by their names, {len(inside)} weights of its files belong into the layers of "
            f"{type(model).__name__}, which by its config.json have no place for them (first: {inside[0]}); without "
            "them it would be another model. Fix: take config.json and weights from the same place; if these are of no "
            "use, let transformers write the folder without them: `AutoModelForCausalLM.from_pretrained(FOLDER)"
            ".save_pretrained(NEW)`."
        )
    config = read_config(folder)
    names = _architectures(config)
    notes = []
    if names and names[0] in _classes("MODEL_MAPPING_NAMES"):
        notes.append(
            f"config.json names {names[0]}, which has no output head; it is read as {type(model).__name__}, whose head "
            "is its embedding (tie_word_embeddings)."
        )
    elif names and type(model).__name__ not in names and _takes_more(names[0]):
        notes.append(
            f"config.json names {names[0]}; of it, {type(model).__name__} alone is read. What it has for images or "
            "sound is left out, also of what is written from it."
        )
    if left:
        notes.append(
            f"{len(left)} weights of its files have no place in {type(model).__name__} and are left out, also of what "
            f"is written from it (first: {left[0]})."
        )
    return notes


def _missing(folder: Path, model: PreTrainedModel, missing: list[str]) -> str:
    names = _architectures(read_config(folder))
    head = model.get_output_embeddings()
    of_head = {f"{name}.weight" for name, module in model.named_modules() if module is head}
    if set(missing) == of_head:
        what = f"config.json names {names[0]}, and " if names and names[0] in _classes("MODEL_MAPPING_NAMES") else ""
        return (
            f"{folder}: {what}its files hold no output head ({missing[0]}), so it gives hidden states and no "
            f"probabilities of tokens. {_only(_MADE_FROM)} If its embedding is its head too, set `tie_word_embeddings: "
            "true` in its config.json."
        )
    return (
        f"{folder}: {len(missing)} weights are missing from its files (first: {missing[0]}). "
        "Fix: fetch the model again; it is incomplete."
    )


def _without_constants(folder: Path, names: Iterable[str]) -> set[str]:
    """Without the masks and their single numbers that old releases of transformers saved beside weights."""
    left = set(names)
    for path in weight_files(folder) if left else ():
        with safe_open(path, "pt") as file:
            for name in left & set(file.keys()):
                shape = file.get_slice(name).get_shape()
                if not shape or (len(shape) == 4 and shape[:2] == [1, 1]):
                    left.remove(name)
    return left


def _is_inside(name: str, model: PreTrainedModel) -> bool:
    """Whether a weight's name is one of a decoder layer, or of one more of them."""
    places = {id(module): path for path, module in model.named_modules()}
    layers = [places[id(layer)] for layer in decoder_layers(model)]
    lists = {path.rpartition(".")[0] for path in layers}
    return any(re.match(rf"(.*\.)?{re.escape(path)}\.\d+\.", name) for path in lists)


def _is_language_model(name: str, config: dict[str, Any]) -> bool:
    custom = "AutoModelForCausalLM" in (config.get("auto_map") or {})
    return name in _classes("MODEL_FOR_CAUSAL_LM_MAPPING_NAMES") or bool(_LANGUAGE_MODEL.search(name)) or custom


def _takes_more(name: str) -> bool:
    """Whether a class takes images or sound beside text."""
    return any(name in _classes(f"MODEL_FOR_{task}_MAPPING_NAMES") for task in _WITH_OTHER_INPUTS)


def _task(name: str) -> str | None:
    """What transformers has a class for, in words: `sequence classification`."""
    found = [re.fullmatch(r"MODEL_FOR_(\w+)_MAPPING_NAMES", mapping) for mapping in vars(modeling_auto)]
    tasks = [match[1] for match in found if match and name in _classes(match[0])]
    if not tasks:
        return None
    # Many are named there for pretraining too, which says less.
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
