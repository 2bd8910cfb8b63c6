"""Selects the modules of a model that get an adapter, and replaces them by adapter layers."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

from torch import nn
from transformers import PreTrainedModel

from lamina.compute.ops.adapter import AdapterLinear, set_module
from lamina.compute.weights import FrozenLinear, freeze_linear
from lamina.errors import ConfigError, Problem, nearest
from lamina.models.weights import inside_layer, stacked_weights, way_to_stacked
from lamina.structure.reach import modules_out_of_reach

FIELD = "method.target_modules"

LINEAR = "linear layer"

_STACKED = "Weights that are stacked in one tensor, such as those of experts, are named by LoRA's `target_parameters`."


def find_targets(
    model: PreTrainedModel,
    target_modules: str | list[str],
    narrowest: Callable[[str], int] = lambda name: 1,
    embedding: bool = False,
) -> list[str]:
    """Finds the linear modules that the patterns select: their names, in the model's order.

    Args:
        model: A model without adapters.
        target_modules: A list of names (a module matches if its name is one of them or ends in `.` and one of them), a
            regular expression over whole names, or `all-linear`: every linear layer except the output head, layers that
            do not run on a text, and layers that are too narrow.
        narrowest: For `all-linear`: the minimum of in_features and out_features that the layer of a name must have.
        embedding: Whether a pattern may also select the input embedding. `all-linear` never does.

    Raises:
        ConfigError: A pattern matches nothing, or a module that is not a linear layer; or no layer is left.
    """
    linears = linear_layers(model)
    if target_modules != "all-linear":
        allowed = linears
        if embedding:
            tokens = model.get_input_embeddings()
            allowed = {name: m for name, m in model.named_modules() if name in linears or m is tokens}
        return match_targets(model, target_modules, allowed, LINEAR, "use one of them, or all-linear")
    called = _called(model, linears)
    chosen = [name for name, linear in called.items() if narrowest(name) <= width(linear)]
    if not chosen:
        raise ConfigError(_nothing_left(model, called, narrowest))
    return chosen


def width(linear: FrozenLinear) -> int:
    """Returns the smaller of a layer's in_features and out_features."""
    return min(linear.in_features, linear.out_features)


def match_targets(
    model: PreTrainedModel, target_modules: str | list[str], candidates: Mapping[str, nn.Module], kind: str, fix: str
) -> list[str]:
    """Finds the candidates that the patterns select: their names, in the model's order.

    Args:
        model: A model without adapters.
        target_modules: A list of names, or a regular expression, as for `find_targets`.
        candidates: The modules that may be selected, by name, in the model's order.
        kind: What the candidates are, for messages, such as "linear layer".
        fix: What to do if a pattern matches nothing, for messages.

    Raises:
        ConfigError: A pattern matches nothing, or a module that is not a candidate.
    """
    if isinstance(target_modules, str):
        matched = [name for name, _ in model.named_modules() if re.fullmatch(target_modules, name)]
        chosen = [name for name in matched if name in candidates]
        names = [name for name in re.split(r"[\s,]+", target_modules) if name]
        if (
            names
            and not matched
            and all(any(name_ends_with(candidate, name) for candidate in candidates) for name in names)
        ):
            message = f"{target_modules!r} is one string, so it is a regular expression over whole names; none matches."
            raise ConfigError(Problem(FIELD, message, f"write a list of names: [{', '.join(names)}]"))
        if not chosen:
            raise ConfigError(_no_match(model, target_modules, candidates, matched, kind, fix))
        return chosen
    problems, chosen_names = [], set()
    for pattern in target_modules:
        matched = [name for name, _ in model.named_modules() if name_ends_with(name, pattern)]
        others = [name for name in matched if name not in candidates]
        if not matched or others:
            problems.append(_no_match(model, pattern, candidates, others, kind, fix))
        chosen_names.update(matched)
    if problems:
        raise ConfigError(problems)
    return [name for name in candidates if name in chosen_names]


def replace_linears(
    model: PreTrainedModel, names: Iterable[str], build: Callable[[FrozenLinear], AdapterLinear]
) -> dict[str, AdapterLinear]:
    """Replaces each named module by an adapter layer.

    Returns:
        The new layers by name.
    """
    layers = {}
    for name in names:
        frozen = freeze_linear(model.get_submodule(name))
        assert frozen is not None, name
        layers[name] = build(frozen)
        set_module(model, name, layers[name])
    return layers


def short_targets(model: PreTrainedModel, names: list[str]) -> list[str]:
    """Shortens names to their last parts if these select exactly the same modules (in peft's matching)."""
    short = sorted({name.rpartition(".")[2] for name in names})
    selected = {name for name, _ in model.named_modules() if any(name_ends_with(name, part) for part in short)}
    return short if selected == set(names) else names


def linear_layers(model: PreTrainedModel) -> dict[str, FrozenLinear]:
    """Finds the linear layers of a model without adapters, by name, in its order."""
    found = ((name, freeze_linear(module)) for name, module in model.named_modules())
    return {name: linear for name, linear in found if linear is not None}


def _called(model: PreTrainedModel, linears: Mapping[str, FrozenLinear]) -> dict[str, FrozenLinear]:
    head, silent = model.get_output_embeddings(), modules_out_of_reach(model)
    return {name: linear for name, linear in linears.items() if linear.base is not head and name not in silent}


def _nothing_left(
    model: PreTrainedModel, called: Mapping[str, FrozenLinear], narrowest: Callable[[str], int]
) -> Problem:
    widest = max(called, key=lambda name: width(called[name]), default=None)
    if widest is None:
        fix = f"use {way_to_stacked(model)}" if stacked_weights(model) else "use a method without target_modules"
        return Problem(FIELD, f"{type(model).__name__} has no linear layer except its output head.", fix)
    message = f"every linear layer is narrower than the rank {narrowest(widest)}; the widest is {widest} ("
    return Problem(FIELD, f"{message}{width(called[widest])}).", f"use a rank of at most {width(called[widest])}")


def name_ends_with(name: str, pattern: str) -> bool:
    """Whether a name is the pattern, or ends in it after a dot, as HF peft matches names."""
    return name == pattern or name.endswith(f".{pattern}")


def _no_match(
    model: PreTrainedModel, pattern: str, candidates: Iterable[str], others: list[str], kind: str, fix: str
) -> Problem:
    embeddings = {name for name in candidates if isinstance(model.get_submodule(name), nn.Embedding)}
    names = sorted({name.rpartition(".")[2] for name in candidates if name not in embeddings})
    stacked = stacked_weights(model) if kind == LINEAR else {}
    if others:
        found = type(model.get_submodule(others[0])).__name__
        message = f"{pattern!r} matches {others[0]}, a {found}, which is not a {kind}."
        if any(name.startswith(f"{other}.") for other in others for name in stacked):
            return Problem(FIELD, f"{message} {_STACKED}", f"use {way_to_stacked(model)}")
        return Problem(FIELD, message, f"use {', '.join(names)}")
    message = f"{pattern!r} matches no module of {type(model).__name__}; its {kind}s are {', '.join(names)}."
    if not stacked:
        return Problem(FIELD, message, nearest(pattern, names) or fix)
    where = ", ".join(dict.fromkeys(map(inside_layer, stacked)))
    way = way_to_stacked(model)
    return Problem(
        FIELD,
        f"{message} It also has {where}, which are not modules. {_STACKED}",
        f"for these, {way}; for a linear layer, {fix}",
    )
