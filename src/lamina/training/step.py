"""One optimizer step, and one evaluation pass."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn
from transformers import PreTrainedModel

from lamina.data.batch import PACKED, Layout, build_units
from lamina.data.example import EncodedExample
from lamina.distributed.world import ALONE, World
from lamina.losses.base import Loss, LossSum, Metric, means
from lamina.methods.shared.base import Hooks
from lamina.optim import LayerwiseGaloreAdamW
from lamina.structure.head import Head
from lamina.training.loss_scale import LossScale

NO_HOOKS = Hooks()


class StepAbandoned(Exception):
    """Asked to stop in the middle of a step; nothing was changed."""


@dataclass(frozen=True)
class StepResult:
    """What a step did.

    Attributes:
        loss: Of the whole step, its sum divided by its count.
        count: What the sum was divided by, such as the step's supervised tokens.
        grad_norm: Norm of the gradient before clipping.
        tokens: Real tokens.
        supervised_tokens: Those in the loss.
        finite: Whether loss and gradient were finite; if not, nothing was changed.
        overflowed: Whether only the scaled gradient was not, so that a smaller loss scale may do.
        metrics: The loss's own figures, as sum and count.
    """

    loss: float
    count: float
    grad_norm: float
    tokens: int
    supervised_tokens: int
    finite: bool
    overflowed: bool = False
    metrics: dict[str, tuple[float, float]] = field(default_factory=dict)


def training_step(
    model: PreTrainedModel,
    head: Head,
    loss: Loss,
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
    world: World = ALONE,
    scale: LossScale | None = None,
) -> StepResult:
    """Takes one step over micro-batches, whose losses are divided by the count of all of them together.

    A layerwise optimizer moves tensors during the backward, so that the gradient is never there as a whole: it takes
    one batch, clips nothing, and `check` finds the tensors moved (see `LayerwiseGaloreAdamW`).

    Args:
        model: In training mode, inside `fusion.fast_path`.
        head: The model's parts.
        loss: What is minimized.
        optimizer: Over `parameters`.
        parameters: The adapter's tensors.
        micro_batches: The examples of each micro-batch of the step, in all processes together.
        learning_rate: For this step.
        max_grad_norm: Clip to this norm; 0 for no clipping.
        step: Its number, from 1.
        hooks: What the method does around it.
        stop: Asked between micro-batches.
        check: Called when the gradients are there and nothing has changed yet.
        layout: How the documents of a micro-batch go through the model.
        moving: Called before anything changes: until the step is done, the tensors belong to no step.
        world: The processes that take the step together; each computes its share of the micro-batches.
        scale: The loss scale, for float16; it is updated.

    Raises:
        StepAbandoned: `stop` said so.
    """
    micro_batches = loss.over_step(model, head, micro_batches, layout, world)
    examples = [example for examples in micro_batches for example in examples]
    count, tally = loss.count(examples), _Tally()
    tokens, supervised = sum(map(len, examples)), sum(example.supervised_tokens for example in examples)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group.get("lr_factor", 1.0)
    optimizer.zero_grad(set_to_none=True)
    units = (unit for examples in world.share(micro_batches) for unit in build_units(examples, layout))
    if isinstance(optimizer, LayerwiseGaloreAdamW):
        sums = [tally.take(loss.compute(model, head, [batch.to(model.device) for batch in unit])) for unit in units]
        mean = torch.stack(sums).sum() / count
        finite = bool(torch.isfinite(mean))
        if finite:
            moving()
        norm = _layerwise_step(optimizer, mean, check) if finite else float("nan")
        metrics = tally.everywhere(world)
        return StepResult(float(mean.detach()), count, norm, tokens, supervised, finite, metrics=metrics)
    total = torch.zeros((), device=model.device)
    for unit in units:
        if stop():
            optimizer.zero_grad(set_to_none=True)
            raise StepAbandoned
        part = tally.take(loss.compute(model, head, [batch.to(model.device) for batch in unit])) / count
        (part if scale is None else scale.scaled(part)).backward()
        total += part.detach()
    _add_up_gradients(parameters, world)
    penalty = hooks.penalty()
    if penalty is not None:
        (penalty if scale is None else scale.scaled(penalty)).backward()
    if scale is not None:
        scale.unscale(parameters)
    check()
    mean = world.total(float(total))
    norm = nn.utils.clip_grad_norm_(parameters, max_grad_norm or float("inf"))
    finite = bool(torch.isfinite(norm)) and math.isfinite(mean)
    if finite:
        moving()
        hooks.before_update(step)
        optimizer.step()
        hooks.after_update(step)
    overflowed = scale is not None and not finite and math.isfinite(mean) and not scale.at_its_smallest
    if scale is not None:
        scale.update(finite)
    optimizer.zero_grad(set_to_none=True)
    return StepResult(mean, count, float(norm), tokens, supervised, finite, overflowed, tally.everywhere(world))


def _add_up_gradients(parameters: Sequence[nn.Parameter], world: World) -> None:
    """The gradient of the whole step in every process; one that had no micro-batch adds nothing."""
    if world.size > 1:
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        world.add_up(parameter.grad for parameter in parameters if parameter.grad is not None)


class _Tally:
    """Adds up a loss's own figures."""

    def __init__(self) -> None:
        self._sums: dict[str, Metric] = {}

    def take(self, result: LossSum) -> torch.Tensor:
        """Takes in the figures, and gives the loss."""
        for name, metric in result.metrics.items():
            before = self._sums.get(name)
            total = metric.total.detach().double()
            self._sums[name] = (
                Metric(total, metric.count)
                if before is None
                else Metric(before.total + total, before.count + metric.count)
            )
        return result.total

    def everywhere(self, world: World) -> dict[str, tuple[float, float]]:
        """Sum and count of each figure over all processes, of which one may have had nothing to count."""
        none = Metric(torch.zeros(()), 0.0)
        found = {name: self._sums.get(name, none) for name in world.union(self._sums)}
        return {name: (world.total(float(metric.total)), world.total(metric.count)) for name, metric in found.items()}


