"""Estimates how long a run takes, from one real micro-batch measured on this machine."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import nn
from transformers import PreTrainedModel

from lamina.compute.ops.sequence import Split, splitting
from lamina.data.batch import PACKED, Layout, build_units
from lamina.data.example import EncodedExample
from lamina.distributed.world import ALONE
from lamina.losses.base import Loss
from lamina.machine.seeding import kept_generators
from lamina.structure.head import Head


def measured_tokens_per_second(
    model: PreTrainedModel,
    head: Head,
    loss: Loss,
    parameters: Sequence[nn.Parameter],
    examples: Sequence[EncodedExample],
    layout: Layout = PACKED,
    split: Split | None = None,
) -> float:
    """Measures tokens per second of a forward and a backward over one micro-batch.

    On a GPU, where the first one compiles and loads kernels, measures a second one. On a CPU, the second one was 4%
    faster than the first (SmolLM2), which is no reason to start a run later.

    Restores the random state, and leaves no gradients, so that nothing changes; nor does whoever waits for gradients to
    arrive at the tensors, as DeepSpeed does, hear of these.

    Args:
        model: The model in training mode, inside `fusion.fast_path`.
        head: Decoder and output head of the model.
        loss: The loss.
        parameters: The adapter's tensors.
        examples: A micro-batch as in training.
        layout: How its documents are batched.
        split: How processes divide them.
    """
    (examples,) = loss.over_step(model, head, [examples], layout, ALONE)
    units = build_units(examples, layout)
    tokens = sum(batch.tokens for unit in units for batch in unit)
    if split is not None:
        units = [[batch.part(split.part, split.parts) for batch in unit] for unit in units]
    units = [[batch.to(model.device) for batch in unit] for unit in units]
    count = loss.count(examples)
    seconds = 0.0
    with kept_generators(model.device), splitting(split):
        for _ in range(2 if model.device.type == "cuda" else 1):
            began = time.perf_counter()
            for unit in units:
                mean = loss.compute(model, head, unit).total / count
                torch.autograd.grad(mean, parameters, allow_unused=True)
            if model.device.type == "cuda":
                torch.cuda.synchronize()
            seconds = time.perf_counter() - began
    return tokens / seconds
