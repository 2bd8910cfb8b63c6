"""Builds the optimizer and the schedule that the configuration names."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping

import torch
from torch import nn
from transformers import get_scheduler

from lamina.config import TrainConfig

Schedule = Callable[[int], float]


def build_optimizer(
    config: TrainConfig, tensors: Mapping[str, nn.Parameter], fast: Collection[str] = ()
) -> torch.optim.Optimizer:
    """torch's AdamW over float32 masters, in one fused pass. Weight decay is for matrices only.

    Args:
        config: Which optimizer, and its settings.
        tensors: What is trained, by name.
        fast: Names of those that LoRA+ gives a larger learning rate.
    """
    parameters = list(tensors.values())
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.peak_learning_rate,
        betas=(config.adam_beta1, config.adam_beta2),
        eps=config.adam_epsilon,
        fused=True,
    )


def build_schedule(config: TrainConfig, total_steps: int) -> Schedule:
    """The learning rate as a function of the steps already taken.

    The shapes are transformers' own. A function of the step alone has no state to save, so resume cannot shift it.
    """
    warmup = config.warmup_steps or math.ceil(config.warmup_ratio * total_steps)
    unused = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=config.peak_learning_rate)
    scheduler = get_scheduler(config.lr_scheduler_type, unused, num_warmup_steps=warmup, num_training_steps=total_steps)
    (factor,) = scheduler.lr_lambdas  # pyright: ignore[reportAttributeAccessIssue]
    return lambda step: config.peak_learning_rate * factor(step)