def _layerwise_step(optimizer: LayerwiseGaloreAdamW, loss: torch.Tensor, check: Callable[[], None]) -> float:
    """Goes backward through a finite loss.

    Returns:
        The norm of the whole gradient.
    """
    with optimizer.moving():
        loss.backward()
    check()
    return float(torch.stack(list(optimizer.gradient_norms.values())).norm())


@dataclass(frozen=True)
class EvaluationResult:
    """What an evaluation pass gave.

    Attributes:
        loss: Sum over the examples, divided by their count; NaN where that is 0.
        metrics: The loss's own figures.
    """

    loss: float
    metrics: dict[str, float]


@torch.no_grad()
def evaluate_loss(
    model: PreTrainedModel,
    head: Head,
    loss: Loss,
    examples: Sequence[EncodedExample],
    batch_size: int,
    stop: Callable[[], bool] = lambda: False,
    progress: Callable[[int], None] = lambda done: None,
    layout: Layout = PACKED,
    world: World = ALONE,
) -> EvaluationResult:
    """Computes the loss of `examples` without training on them.

    Args:
        model: Inside `fusion.fast_path`; it is in evaluation mode only while this runs.
        head: The model's parts.
        loss: What is computed.
        examples: What to evaluate on.
        batch_size: Examples in a batch.
        stop: Asked between batches.
        progress: Called with the number of examples done.
        layout: How the documents of a batch go through the model.
        world: The processes that share the batches.

    Raises:
        StepAbandoned: `stop` said so.
    """
    training = model.training
    model.eval()
    total, count, tally = torch.zeros((), dtype=torch.float64, device=model.device), 0.0, _Tally()
    try:
        firsts = range(0, len(examples), batch_size)
        batches = loss.over_step(model, head, [examples[first : first + batch_size] for first in firsts], layout, world)
        for place in world.share(range(len(batches))):
            if stop():
                raise StepAbandoned
            chosen = batches[place]
            for unit in build_units(chosen, layout):
                result = loss.compute(model, head, [batch.to(model.device) for batch in unit])
                total += tally.take(result).double()
            count += loss.count(chosen)
            progress(min((place + 1) * batch_size, len(examples)))
    finally:
        model.train(training)
    mean, counted = world.total(float(total)), world.total(count)
    return EvaluationResult(mean / counted if counted else math.nan, means(tally.everywhere(world)))
