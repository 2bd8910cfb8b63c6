"""One optimizer step, and one evaluation pass."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn
from transformers import PreTrainedModel

from lamina.compute.ops.sequence import Split, splitting
from lamina.data.batch import PACKED, Layout, build_units, in_best_order
from lamina.data.example import EncodedExample
from lamina.distributed.assign import cost
from lamina.distributed.reduce import GradientSum
from lamina.distributed.world import ALONE, World
from lamina.losses.base import Loss, LossSum, means
from lamina.machine.seeding import seed_generators, seed_of
from lamina.methods.shared.base import Hooks
from lamina.optim import LayerwiseGaloreAdamW
from lamina.structure.head import Head
from lamina.training.loss_scale import LossScale
from lamina.training.zero import ZeroEngine

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
        seed: The run's seed: each micro-batch has its own random numbers, by seed, step and place, whichever process
            computes it. Without, torch's generators go on as they are.
        engine: DeepSpeed's, which then adds up gradients, clips and updates.
        scale: The loss scale, for float16; it is updated.

    Raises:
        StepAbandoned: `stop` said so.
    """
    began, waited = time.perf_counter(), world.communication_seconds
    micro_batches = loss.over_step(model, head, micro_batches, layout, world)
    examples = [example for examples in micro_batches for example in examples]
    count = loss.count(examples)
    tokens, supervised = sum(map(len, examples)), sum(example.supervised_tokens for example in examples)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group.get("lr_factor", 1.0)
    optimizer.zero_grad(set_to_none=True)
    split = split_of(world)
    part_of = _Parts(model, head, loss, layout, stop, split)
    if isinstance(optimizer, LayerwiseGaloreAdamW):  # one micro-batch, in one process
        _reseed(seed, step, 0, model.device)
        mean = torch.stack([part / count for part in part_of(0, micro_batches[0])]).sum()
        finite = bool(torch.isfinite(mean))
        if finite:
            moving()
        norm = _layerwise_step(optimizer, mean, check) if finite else float("nan")
        _, metrics = _summed(part_of.results())
        return StepResult(float(mean.detach()), count, norm, tokens, supervised, finite, metrics=metrics)
    # A single term is its own sum.
    several = engine is None and (world.size > 1 or len(micro_batches) > 1)
    gradients = GradientSum(parameters) if several else None
    walk = list(world.walk(costs_of(model, micro_batches)))
    try:
        for number, (place, counts) in enumerate(walk, 1):
            _reseed(seed, step, place, model.device, world.part)
            with splitting(split):
                for part in (part_of if counts else part_of.rehearsal())(place, micro_batches[place]):
                    if engine is None:
                        (part / count if scale is None else scale.scaled(part / count)).backward()
                    else:
                        engine.backward(part / count if counts else 0.0 * part, last=number == len(walk))
            if engine is None and not counts:
                optimizer.zero_grad(set_to_none=True)
            elif gradients is not None:
                gradients.take()
    except StepAbandoned:
        optimizer.zero_grad(set_to_none=True)
        raise
    report = _Report(part_of.results())
    if gradients is not None:
        report.touched, report.finite = gradients.touched, gradients.is_finite()
        report.seconds = time.perf_counter() - began - (world.communication_seconds - waited)
    reports = world.gather(report, f"the end of step {step}")
    if gradients is not None:
        gradients.put_back(world, [any(flags) for flags in zip(*(each.touched for each in reports), strict=True)])
    if engine is not None:
        total, metrics = _summed({place: result for each in reports for place, result in each.results.items()})
        moving()
        norm = engine.step() if math.isfinite(total) else math.nan
        finite = math.isfinite(norm)
        return StepResult(total / count, count, norm, tokens, supervised, finite, metrics=metrics)
    penalty = hooks.penalty()
    if penalty is not None:
        (penalty if scale is None else scale.scaled(penalty)).backward()
    if scale is not None:
        scale.unscale(parameters)
    check()
    total, metrics = _summed({place: result for each in reports for place, result in each.results.items()})
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
    not_finite_in = tuple(rank for rank, each in enumerate(reports) if not each.finite)
    seconds = tuple(each.seconds for each in reports)
    mean, last = total / count, (overflowed, metrics, not_finite_in, seconds)
    return StepResult(mean, count, float(norm), tokens, supervised, finite, *last)


