"""Selects the modules that get LoRA and those that are trained as a whole, and finds settings without effect.

Names are matched as HF peft matches them, so that a saved configuration selects the same modules in peft.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from transformers import PreTrainedModel

from lamina.compute.ops.adapter import AdapterModule
from lamina.compute.weights import PackedLinear
from lamina.config.methods.lora import LoraConfig, matching_key
from lamina.errors import ConfigError, Problem, nearest
from lamina.methods.shared.targets import find_targets
from lamina.structure.reach import modules_out_of_reach


def lora_modules(model: PreTrainedModel, config: LoraConfig) -> list[str]:
    """Selects the modules that get LoRA, linear layers and the embedding: their names, in the model's order.

    Raises:
        ConfigError: A pattern selects nothing, or a module that is neither, or all that it selects is excluded.
    """
    found = find_targets(model, config.target_modules, config.narrowest, embedding=True)
    chosen = [name for name in found if is_wanted(name, config)]
    if not chosen:
        raise ConfigError(
            Problem(
                "method.target_modules",
                f"of the {len(found)} modules that it selects (first: {found[0]}), exclude_modules, modules_to_save "
                "and layers_to_transform leave none.",
                "leave out fewer of them",
            )
        )
    return chosen


def is_wanted(name: str, config: LoraConfig) -> bool:
    """Whether the other settings keep a module that `target_modules` selects."""
    exact = config.target_modules if isinstance(config.target_modules, list) else []
    return not _is_excluded(name, config) and (name in exact or layer_index(name, config) in _layers(config))


def trained_modules(model: PreTrainedModel, config: LoraConfig, adapted: Collection[str]) -> list[str]:
    """Selects the modules of `modules_to_save`: their names, in the model's order.

    Args:
        model: A model without adapters.
        config: The configuration.
        adapted: The result of `lora_modules`.

    Raises:
        ConfigError: A module has no weights or packed weights, is inside another one, or contains an adapted module.
    """
    ends = tuple(config.modules_to_save or ())
    chosen = [name for name, _ in model.named_modules() if name and name.endswith(ends)] if ends else []
    for name in chosen:
        inner = next((other for other in (*chosen, *adapted) if _is_inside(other, name)), None)
        if name in adapted or inner is not None:
            message = f"it selects {name}, which {'gets LoRA' if name in adapted else f'holds {inner}'} as well."
            raise ConfigError(Problem("method.modules_to_save", message, "give longer names"))
        parts = model.get_submodule(name).named_modules(prefix=name)
        packed = next((part for part, module in parts if isinstance(module, PackedLinear)), None)
        if packed is not None:
            message = f"it selects {name}, but {packed} is stored packed and frozen, so it cannot be trained."
            fix = f"leave it as it is (`quantization.modules_to_not_convert: [{name}]`; `offload: false`)"
            raise ConfigError(Problem("method.modules_to_save", message, fix))
        if next(model.get_submodule(name).parameters(), None) is None:
            message = f"it selects {name}, which has no weights."
            raise ConfigError(Problem("method.modules_to_save", message, "name modules with weights"))
    return chosen


def bias_modules(model: PreTrainedModel, others: Collection[str]) -> list[str]:
    """Finds the modules with a bias, except `others`, modules inside them, and modules that do not run on a text."""
    silent = modules_out_of_reach(model)
    return [
        name
        for name, module in model.named_modules()
        if name not in silent
        and "bias" in dict(module.named_parameters(recurse=False))
        and not any(name == other or _is_inside(name, other) for other in others)
    ]


def layer_index(name: str, config: LoraConfig) -> int | None:
    """Finds the index of a module's decoder layer: -1 outside of layers, None if `layers_to_transform` is not set."""
    if config.layers_to_transform is None:
        return None
    patterns = [config.layers_pattern] if isinstance(config.layers_pattern, str) else config.layers_pattern
    # A lazy match, for the first number rather than that of an expert inside a layer.
    starts = [rf"(?:.*?\.)?{pattern}" for pattern in patterns] if patterns else [r".*?\.[^.]*"]
    matches = (re.match(rf"{start}\.(\d+)\.", name) for start in starts)
    return next((int(match.group(1)) for match in matches if match), -1)


def useless_settings(model: PreTrainedModel, config: LoraConfig, adapted: Collection[str]) -> list[Problem]:
    """Finds settings that select nothing, each with its problem.

    Args:
        model: The model, with or without its adapter.
        config: The configuration.
        adapted: Names of the modules with LoRA.
    """
    problems = []
    last_names = sorted({name.rpartition(".")[2] for name in adapted})
    for field, patterns in (("rank_pattern", config.rank_pattern), ("alpha_pattern", config.alpha_pattern)):
        for key in patterns:
            if not any(matching_key([key], name) for name in adapted):
                message = f"{key!r} matches no module with LoRA; their names end in {', '.join(last_names)}."
                problems.append(Problem(f"method.{field}", message, nearest(key, last_names)))
    if config.layers_to_transform is not None:
        there = {layer_index(name, config) for name in adapted} - {-1}
        for index in sorted(_layers(config) - there, key=str):
            message = f"layer {index} has no module that target_modules selects, or does not exist."
            problems.append(Problem("method.layers_to_transform", message, "count from 0, and check layers_pattern"))
    names = [name for name, _ in model.named_modules() if name]
    excluded = config.exclude_modules
    for pattern in [excluded] if isinstance(excluded, str) else excluded or []:
        regex = pattern if isinstance(excluded, str) else rf"(.*\.)?{re.escape(pattern)}"
        if not any(re.fullmatch(regex, name) for name in names):
            problems.append(Problem("method.exclude_modules", f"{pattern!r} matches no module.", "check its name"))
    for end in config.modules_to_save or []:
        if not any(name.endswith(end) for name in names):
            problems.append(Problem("method.modules_to_save", f"no module's name ends in {end!r}.", "check its name"))
    if config.ensure_weight_tying and (ends := _untied(model)):
        problems.append(Problem("method.ensure_weight_tying", ends, "set it to false"))
    return problems


def _untied(model: PreTrainedModel) -> str:
    """Why nothing is tied; empty if the head is adapted together with the embedding."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if isinstance(embedding, AdapterModule) and isinstance(head, AdapterModule):
        return "" if embedding.base_module.weight is head.base_module.weight else _not_tied(model)  # pyright: ignore[reportOptionalMemberAccess]
    if getattr(head, "weight", None) is not getattr(embedding, "weight", None):
        return _not_tied(model)
    return "is true, but neither target_modules nor modules_to_save name the embedding or the head."


def _not_tied(model: PreTrainedModel) -> str:
    return f"is true, but the head of {type(model).__name__} is not tied to its embedding."


def no_bias(model: PreTrainedModel, config: LoraConfig) -> Problem:
    """Describes the error that `bias` asks to train biases and there are none."""
    where = type(model).__name__ if config.bias == "all" else "the adapted layers"
    return Problem("method.bias", f"{config.bias!r} trains biases, but {where} have none.", "set it to none")


def _layers(config: LoraConfig) -> set[int | None]:
    wanted = config.layers_to_transform
    return set(wanted) if isinstance(wanted, list) else {wanted}


def _is_excluded(name: str, config: LoraConfig) -> bool:
    excluded = config.exclude_modules
    if isinstance(excluded, str):
        if re.fullmatch(excluded, name):
            return True
    elif any(name == end or name.endswith(f".{end}") for end in excluded or []):
        return True
    return any(re.match(rf"(^|.*\.){part}($|\..*)", name) for part in config.modules_to_save or [])


def _is_inside(name: str, other: str) -> bool:
    return name.startswith(f"{other}.")
