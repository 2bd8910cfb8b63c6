"""Builds the optimizer and the schedule that the configuration names."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, Protocol, cast

import torch
from torch import nn
from transformers import get_scheduler

from lamina import plugins
from lamina.config import TrainConfig
from lamina.config.optimizers import OPTIMIZERS
from lamina.errors import ConfigError, Problem
from lamina.progress import Notify

Schedule = Callable[[int], float]

# The number of a tensor's decoder layer in its name: the first one, since numbers of experts come after it.
_LAYER = re.compile(r"[.](\d+)[.]")


class OptimizerModule(Protocol):
    """What an optimizer's module defines."""

    def build(self, config: TrainConfig, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """Builds the optimizer.

        Args:
            config: Settings of training.
            groups: Parameter groups, each with `weight_decay`, `lr_factor` (LoRA+'s), `hidden` (whether they are
                matrices between hidden states) and `block` (the number of their decoder layer, or None).

        Raises:
            ConfigError: The optimizer's package is not installed, or it does not fit the trained tensors.
        """
        ...


def build_optimizer(
    config: TrainConfig,
    tensors: Mapping[str, nn.Parameter],
    fast: Collection[str] = (),
    vocabulary: Collection[str] = (),
    notify: Notify = lambda message: None,
) -> torch.optim.Optimizer:
    """Builds the optimizer that the configuration names.

    Args:
        config: The optimizer's name and settings.
        tensors: The trained tensors by name, float32.
        fast: Names of the tensors that LoRA+ gives a larger learning rate.
        vocabulary: Names of the tensors that are embeddings, or belong to the input embedding or the output head.
        notify: Called with a message if a paged optimizer cannot page.

    Raises:
        ConfigError: The optimizer does not fit the trained tensors, or its package is not installed.
    """
    if config.loraplus_lr_ratio is not None and not fast:
        message = "LoRA+ gives the B matrices of a low-rank method a larger learning rate, but this method has none."
        raise ConfigError(Problem("train.loraplus_lr_ratio", message, "remove it, or use a method such as lora"))
    name, unpaged = config.optim, OPTIMIZERS[config.optim].unpaged
    devices = {tensor.device.type for tensor in tensors.values()}
    if unpaged is not None and "cuda" not in devices:
        notify(f"{name}: there is no GPU memory to page, so {unpaged} is used, which computes the same")
        name = unpaged
    module = cast(OptimizerModule, plugins.load_member("optimizers", name))
    return module.build(config, _groups(config, tensors, fast, vocabulary))


def _groups(
    config: TrainConfig, tensors: Mapping[str, nn.Parameter], fast: Collection[str], vocabulary: Collection[str]
) -> list[dict[str, Any]]:
    """Builds the parameter groups, with `weight_decay` (matrices only), `lr_factor` (LoRA+), `hidden` and `block`.

    Muon, GaLore and APOLLO handle `hidden` matrices differently, and BAdam trains one `block` at a time; without it,
    `block` is None.
    """
    by_block = OPTIMIZERS[config.optim].blockwise
    alike: dict[tuple[float, float, bool, int | None], list[nn.Parameter]] = {}
    for name, tensor in tensors.items():
        matrix = tensor.ndim >= 2 and min(tensor.shape) > 1  # IA3's and AdaLoRA's vectors are stored as matrices
        decay = config.weight_decay if matrix else 0.0
        factor = config.loraplus_ratio if name in fast else 1.0
        hidden = matrix and tensor.ndim == 2 and name not in vocabulary
        layer = _LAYER.search(name) if by_block else None
        alike.setdefault((decay, factor, hidden, int(layer[1]) if layer else None), []).append(tensor)
    return [
        {"params": params, "weight_decay": decay, "lr_factor": factor, "hidden": hidden, "block": block}
        for (decay, factor, hidden, block), params in alike.items()
    ]


def build_schedule(config: TrainConfig, total_steps: int) -> Schedule:
    """Builds the learning rate as a function of the number of completed steps.

    The schedules are transformers' own. A function of the step has no state, so resuming cannot shift it.
    """
    warmup = config.warmup_steps or math.ceil(config.warmup_ratio * total_steps)
    unused = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=config.peak_learning_rate)
    scheduler = get_scheduler(
        config.lr_scheduler_type,
        unused,
        num_warmup_steps=warmup,
        num_training_steps=total_steps,
        scheduler_specific_kwargs=config.lr_scheduler_kwargs,
    )
    (factor,) = scheduler.lr_lambdas  # pyright: ignore[reportAttributeAccessIssue]
    return lambda step: config.peak_learning_rate * factor(step)