def costs_of(model: PreTrainedModel, micro_batches: Sequence[Sequence[EncodedExample]]) -> list[float]:
    """Estimates the work of each micro-batch."""
    width = model.config.get_text_config().hidden_size
    return [cost([length for each in examples for length in each.lengths], width) for examples in micro_batches]


def split_of(world: World) -> Split | None:
    """How the processes divide documents; None if each has whole ones."""
    return None if world.team_size == 1 else Split(world.part, world.team_size, world.exchange)


def _reseed(seed: int | None, step: int, place: int, device: torch.device, part: int = 0) -> None:
    if seed is not None:
        seed_generators(seed_of(seed, step, place, *[part] * (part > 0)), device)


# What a micro-batch gave: the sum of its loss, and its figures as sum and count.
_Result = tuple[float, dict[str, tuple[float, float]]]


@dataclass
class _Report:
    """What a process tells the others of its part of a step.

    Attributes:
        results: By micro-batch.
        touched: Whether each parameter got a gradient.
        finite: Whether the gradient is finite.
        seconds: Time that it took.
    """

    results: dict[int, _Result]
    touched: list[bool] = field(default_factory=list)
    finite: bool = True
    seconds: float = 0.0


class _Parts:
    """Computes the losses of micro-batches, and keeps their sums on the device until all of them are done."""

    def __init__(
        self,
        model: PreTrainedModel,
        head: Head,
        loss: Loss,
        layout: Layout,
        stop: Callable[[], bool],
        split: Split | None = None,
    ) -> None:
        self._model, self._head, self._loss, self._layout, self._stop = model, head, loss, layout, stop
        self._split = split
        self._found: dict[int, list[LossSum]] = {}

    def __call__(self, place: int, examples: Sequence[EncodedExample]) -> Iterator[torch.Tensor]:
        """Gives the parts of a micro-batch's loss, one after the other.

        Raises:
            StepAbandoned: `stop` said so.
        """
        split = self._split
        found = self._found.setdefault(place if split is None else place * split.parts + split.part, [])
        for unit in build_units(in_best_order(examples, self._layout), self._layout):
            if self._stop():
                raise StepAbandoned
            parts = unit if split is None else [batch.part(split.part, split.parts) for batch in unit]
            result = self._loss.compute(self._model, self._head, [batch.to(self._model.device) for batch in parts])
            found.append(LossSum(result.total.detach(), result.metrics))
            yield result.total

    def rehearsal(self) -> _Parts:
        """The same, with results that nobody asks for."""
        return _Parts(self._model, self._head, self._loss, self._layout, self._stop, self._split)

    def results(self) -> dict[int, _Result]:
        """What each micro-batch gave."""
        return {place: _result_of(parts) for place, parts in self._found.items()}


def _result_of(parts: Sequence[LossSum]) -> _Result:
    metrics: dict[str, tuple[float, float]] = {}
    for part in parts:
        for name, metric in part.metrics.items():
            total, count = metrics.get(name, (0.0, 0.0))
            metrics[name] = (total + float(metric.total), count + metric.count)
    return sum(float(part.total) for part in parts), metrics


def _summed(results: Mapping[int, _Result]) -> _Result:
    """Adds up in the order of the micro-batches, so that it is the same whoever computed them."""
    total, metrics = 0.0, dict[str, tuple[float, float]]()
    for place in sorted(results):
        loss, figures = results[place]
        total += loss
        for name, (value, count) in figures.items():
            before = metrics.get(name, (0.0, 0.0))
            metrics[name] = (before[0] + value, before[1] + count)
    return total, metrics


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
    split = split_of(world)
    part_of, counts = _Parts(model, head, loss, layout, stop, split), dict[int, float]()
    try:
        firsts = range(0, len(examples), batch_size)
        batches = loss.over_step(model, head, [examples[first : first + batch_size] for first in firsts], layout, world)
        for place, counted in world.walk(costs_of(model, batches)):
            with splitting(split):
                for _ in (part_of if counted else part_of.rehearsal())(place, batches[place]):
                    pass
            if counted and world.part == 0:
                counts[place] = loss.count(batches[place])
                progress(sum(len(batches[done]) for done in counts))
    finally:
        model.train(training)
    reports = world.gather((part_of.results(), counts), "the end of an evaluation")
    total, metrics = _summed({place: result for results, _ in reports for place, result in results.items()})
    counted = sum(value for _, counts in reports for value in counts.values())
    return EvaluationResult(total / counted if counted else math.nan, means(metrics))
