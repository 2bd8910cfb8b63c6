"""One optimizer step, and one evaluation pass."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import nn
from transformers import PreTrainedModel

from lamina.compute.ops.sequence import splitting
from lamina.data.batch import PACKED, Layout
from lamina.data.example import EncodedExample
from lamina.distributed.world import ALONE, World
from lamina.losses.base import Loss, means
from lamina.methods.shared.base import Hooks
from lamina.optim import BlockAdamW, Layerwise
from lamina.structure.head import Head
from lamina.training.backward import Backward, Parts, abandon_if, costs_of, split_of, summed
from lamina.training.loss_scale import LossScale
from lamina.training.zero import ZeroEngine

NO_HOOKS = Hooks()


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
        not_finite_in: The processes whose part of the gradient was not finite.
        seconds_by_rank: Time that each process computed, without communication.
    """

    loss: float
    count: float
    grad_norm: float
    tokens: int
    supervised_tokens: int
    finite: bool
    overflowed: bool = False
    metrics: dict[str, tuple[float, float]] = field(default_factory=dict)
    not_finite_in: tuple[int, ...] = ()
    seconds_by_rank: tuple[float, ...] = ()


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
    seed: int | None = None,
    engine: ZeroEngine | None = None,
    scale: LossScale | None = None,
) -> StepResult:
    """Takes one step over micro-batches, whose losses are divided by the count of all of them together.

    A layerwise optimizer moves tensors during the backward, so that the gradient is never there as a whole: it takes
    one batch, clips nothing, and `check` finds the tensors moved (see `Layerwise`).

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
        seed: The run's seed: each micro-batch has its own random numbers, by seed, step and place, whichever process
            computes it. Without, torch's generators go on as they are.
        engine: DeepSpeed's, which then adds up gradients, clips and updates.
        scale: The loss scale, for float16; it is updated.

    Raises:
        StepAbandoned: `stop` said so.
    """
    micro_batches = loss.over_step(model, head, micro_batches, layout, world, ran=lambda _: abandon_if(stop))
    examples = [example for examples in micro_batches for example in examples]
    sums = _Sums(loss.count(examples), sum(map(len, examples)), sum(each.supervised_tokens for each in examples))
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group.get("lr_factor", 1.0)
    optimizer.zero_grad(set_to_none=True)
    if isinstance(optimizer, BlockAdamW):
        optimizer.choose()
    parts = Parts(model, head, loss, layout, stop, split_of(world))
    backward = Backward(parts, micro_batches, sums.count, parameters, optimizer, world, seed, step, engine, scale)
    if isinstance(optimizer, Layerwise):
        return _layerwise_step(backward, optimizer, sums, check, moving)
    backward.run(costs_of(model, micro_batches))
    reports = backward.reports()
    total, metrics = summed({place: result for each in reports for place, result in each.results.items()})
    if engine is not None:
        moving()
        norm = engine.step() if math.isfinite(total) else math.nan
        return sums.result(total, norm, math.isfinite(norm), metrics)
    penalty = hooks.penalty()
    if penalty is not None:
        (penalty if scale is None else scale.scaled(penalty)).backward()
    if scale is not None:
        scale.unscale(parameters)
    check()
    norm = nn.utils.clip_grad_norm_(parameters, max_grad_norm or float("inf"))
    finite = bool(torch.isfinite(norm)) and math.isfinite(total)
    if finite:
        moving()
        hooks.before_update(step)
        optimizer.step()
        hooks.after_update(step)
    overflowed = scale is not None and not finite and math.isfinite(total) and not scale.at_its_smallest
    if scale is not None:
        scale.update(finite)
    optimizer.zero_grad(set_to_none=True)
    return replace(
        sums.result(total, float(norm), finite, metrics),
        overflowed=overflowed,
        not_finite_in=tuple(rank for rank, each in enumerate(reports) if not each.finite),
        seconds_by_rank=tuple(each.seconds for each in reports),
    )


@dataclass(frozen=True)
class _Sums:
    """What a step is taken over: the loss's count, tokens, and those of them that are in the loss."""

    count: float
    tokens: int
    supervised: int

    def result(self, total: float, norm: float, finite: bool, metrics: dict[str, tuple[float, float]]) -> StepResult:
        """The result of a step whose loss has a sum."""
        return StepResult(total / self.count, self.count, norm, self.tokens, self.supervised, finite, metrics=metrics)


def _layerwise_step(
    backward: Backward,
    optimizer: Layerwise,
    sums: _Sums,
    check: Callable[[], None],
    moving: Callable[[], None],
) -> StepResult:
    """Takes a step of one micro-batch in one process, in whose backward the tensors move."""
    backward.reseed(0)
    mean = torch.stack([part / sums.count for part in backward.parts(0, backward.micro_batches[0])]).sum()
    finite, norm = bool(torch.isfinite(mean)), math.nan
    if finite:
        moving()
        with optimizer.moving():
            mean.backward()
        check()
        norm = float(torch.stack(list(optimizer.gradient_norms.values())).norm())
    _, metrics = summed(backward.parts.results())
    return replace(sums.result(math.nan, norm, finite, metrics), loss=float(mean.detach()))


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
    split = split_of(world)
    part_of, counts, ahead = Parts(model, head, loss, layout, stop, split), dict[int, float](), 0

    def ran_ahead(count: int) -> None:
        nonlocal ahead
        ahead += count
        progress(ahead // 2)
        abandon_if(stop)

    try:
        batches = [examples[first : first + batch_size] for first in range(0, len(examples), batch_size)]
        batches = loss.over_step(model, head, batches, layout, world, ran=ran_ahead)
        for place, counted in world.walk(costs_of(model, batches)):
            with splitting(split):
                for _ in (part_of if counted else part_of.rehearsal())(place, batches[place]):
                    pass
            if counted and world.part == 0:
                counts[place] = loss.count(batches[place])
                done = sum(len(batches[place]) for place in counts)
                progress((ahead + done) // 2 if ahead else done)  # what ran ahead is half of the work
    finally:
        model.train(training)
    reports = world.gather((part_of.results(), counts), "the end of an evaluation")
    total, metrics = summed({place: result for results, _ in reports for place, result in results.items()})
    counted = sum(value for _, counts in reports for value in counts.values())
    return EvaluationResult(total / counted if counted else math.nan, means(metrics))
