"""Reports which share of a model's weights is in adapted layers, and which layers `all-linear` leaves out."""

from __future__ import annotations

import itertools
import re
from collections.abc import Container, Iterable
from dataclasses import dataclass
from typing import Any

from lamina.compute.ops.adapter import AdapterLinear
from lamina.compute.weights import FrozenLinear, freeze_linear
from lamina.config import MethodConfig
from lamina.errors import ConfigError, Problem
from lamina.methods.shared.base import Injection, find_method
from lamina.methods.shared.targets import short_targets, width
from lamina.models.weights import (
    OUTSIDE,
    listed,
    stacked_weights,
    summed_up,
    way_to_stacked,
    weights_by_module,
)
from lamina.structure.reach import modules_out_of_reach


@dataclass(frozen=True)
class Coverage:
    """How much of a model an adapter covers. Embeddings and output head are not counted.

    Attributes:
        weights: Number of weights in the model.
        adapted: Number of weights in the modules that the adapter changes.
        stacked: Number of weights in each unadapted parameter that stacks several matrices in one tensor.
        narrow: Linear layers that `all-linear` leaves out because their smaller side is below the rank.
        uncalled: Linear layers (or other modules, where the method adapts those) that are left out because they do not
            run on a text (`structure/reach.py`): their number by outermost module without an adapter.
        way: A `method:` that adapts the stacked weights too; empty if there are none.
        everywhere: Whether `target_modules` is `all-linear`.
    """

    weights: int
    adapted: int
    stacked: dict[str, int]
    narrow: list[str]
    uncalled: dict[str, int]
    way: str
    everywhere: bool

    @property
    def share(self) -> float:
        """The share of weights in modules that the adapter changes."""
        return self.adapted / max(self.weights, 1)

    def notes(self) -> list[str]:
        """Lists notes for the user on what `all-linear` leaves out; empty if it is only the output head."""
        notes = []
        if self.stacked and self.everywhere:
            share = sum(self.stacked.values()) / self.weights
            notes.append(
                f"target_modules: all-linear leaves out weights that are stacked in one tensor, such as a mixture's "
                f"experts: {listed(summed_up(self.stacked), 'weight')}. They are {share:.1%} of the weights {OUTSIDE}; "
                f"the adapter covers {self.share:.1%}. To adapt them too: {self.way}."
            )
        if self.narrow:
            what = listed(summed_up(dict.fromkeys(self.narrow, 1)), "layer", most=20)
            notes.append(f"target_modules: all-linear leaves out layers that are narrower than the rank: {what}.")
        if self.uncalled:
            what = listed(summed_up(self.uncalled), "module")
            notes.append(f"Left out, since they are not called when the model runs over a text: {what}.")
        return notes

    def as_json(self) -> dict[str, Any]:
        """Converts to plain data, with layers summarized."""
        return {
            "outside_embeddings_and_head": self.weights,
            "adapted": self.adapted,
            "left_out": {
                "stacked": summed_up(self.stacked),
                "narrower_than_the_rank": self.narrow,
                "not_called": self.uncalled,
            },
        }


def find_coverage(injection: Injection) -> Coverage:
    """Computes the coverage of an attached adapter."""
    model, config = injection.model, injection.config
    adapters = {id(t) for layer in injection.layers.values() for t in layer.parameters() if t.requires_grad}
    adapters |= {id(tensor) for tensor in injection.saved_tensors().values()}
    weights = weights_by_module(model, without=adapters)
    changed = {name for name in injection.layers if name}
    untouched = {f"{name}.{key}": n for name, layer in injection.layers.items() for key, n in layer.untouched().items()}
    # Inside the modules of the adapter, the base's own stand in `base`.
    names = {name: name.replace(".base.", ".") for name in stacked_weights(model)}
    stacked = {
        names[name]: count
        for name, count in stacked_weights(model).items()
        if not _in(name, changed) or names[name] in untouched
    }
    left_out = left_out_linears(injection) if config.everywhere else {}
    narrow = [name for name, linear in left_out.items() if config.narrowest(name) > width(linear)]
    return Coverage(
        weights=sum(weights.values()),
        adapted=sum(count for name, count in weights.items() if _in(name, changed)) - sum(untouched.values()),
        stacked=stacked,
        narrow=narrow,
        uncalled=_outermost([*injection.left_out, *(name for name in left_out if name not in narrow)], changed),
        way=way_to_stacked(model) if stacked else "",
        everywhere=config.everywhere,
    )


def check_reach(injection: Injection) -> None:
    """Checks that every linear layer with an adapter runs on a text; others would never be trained.

    Raises:
        ConfigError: A layer does not; the message names such layers, and how to exclude them.
    """
    linears = [name for name, layer in injection.layers.items() if isinstance(layer, AdapterLinear)]
    if not linears or injection.config.everywhere:  # `all-linear` selects only layers that run
        return
    silent = modules_out_of_reach(injection.model)
    found = [name for name in linears if name in silent]
    if not found:
        return
    what = listed(summed_up(dict.fromkeys(found, 1)), "layer")
    message = f"selects linear layers that are not called when the model runs over a text: {what}."
    fix = "use all-linear, which leaves them out"
    if injection.config.takes("exclude_modules"):
        tops = sorted({_top(name, silent) for name in found})
        fix += f", or method.exclude_modules='({'|'.join(map(re.escape, tops))})(\\..*)?'"
    raise ConfigError(Problem("method.target_modules", message, fix))


def left_out_linears(injection: Injection) -> dict[str, FrozenLinear]:
    """Finds the linear layers that `all-linear` did not select, without the head and those the user excluded."""
    model, config = injection.model, injection.config
    method, head = find_method(config.type), model.get_output_embeddings()
    found: dict[str, FrozenLinear] = {}
    for name, module in model.named_modules():
        linear = freeze_linear(module)
        if linear is None or module is head or _in(name, injection.layers) or method.leaves_out(config, name):
            continue
        found[name] = linear
    return found


def with_names(injection: Injection, config: MethodConfig) -> MethodConfig:
    """Returns the configuration to save, with module names if `all-linear` could select other modules on loading.

    Args:
        injection: The adapter.
        config: The configuration that it would be saved with.
    """
    if not config.everywhere or find_method(config.type).plan_loftq(config) is not None:
        return config  # the cache finds a base quantized with LoftQ by the original settings
    linears = {name: layer for name, layer in injection.layers.items() if isinstance(layer, AdapterLinear)}
    wider = any(config.narrowest(name) > width(layer.frozen) for name, layer in linears.items())
    if not wider and not left_out_linears(injection):
        return config
    return config.model_copy(update={"target_modules": short_targets(injection.model, list(linears))})


def _outermost(names: Iterable[str], changed: Iterable[str]) -> dict[str, int]:
    """Counts the names by the outermost module around them that contains no changed module."""
    holders = {prefix for name in changed for prefix in itertools.accumulate(name.split("."), "{}.{}".format)}
    found: dict[str, int] = {}
    for name in names:
        outermost = next(p for p in itertools.accumulate(name.split("."), "{}.{}".format) if p not in holders)
        found[outermost] = found.get(outermost, 0) + 1
    return found


def _top(name: str, silent: set[str]) -> str:
    """Finds the outermost module around a silent one that is silent too."""
    return next(prefix for prefix in itertools.accumulate(name.split("."), "{}.{}".format) if prefix in silent)


def _in(name: str, modules: Container[str]) -> bool:
    """Whether a name is one of the modules, or inside one of them."""
    return any(prefix in modules for prefix in itertools.accumulate(name.split("."), "{}.{}".format))
