"""Forward and backward through a process's share of a step's micro-batches."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn
from transformers import PreTrainedModel

from lamina.compute.ops.sequence import Split, splitting
from lamina.data.batch import Layout, build_units, in_best_order
from lamina.data.example import EncodedExample
from lamina.distributed.assign import cost
from lamina.distributed.reduce import GradientSum
from lamina.distributed.world import World
from lamina.losses.base import Loss, LossSum
from lamina.machine.seeding import seed_generators, seed_of
from lamina.structure.head import Head
from lamina.training.loss_scale import LossScale
from lamina.training.zero import ZeroEngine


class StepAbandoned(Exception):
    """Asked to stop in the middle of a step; nothing was changed."""


def abandon_if(stop: Callable[[], bool]) -> None:
    """Leaves the step if `stop` says so.

    Raises:
        StepAbandoned: It does.
    """
    if stop():
        raise StepAbandoned


def costs_of(model: PreTrainedModel, micro_batches: Sequence[Sequence[EncodedExample]]) -> list[float]:
    """Estimates the work of each micro-batch."""
    width = model.config.get_text_config().hidden_size
    return [cost([length for each in examples for length in each.lengths], width) for examples in micro_batches]


def split_of(world: World) -> Split | None:
    """How the processes divide documents; None if each has whole ones."""
    return None if world.team_size == 1 else Split(world.part, world.team_size, world.exchange)


# What a micro-batch gave: the sum of its loss, and its figures as sum and count.
Result = tuple[float, dict[str, tuple[float, float]]]


@dataclass
class Report:
    """What a process tells the others of its part of a step.

    Attributes:
        results: By micro-batch.
        touched: Whether each parameter got a gradient.
        finite: Whether the gradient is finite.
        seconds: Time that it took.
    """

    results: dict[int, Result]
    touched: list[bool] = field(default_factory=list)
    finite: bool = True
    seconds: float = 0.0


class Parts:
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
        self.split, self.device = split, model.device
        self._found: dict[int, list[LossSum]] = {}

    def __call__(self, place: int, examples: Sequence[EncodedExample]) -> Iterator[torch.Tensor]:
        """Gives the parts of a micro-batch's loss, one after the other.

        Raises:
            StepAbandoned: `stop` said so.
        """
        split = self.split
        found = self._found.setdefault(place if split is None else place * split.parts + split.part, [])
        for unit in build_units(in_best_order(examples, self._layout), self._layout):
            abandon_if(self._stop)
            parts = unit if split is None else [batch.part(split.part, split.parts) for batch in unit]
            result = self._loss.compute(self._model, self._head, [batch.to(self.device) for batch in parts])
            found.append(LossSum(result.total.detach(), result.metrics))
            yield result.total

    def rehearsal(self) -> Parts:
        """The same, with results that nobody asks for."""
        return Parts(self._model, self._head, self._loss, self._layout, self._stop, self.split)

    def results(self) -> dict[int, Result]:
        """What each micro-batch gave."""
        return {place: _result_of(parts) for place, parts in self._found.items()}


def _result_of(parts: Sequence[LossSum]) -> Result:
    metrics: dict[str, tuple[float, float]] = {}
    for part in parts:
        for name, metric in part.metrics.items():
            total, count = metrics.get(name, (0.0, 0.0))
            metrics[name] = (total + float(metric.total), count + metric.count)
    return sum(float(part.total) for part in parts), metrics


def summed(results: Mapping[int, Result]) -> Result:
    """Adds up in the order of the micro-batches, so that it is the same whoever computed them."""
    total, metrics = 0.0, dict[str, tuple[float, float]]()
    for place in sorted(results):
        loss, figures = results[place]
        total += loss
        for name, (value, count) in figures.items():
            before = metrics.get(name, (0.0, 0.0))
            metrics[name] = (before[0] + value, before[1] + count)
    return total, metrics


@dataclass
class Backward:
    """Goes forward and backward through a process's share of a step's micro-batches, and adds up the gradients of all.

    Attributes:
        parts: Computes the losses.
        micro_batches: Of all processes.
        count: What the losses are divided by.
        parameters: What gets gradients.
        optimizer: Over them.
        world: The processes.
        seed: The run's; None leaves torch's generators as they are.
        step: Number of the step.
        engine: DeepSpeed's, which then adds up by itself.
        scale: The loss scale, for float16.
    """

    parts: Parts
    micro_batches: Sequence[Sequence[EncodedExample]]
    count: float
    parameters: Sequence[nn.Parameter]
    optimizer: torch.optim.Optimizer
    world: World
    seed: int | None
    step: int
    engine: ZeroEngine | None
    scale: LossScale | None

    def __post_init__(self) -> None:
        self._began, self._waited = time.perf_counter(), self.world.communication_seconds
        # A single term is its own sum.
        several = self.engine is None and (self.world.size > 1 or len(self.micro_batches) > 1)
        self._gradients = GradientSum(self.parameters) if several else None

    def reseed(self, place: int) -> None:
        """Gives a micro-batch its own random numbers, whichever process computes it."""
        if self.seed is not None:
            part = [self.world.part] * (self.world.part > 0)
            seed_generators(seed_of(self.seed, self.step, place, *part), self.parts.device)

    def run(self, costs: Sequence[float]) -> None:
        """Computes this process's share, by the work that each micro-batch is.

        Raises:
            StepAbandoned: It was asked to stop; no parameter has a gradient.
        """
        walk = list(self.world.walk(costs))
        try:
            for number, (place, counts) in enumerate(walk, 1):
                self.reseed(place)
                self._through(place, counts, last=number == len(walk))
                if self.engine is None and not counts:
                    self.optimizer.zero_grad(set_to_none=True)
                elif self._gradients is not None:
                    self._gradients.take()
        except StepAbandoned:
            self.optimizer.zero_grad(set_to_none=True)
            raise

    def reports(self) -> list[Report]:
        """What each process found, by rank; the parameters then have the gradients of all of them together."""
        report, gradients, world = Report(self.parts.results()), self._gradients, self.world
        if gradients is not None:
            report.touched, report.finite = gradients.touched, gradients.is_finite()
            report.seconds = time.perf_counter() - self._began - (world.communication_seconds - self._waited)
        reports = world.gather(report, f"the end of step {self.step}")
        if gradients is not None:
            gradients.put_back(world, [any(flags) for flags in zip(*(each.touched for each in reports), strict=True)])
        return reports

    def _through(self, place: int, counts: bool, last: bool) -> None:
        """Goes through one micro-batch; if it does not count, only to run what other processes wait for."""
        parts = self.parts if counts else self.parts.rehearsal()
        with splitting(self.parts.split):
            for part in parts(place, self.micro_batches[place]):
                if self.engine is None:
                    mean = part / self.count
                    (mean if self.scale is None else self.scale.scaled(mean)).backward()
                else:
                    self.engine.backward(part / self.count if counts else 0.0 * part, last=last)
