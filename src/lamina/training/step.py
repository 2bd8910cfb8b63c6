"""One optimizer step, and one evaluation pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from lamina.data.batch import PACKED, Layout, build_batches
from lamina.data.example import EncodedExample
from lamina.losses.cross_entropy import cross_entropy
from lamina.methods.base import Hooks
from lamina.models.head import Head
from lamina.optim import LayerwiseGaloreAdamW

NO_HOOKS = Hooks()


class StepAbandoned(Exception):
    """Asked to stop in the middle of a step; nothing was changed."""


@dataclass(frozen=True)
class StepResult:
    """What a step did.

    Attributes:
        loss: Mean over the supervised tokens of the whole step.
        grad_norm: Norm of the gradient before clipping.
        tokens: Real tokens.
        supervised_tokens: Those in the loss.
        finite: Whether loss and gradient were finite; if not, nothing was changed.
    """

    loss: float
    grad_norm: float
    tokens: int
    supervised_tokens: int
    finite: bool


def training_step(
    model: PreTrainedModel,
    head: Head,
    optimizer: torch.optim.Optimizer,
    parameters: Sequence[nn.Parameter],
    micro_batches: Sequence[Sequence[EncodedExample]],
    learning_rate: float,
    max_grad_norm: float,
    step: int = 1,
    hooks: Hooks = NO_HOOKS,
    stop: Callable[[], bool] = lambda: False,
    check: Callable[[], None] = lambda: None,
    layout: Layout = PACKED,
    moving: Callable[[], None] = lambda: None,
) -> StepResult:
    """Takes one step over micro-batches, whose losses are divided by the supervised tokens of all of them together.

    A layerwise optimizer moves tensors during the backward, so that the gradient is never there as a whole: it takes
    one batch, clips nothing, and `check` finds the tensors moved (see `LayerwiseGaloreAdamW`).

    Args:
        model: In training mode, inside `fusion.fast_path`.
        head: The model's parts.
        optimizer: Over `parameters`.
        parameters: The adapter's tensors.
        micro_batches: The examples of each micro-batch.
        learning_rate: For this step.
        max_grad_norm: Clip to this norm; 0 for no clipping.
        step: Its number, from 1.
        hooks: What the method does around it.
        stop: Asked between micro-batches.
        check: Called when the gradients are there and nothing has changed yet.
        layout: How the documents of a micro-batch go through the model.
        moving: Called before anything changes: until the step is done, the tensors belong to no step.

    Raises:
        StepAbandoned: `stop` said so.
    """
    supervised = sum(example.supervised_tokens for examples in micro_batches for example in examples)
    tokens = sum(len(example) for examples in micro_batches for example in examples)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group.get("lr_factor", 1.0)
    optimizer.zero_grad(set_to_none=True)
    if isinstance(optimizer, LayerwiseGaloreAdamW):
        batches = [batch for examples in micro_batches for batch in build_batches(examples, layout)]
        losses = [cross_entropy(model, head, batch.to(model.device)) for batch in batches]
        loss = torch.stack(losses).sum() / supervised
        finite = bool(torch.isfinite(loss))
        if finite:
            moving()
        norm = _layerwise_step(optimizer, loss, check) if finite else float("nan")
        return StepResult(float(loss.detach()), norm, tokens, supervised, finite)
    loss_sum = torch.zeros((), device=model.device)
    for batch in (batch for examples in micro_batches for batch in build_batches(examples, layout)):
        if stop():
            optimizer.zero_grad(set_to_none=True)
            raise StepAbandoned
        loss = cross_entropy(model, head, batch.to(model.device)) / supervised
        loss.backward()
        loss_sum += loss.detach()
    penalty = hooks.penalty()
    if penalty is not None:
        penalty.backward()
    check()
    norm = nn.utils.clip_grad_norm_(parameters, max_grad_norm or float("inf"))
    finite = bool(torch.isfinite(norm) & torch.isfinite(loss_sum))
    if finite:
        moving()
        hooks.before_update(step)
        optimizer.step()
        hooks.after_update(step)
    optimizer.zero_grad(set_to_none=True)
    return StepResult(float(loss_sum), float(norm), tokens, supervised, finite)


def _layerwise_step(optimizer: LayerwiseGaloreAdamW, loss: torch.Tensor, check: Callable[[], None]) -> float:
    """Goes backward through a finite loss.

    Returns:
        The norm of the whole gradient.
    """
    with optimizer.moving():
        loss.backward()
    check()
    return float(torch.stack(list(optimizer.gradient_norms.values())).norm())


@torch.no_grad()
def evaluation_loss(
    model: PreTrainedModel,
    head: Head,
    examples: Sequence[EncodedExample],
    batch_size: int,
    stop: Callable[[], bool] = lambda: False,
    progress: Callable[[int], None] = lambda done: None,
    layout: Layout = PACKED,
) -> float:
    """Mean loss over the supervised tokens of `examples`.

    Args:
        model: Inside `fusion.fast_path`; it is in evaluation mode only while this runs.
        head: The model's parts.
        examples: What to evaluate on.
        batch_size: Examples in a batch.
        stop: Asked between batches.
        progress: Called with the number of examples done.
        layout: How the documents of a batch go through the model.

    Raises:
        StepAbandoned: `stop` said so.
    """
    training = model.training
    model.eval()
    total = torch.zeros((), dtype=torch.float64)
    try:
        for first in range(0, len(examples), batch_size):
            if stop():
                raise StepAbandoned
            for batch in build_batches(examples[first : first + batch_size], layout):
                total += cross_entropy(model, head, batch.to(model.device)).double().cpu()
            progress(min(first + batch_size, len(examples)))
    finally:
        model.train(training)
    return float(total) / sum(example.supervised_tokens for example in examples)
