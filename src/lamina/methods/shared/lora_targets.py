"""Selects what gets LoRA: linear layers, and parameters of other modules, such as a mixture's experts and its router.

`target_parameters` names parameters. In the families in which HF peft does, `target_modules` reaches experts and
router too: by `all-linear`, and by the names that their linear layers had in transformers 4 (`models/experts.py`). What
was two layers then, such as w1 and w3, is one parameter now, with the ranks of both together.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from lamina.config.methods.lora import LoraConfig
from lamina.errors import ConfigError, Problem, nearest
from lamina.methods.shared.lora_modules import is_wanted, lora_modules
from lamina.methods.shared.lora_parameters import Target
from lamina.methods.shared.targets import linear_layers, name_ends_with
from lamina.models.experts import merged_names, old_names
from lamina.models.weights import inside_layer, matrices

FIELD = "method.target_parameters"

# Initializations that need no decomposition of the weight, and no data.
_INITS = (True, False, "gaussian")


@dataclass(frozen=True)
class Chosen:
    """What gets LoRA.

    Attributes:
        linears: Names of linear layers, in the model's order.
        parameters: Names of parameters of other modules, in the model's order, each with how many linear layers of
            transformers 4 it stands for; its rank and lora_alpha are so many times the configured ones.
    """

    linears: list[str]
    parameters: Mapping[str, int]

    def in_module(self, name: str, config: LoraConfig) -> list[Target]:
        """Returns the targets among the parameters of the module `name`, in its order."""
        return [
            Target(each.rpartition(".")[2], rank_of(each, layers, config), scaling_of(each, layers, config), layers)
            for each, layers in self.parameters.items()
            if each.rpartition(".")[0] == name
        ]


def choose(model: PreTrainedModel, config: LoraConfig) -> Chosen:
    """Selects what gets LoRA in a model without adapters.

    Raises:
        ConfigError: A pattern selects nothing, or what cannot get LoRA with these settings.
    """
    found = matrices(model)
    by_modules, names = _by_old_names(model, config, found)
    reason = _unsupported(config)
    if reason and by_modules and config.everywhere:
        by_modules = {}  # a note says so (`shared/coverage.py`)
    named, weights = _by_parameter_names(model, config, found)
    parameters = {name: by_modules.get(name, 1) for name in found if name in by_modules or name in named}
    if reason and parameters:
        first = next(iter(parameters))
        message = f"{reason[0]} does not work on {first}, whose matrices are stacked in one tensor or have no layer."
        raise ConfigError(Problem(reason[1], message, reason[2]))
    patterns = [each for each in _listed(config) if each not in names]
    linears = set(weights)
    if names and isinstance(config.target_modules, list):
        linears |= {each for each in linear_layers(model) if any(name_ends_with(each, name) for name in names)}
    if config.everywhere or (isinstance(config.target_modules, str) and not names) or patterns:
        rest = config if not isinstance(config.target_modules, list) else _with_targets(config, patterns)
        linears |= set(lora_modules(model, rest))
    elif isinstance(config.target_modules, str):
        pattern = config.target_modules
        linears |= {each for each in linear_layers(model) if re.fullmatch(pattern, each) and is_wanted(each, config)}
    return Chosen([name for name, _ in model.named_modules() if name in linears], parameters)


def rank_of(parameter: str, layers: int, config: LoraConfig) -> int:
    """Returns the rank on a parameter that stands for so many linear layers."""
    return config.rank_of(parameter) * (1 if config.has_rank_of_its_own(parameter) else layers)


def scaling_of(parameter: str, layers: int, config: LoraConfig) -> float:
    """Returns s on a parameter that stands for so many linear layers."""
    alpha = config.alpha_of(parameter) * (1 if config.has_alpha_of_its_own(parameter) else layers)
    return config.scaling_with(rank_of(parameter, layers, config), alpha)


def spelled_out(model: PreTrainedModel, config: LoraConfig, chosen: Chosen) -> LoraConfig:
    """Returns the configuration with names that select the same in peft, which takes some names for those of experts.

    Args:
        model: The model, with or without its adapter.
        config: The configuration.
        chosen: What it selected.
    """
    taken = old_names(model)
    clashing = [name for name in chosen.linears if name.rpartition(".")[2] in taken]
    if not chosen.parameters and not clashing:
        return config
    weights = {f"{name}.weight": config.rank_of(name) for name in clashing}
    alphas = {f"{name}.weight": config.alpha_of(name) for name in clashing}
    for name, layers in chosen.parameters.items():
        weights[name] = rank_of(name, layers, config)
        alphas[name] = config.alpha_of(name) * (1 if config.has_alpha_of_its_own(name) else layers)
    short = _short_names(model, weights)
    linears = [name for name in chosen.linears if name not in clashing]
    changes: dict[str, Any] = {
        "target_modules": _short_linears(model, linears, taken),
        "target_parameters": sorted(set(short.values())),
        "rank_pattern": {**_patterns(weights, short, config.r), **config.rank_pattern},
        "alpha_pattern": {**_patterns(alphas, short, config.lora_alpha), **config.alpha_pattern},
        "exclude_modules": None,
        "layers_to_transform": None,
        "layers_pattern": None,
    }
    return config.model_copy(update=changes)


def _listed(config: LoraConfig) -> list[str]:
    return config.target_modules if isinstance(config.target_modules, list) else []


def _with_targets(config: LoraConfig, names: list[str]) -> LoraConfig:
    return config.model_copy(update={"target_modules": names})


def _by_old_names(
    model: PreTrainedModel, config: LoraConfig, found: Collection[str]
) -> tuple[dict[str, int], set[str]]:
    """Selects parameters by `target_modules`: how many layers each stands for, and the patterns that select any."""
    selected: dict[str, set[str]] = {}
    patterns: set[str] = set()
    for old, new in old_names(model).items():
        for name in found:
            holder = name.removesuffix(f".{new}")
            if holder == name:
                continue
            names = (f"{holder}.{old}", f"{holder}.0.{old}")
            used = _selecting(config, names)
            if used and all(is_wanted(each, config) for each in (*names, name, name.rpartition(".")[0])):
                selected.setdefault(name, set()).add(old)
                patterns.update(used)
    for new, together in merged_names(model).items():
        for name, olds in selected.items():
            if name.endswith(f".{new}") and len(olds) < len(together):
                missing = ", ".join(sorted(set(together) - olds))
                message = f"it selects {', '.join(sorted(olds))}, which is one parameter with {missing} in {name}."
                raise ConfigError(Problem("method.target_modules", message, f"name {missing} too"))
    return {name: len(olds) for name, olds in selected.items()}, patterns


def _selecting(config: LoraConfig, names: Iterable[str]) -> set[str]:
    """The patterns of `target_modules` that select one of the names."""
    if config.everywhere:
        return {"all-linear"}
    if isinstance(config.target_modules, str):
        pattern = config.target_modules
        return {pattern} if any(re.fullmatch(pattern, name) for name in names) else set()
    return {each for each in _listed(config) if any(name_ends_with(name, each) for name in names)}


def _by_parameter_names(
    model: PreTrainedModel, config: LoraConfig, found: Collection[str]
) -> tuple[set[str], set[str]]:
    """Selects by `target_parameters`: parameters, and linear layers whose weight is named."""
    weights = {f"{name}.weight": name for name in linear_layers(model)}
    parameters: set[str] = set()
    linears: set[str] = set()
    for pattern in config.target_parameters or []:
        named = {name for name in found if name_ends_with(name, pattern)}
        layers = {linear for name, linear in weights.items() if name_ends_with(name, pattern)}
        if not named and not layers:
            ends = list(dict.fromkeys(inside_layer(name) for name in (*found, *weights)))
            shown = ", ".join(ends[:12]) + (", ..." if len(ends) > 12 else "")
            message = f"{pattern!r} matches no weight with rows and columns of {type(model).__name__}; it has {shown}."
            raise ConfigError(Problem(FIELD, message, nearest(pattern, ends)))
        parameters |= named
        linears |= layers
    return parameters, linears


def _unsupported(config: LoraConfig) -> tuple[str, str, str] | None:
    """What does not work on parameters: the setting in words, its field, and the fix; None if all of it works."""
    leave = "or leave experts and router out of the targets"
    if config.use_dora:
        return "DoRA", "method.use_dora", f"use `type: lora` with `use_dora: false`, {leave}"
    if config.init_lora_weights not in _INITS:
        what = f"init_lora_weights: {config.init_lora_weights}"
        return what, "method.init_lora_weights", f"use true, gaussian or false, {leave}"
    return None


def _short_names(model: PreTrainedModel, names: Collection[str]) -> dict[str, str]:
    """Shortens the names of weights to those inside a layer, where these select no other weight."""
    bare = {_bare(name) for name, parameter in model.named_parameters() if parameter.ndim in (2, 3)} | set(names)
    shorter = {name: inside_layer(name) for name in names}
    return {
        name: short if all(other in names for other in bare if name_ends_with(other, short)) else name
        for name, short in shorter.items()
    }


def _bare(name: str) -> str:
    """Removes from a parameter's name what an adapter's modules put around the base's."""
    return ".".join(part for part in name.split(".") if part not in ("base", "frozen", "own"))


def _short_linears(model: PreTrainedModel, names: list[str], taken: Collection[str]) -> list[str]:
    """Shortens names to their last parts where these select no other layer."""
    short = {name.rpartition(".")[2] for name in names}
    others = [name for name, _ in model.named_modules() if name not in names]
    is_free = not any(
        name_ends_with(_bare(other), end) and _bare(other) not in names for other in others for end in short
    )
    return sorted(short) if is_free else names


def _patterns(values: Mapping[str, Any], short: Mapping[str, str], usual: float) -> dict[str, Any]:
    """Builds the entries of a pattern for weights whose value is not the usual one."""
    by_short: dict[str, set[Any]] = {}
    for name, value in values.items():
        by_short.setdefault(short[name], set()).add(value)
    return {
        (short[name] if len(by_short[short[name]]) == 1 else name): value
        for name, value in values.items()
        if by_short[short[name]] != {usual}
    }
