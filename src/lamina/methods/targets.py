"""Which modules of a model an adapter goes on, and putting adapter layers in their places."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

from torch import nn
from transformers import PreTrainedModel

from lamina.errors import ConfigError, Problem, nearest
from lamina.methods.base import AdapterLinear, set_module
from lamina.quantization import FrozenLinear, freeze_linear

FIELD = "method.target_modules"


def find_targets(model: PreTrainedModel, target_modules: str | list[str]) -> list[str]:
    """Names of the linear modules that the patterns select, in the model's order.

    Args:
        model: A model without adapters.
        target_modules: `all-linear` (every linear layer but the output head), a list of names (a module matches if its
            name is one of them or ends in `.` and one of them), or a regular expression over whole names.

    Raises:
        ConfigError: A pattern matches nothing, or something that is no linear layer.
    """
    linears = {name: module for name, module in model.named_modules() if freeze_linear(module) is not None}
    if target_modules == "all-linear":
        head = model.get_output_embeddings()
        return [name for name, module in linears.items() if module is not head]
    return match_targets(model, target_modules, linears, "linear layer", "use one of them, or all-linear")


def match_targets(
    model: PreTrainedModel, target_modules: str | list[str], candidates: Mapping[str, nn.Module], kind: str, fix: str
) -> list[str]:
    """Names of the candidates that the patterns select, in the model's order.

    Args:
        model: A model without adapters.
        target_modules: A list of names, or a regular expression, as for `find_targets`.
        candidates: The modules that may be selected, by name, in the model's order.
        kind: What they are, in a word or two, for messages.
        fix: What to do where a pattern matches nothing, for messages.

    Raises:
        ConfigError: A pattern matches nothing, or something that is no candidate.
    """
    if isinstance(target_modules, str):
        matched = [name for name, _ in model.named_modules() if re.fullmatch(target_modules, name)]
        chosen = [name for name in matched if name in candidates]
        names = [name for name in re.split(r"[\s,]+", target_modules) if name]
        if (
            names
            and not matched
            and all(any(_ends_with(candidate, name) for candidate in candidates) for name in names)
        ):
            message = f"{target_modules!r} is one string, and so a regular expression over whole names; none is so."
            raise ConfigError(Problem(FIELD, message, f"write a list of names: [{', '.join(names)}]"))
        if not chosen:
            raise ConfigError(_no_match(model, target_modules, candidates, matched, kind, fix))
        return chosen
    problems, chosen_names = [], set()
    for pattern in target_modules:
        matched = [name for name, _ in model.named_modules() if _ends_with(name, pattern)]
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
    """Puts an adapter layer in the place of each named module.

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
    """The last parts of the names where they select just these modules (as peft matches them), else the whole names."""
    short = sorted({name.rpartition(".")[2] for name in names})
    selected = {name for name, _ in model.named_modules() if any(_ends_with(name, part) for part in short)}
    return short if selected == set(names) else names


def _ends_with(name: str, pattern: str) -> bool:
    return name == pattern or name.endswith(f".{pattern}")


def _no_match(
    model: PreTrainedModel, pattern: str, candidates: Iterable[str], others: list[str], kind: str, fix: str
) -> Problem:
    names = sorted({name.rpartition(".")[2] for name in candidates})
    if others:
        found = type(model.get_submodule(others[0])).__name__
        return Problem(
            FIELD, f"{pattern!r} matches {others[0]}, a {found}, which is no {kind}.", f"use {', '.join(names)}"
        )
    return Problem(
        FIELD,
        f"{pattern!r} matches no module of {type(model).__name__}; its {kind}s are {', '.join(names)}.",
        nearest(pattern, names) or fix,
    )
