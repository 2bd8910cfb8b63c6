"""What a run asks `World`: its share of the work, the sum over all processes, and who writes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedModel

from lamina.compute.fusion import fast_path
from lamina.config.methods.lora import LoraConfig
from lamina.data.batch import Batch
from lamina.data.example import EncodedExample
from lamina.distributed.world import ALONE, World
from lamina.losses.base import LossSum, Metric
from lamina.losses.cross_entropy import CrossEntropy
from lamina.methods.shared.base import Injection, inject
from lamina.runs import Run
from lamina.runs.events import Note, Progress
from lamina.signals import StopRequest
from lamina.structure.head import Head, find_head
from lamina.training.event_log import EventLog
from lamina.training.step import evaluate_loss, training_step
from tests.support.models_zoo import build_model


class OneOf(World):
    """A process among several that is run by itself, and notes what it would send to the others."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size
        self.sent: list[torch.Tensor] = []
        self.numbers: list[float] = []

    def add_up(self, tensors: Iterable[torch.Tensor]) -> None:
        self.sent += [tensor.clone() for tensor in tensors]

    def total(self, number: float) -> float:
        self.numbers.append(number)
        return number


@given(items=st.lists(st.integers(), max_size=12), size=st.integers(1, 15))
def test_every_item_is_in_one_share(items: list[int], size: int) -> None:
    places = list(range(len(items)))
    shares = [OneOf(rank, size).share(places) for rank in range(size)]
    assert sorted(place for share in shares for place in share) == places
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_alone_is_everything() -> None:
    assert ALONE.share([3, 1, 2]) == [3, 1, 2]
    assert (ALONE.is_first, ALONE.any(False), ALONE.any(True), ALONE.total(2.5)) == (True, False, True, 2.5)
    assert ALONE.once(lambda: "written") == "written"


@pytest.fixture
def injection() -> Injection:
    model: PreTrainedModel = build_model("llama")
    injection = inject(model, LoraConfig(r=3), 0)
    generator = torch.Generator().manual_seed(1)
    for tensor in injection.tensors().values():
        tensor.data.add_(0.1 * torch.randn(tensor.shape, generator=generator))
    return injection


def examples(counts: list[int]) -> list[list[EncodedExample]]:
    """Micro-batches of so many documents, of different lengths."""
    rng = np.random.default_rng(0)
    micro_batches = []
    for count in counts:
        lengths = rng.integers(2, 40, count)
        micro_batches.append(
            [EncodedExample(rng.integers(0, 64, n, dtype=np.int32), np.arange(n) >= n // 2, row=1) for n in lengths]
        )
    return micro_batches


@pytest.mark.parametrize(("counts", "size"), [([1, 3, 2, 1, 2], 2), ([2, 1], 3), ([1, 1, 1], 3)])
def test_a_step_of_several_processes_is_the_step_of_one(injection: Injection, counts: list[int], size: int) -> None:
    """Gradients and losses of the shares add up to those of the whole, whatever the number of processes."""
    model, head, tensors = injection.model, find_head(injection.model), list(injection.tensors().values())
    micro_batches = examples(counts)
    optimizer = torch.optim.SGD(tensors, lr=0.0)

    def step(world: World) -> tuple[float, list[torch.Tensor]]:
        taken: list[torch.Tensor] = []
        check = lambda: taken.extend(t.grad.clone() for t in tensors if t.grad is not None)  # noqa: E731
        parts = (model, head, CrossEntropy(), optimizer, tensors, micro_batches)
        with fast_path(model, longest=40) as path:
            result = training_step(*parts, 0.0, 0.0, check=check, layout=path.layout, world=world)
        return result.loss, taken

    loss, gradients = step(ALONE)
    worlds = [OneOf(rank, size) for rank in range(size)]
    losses = [step(world)[0] for world in worlds]
    assert sum(losses) == pytest.approx(loss, rel=1e-6)
    for place, whole in enumerate(gradients):
        parts = torch.stack([world.sent[place] for world in worlds]).sum(0)
        assert torch.allclose(parts, whole, rtol=1e-4, atol=1e-6 * float(whole.abs().max()) + 1e-12)


@pytest.mark.parametrize("size", [2, 5])
def test_an_evaluation_of_several_processes_is_that_of_one(injection: Injection, size: int) -> None:
    model, head = injection.model, find_head(injection.model)
    (rows,) = examples([7])
    whole = evaluate_loss(model, head, CrossEntropy(), rows, 2).loss
    worlds = [OneOf(rank, size) for rank in range(size)]
    for world in worlds:
        if world.share(range(0, len(rows), 2)):
            evaluate_loss(model, head, CrossEntropy(), rows, 2, world=world)
    sums = [sum(world.numbers[place] for world in worlds if world.numbers) for place in (0, 1)]
    assert sums[0] / sums[1] == pytest.approx(whole, rel=1e-6)


class Figures(CrossEntropy):
    """Has a figure of every row, one of the rows that end in an odd token, and none where there is no such row."""

    def compute(self, model: PreTrainedModel, head: Head, batches: Sequence[Batch]) -> LossSum:
        rows = [example for batch in batches for example in batch.examples]
        odd = sum(float(example.input_ids[-1] % 2) for example in rows)
        figures = {"rows": Metric(torch.tensor(float(len(rows))), len(rows))}
        if odd or len(batches[0].document_lengths) > 1:
            figures["odd"] = Metric(torch.tensor(odd), odd)
        return LossSum(super().compute(model, head, batches).total, figures)


class Named(OneOf):
    """One that is told which names the others have."""

    def union(self, names: Iterable[str]) -> list[str]:
        return super().union({*names, "odd", "rows"})


def test_every_process_asks_for_the_same_sums(injection: Injection) -> None:
    """Also one without a batch, and one whose batches have no figure that others have."""
    model, head = injection.model, find_head(injection.model)
    (rows,) = examples([3])
    asked = []
    for rank in range(5):
        world = Named(rank, 5)
        evaluate_loss(model, head, Figures(), rows, 1, world=world)
        asked.append(len(world.numbers))
    assert asked == [2 + 2 * 2] * 5


def test_what_was_not_counted_is_no_figure(injection: Injection) -> None:
    model, head = injection.model, find_head(injection.model)
    even = [EncodedExample(np.arange(9, dtype=np.int32), np.arange(9) > 2, row=row) for row in (1, 2)]
    result = evaluate_loss(model, head, Figures(), even, 2)
    assert result.metrics == {"rows": 1.0}
    assert np.isfinite(result.loss)
    assert np.isnan(evaluate_loss(model, head, Figures(), [], 2).loss)


def test_the_first_process_alone_writes_and_tells(tmp_path: Path) -> None:
    told: list[str] = []
    for rank in (1, 0):
        run = Run(tmp_path / str(rank))
        run.path.mkdir()
        with EventLog(run, [], lambda event: told.append(event.kind), -1, StopRequest(), OneOf(rank, 2)) as log:
            log.emit(Note(0, message="a"))
            log.show(Progress(0, what="b", done=1, total=2))
        assert run.metrics_path.exists() == (rank == 0)
    assert told == ["note", "progress"]
