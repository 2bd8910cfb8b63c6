"""What a run asks `World`: its share of the work, the sum over all processes, and who writes."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from transformers import PreTrainedModel

from lamina.compute.fusion import fast_path
from lamina.config import load_config
from lamina.config.methods.lora import LoraConfig
from lamina.data.batch import Batch
from lamina.data.example import EncodedExample
from lamina.distributed.failure import PeerError
from lamina.distributed.group import Group
from lamina.distributed.member import Silenced, member
from lamina.distributed.world import ALONE, World
from lamina.errors import DataError, RunError
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
from tests.support.ranks import OneOf, run_ranks, values_of


def test_alone_is_everything() -> None:
    assert sorted(ALONE.mine([3.0, 1.0, 2.0])) == [0, 1, 2]
    assert (ALONE.is_first, ALONE.any(False, "a"), ALONE.any(True, "a"), ALONE.gather(2.5, "b")) == (
        True,
        False,
        True,
        [2.5],
    )
    assert ALONE.collect({1: "b", 0: "a"}, "c") == ["a", "b"]
    assert ALONE.once(lambda: "written", "d") == "written"
    ALONE.same_everywhere({"base": "x"})


class Comparing(OneOf):
    """A process that knows what all have."""

    def __init__(self, *seeds: str) -> None:
        super().__init__(0, len(seeds))
        self._everybody = [{"model": "m", "seed": seed} for seed in seeds]

    def gather(self, value: object, what: str) -> list[Any]:
        return list(self._everybody)


@pytest.mark.parametrize(
    ("seeds", "message"),
    [
        ("00", ""),
        ("07", "rank 1 has not the same as the others: seed is 7 there, and 0 on rank 0"),
        ("007", "rank 2 has not the same as the others: seed is 7 there, and 0 on rank 0"),
        ("700", "rank 0 has not the same as the others: seed is 7 there, and 0 on rank 1"),
    ],
)
def test_the_process_that_is_unlike_most_is_named(seeds: str, message: str) -> None:
    if not message:
        Comparing(*seeds).same_everywhere({})
        return
    with pytest.raises(RunError, match=message):
        Comparing(*seeds).same_everywhere({})


def test_values_come_by_rank_and_work_by_place() -> None:
    def work(world: Group) -> tuple[object, ...]:
        mine = {place: 10 * place for place in world.mine([1.0] * 5)}
        tensor = torch.full((2,), float(world.rank))
        world.copy_from_first([tensor])
        found = (
            world.gather(world.rank, "a"),
            world.collect(mine, "b"),
            world.any(world.rank == 2, "c"),
            tensor.tolist(),
        )
        return *found, world.once(lambda: os.getpid(), "d")

    outcomes = values_of(run_ranks(3, work))
    assert [outcome[:4] for outcome in outcomes] == [([0, 1, 2], [0, 10, 20, 30, 40], True, [0.0, 0.0])] * 3
    assert len({outcome[4] for outcome in outcomes}) == 1


def test_the_first_process_of_a_machine_fills_a_cache(tmp_path: Path) -> None:
    """The others find it full, and hear of a failure by the message of the first alone."""
    cache = tmp_path / "cache"

    def fill(world: Group) -> tuple[int, bool]:
        def work() -> tuple[int, bool]:
            found = cache.exists()
            time.sleep(0.2 * world.is_first)
            cache.touch()
            return world.rank, found

        return world.first_here(work, "filling")

    assert ALONE.first_here(lambda: 5, "filling") == 5
    assert values_of(run_ranks(3, fill)) == [(0, False), (1, True), (2, True)]

    def fail(world: Group) -> None:
        def work() -> None:
            (tmp_path / f"tried-{world.rank}").touch()
            raise DataError("rows.jsonl: line 3 is no JSON")

        world.first_here(work, "filling")

    outcomes = run_ranks(3, fail)
    assert [outcome.error for outcome in outcomes] == ["PeerError", "Silenced", "Silenced"]
    assert "rows.jsonl: line 3 is no JSON" in outcomes[0].message
    assert [path.name for path in tmp_path.glob("tried-*")] == ["tried-0"]


def test_nobody_waits_for_a_first_process_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lamina.distributed.group._SILENCE", 1.0)

    def work(world: Group) -> int:
        if world.is_first:
            os.kill(os.getpid(), signal.SIGKILL)
        return world.first_here(lambda: world.rank, "filling")

    outcomes = run_ranks(2, work)
    assert [outcome.value for outcome in outcomes] == [None, 1]


def test_who_is_gone_before_the_first_exchange_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that was killed is gone after a silence; one that only takes long is waited for."""
    monkeypatch.setattr("lamina.distributed.group._SILENCE_AT_START", 1.0)

    def work(world: Group) -> list[int]:
        world.timeout = 600.0
        if world.rank == 2:
            time.sleep(3.0)
        if world.rank == 1 and killed:
            os.kill(os.getpid(), signal.SIGKILL)
        return world.gather(world.rank, "meeting")

    killed = True
    outcomes = run_ranks(3, work)
    assert outcomes[1].error == "killed"
    assert all("rank 1 (" in outcome.message and "is gone" in outcome.message for outcome in (outcomes[0], outcomes[2]))
    killed = False
    assert values_of(run_ranks(3, work)) == [[0, 1, 2]] * 3


def before_connecting(monkeypatch: pytest.MonkeyPatch, rank: int, do: Callable[[], object]) -> None:
    """Lets a process do something where it would connect to the others, which wait for it in torch meanwhile."""
    connect = dist.init_process_group

    def connected(*given: object, **settings: object) -> None:
        if settings["rank"] == rank:
            do()
        connect(*given, **settings)

    monkeypatch.setattr(dist, "init_process_group", connected)
    monkeypatch.setattr("lamina.distributed.group._CONNECT_SECONDS", 600.0)


def meeting(world: Group) -> list[int]:
    world.timeout = 600.0
    return world.gather(world.rank, "meeting")


def test_who_is_killed_while_all_connect_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    before_connecting(monkeypatch, 1, lambda: os.kill(os.getpid(), signal.SIGKILL))
    monkeypatch.setattr("lamina.distributed.group._SILENCE", 1.0)
    outcomes = run_ranks(3, meeting)
    assert outcomes[0].error in ("LostRankError", "PeerError")  # the other one may see it first
    assert [outcome.error for outcome in outcomes[1:]] == ["killed", "Silenced"]
    assert "rank 1 (" in outcomes[0].message
    assert "is gone" in outcomes[0].message


def test_a_signal_is_heard_while_all_connect(monkeypatch: pytest.MonkeyPatch) -> None:
    before_connecting(monkeypatch, 1, lambda: time.sleep(600.0))

    def work(world: Group) -> list[int]:
        if world.is_first:
            signal.signal(signal.SIGALRM, lambda number, frame: signal.raise_signal(signal.SIGINT))
            signal.setitimer(signal.ITIMER_REAL, 0.5)
        return meeting(world)

    assert [outcome.error for outcome in run_ranks(2, work)] == ["KeyboardInterrupt", "Silenced"]


def test_who_takes_long_to_connect_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those who wait for it in torch go on giving signs of life."""
    before_connecting(monkeypatch, 1, lambda: time.sleep(3.0))
    monkeypatch.setattr("lamina.distributed.group._SILENCE", 1.5)
    assert values_of(run_ranks(3, meeting)) == [[0, 1, 2]] * 3


def test_the_time_out_of_an_exchange_is_the_configured_one() -> None:
    def work(world: Group) -> list[int]:
        world.timeout = 3.0
        world.gather(world.rank, "meeting")
        if world.rank == 1:
            time.sleep(8.0)
        return world.gather(world.rank, "meeting again")

    outcomes = run_ranks(2, work)
    assert "rank 1 (" in outcomes[0].message
    assert "within 3 s" in outcomes[0].message


@pytest.mark.parametrize("victim", [1, 2, 3])
@pytest.mark.parametrize("what", ["broadcast", "sum", "gather"])
def test_nobody_waits_for_one_that_has_given_up(what: str, victim: int) -> None:
    """In a tree of connections, not everybody has one to the process that was killed."""

    def work(world: Group) -> None:
        world.timeout = 600.0
        world.gather(0, "meeting")
        if world.rank == victim:
            os.kill(os.getpid(), signal.SIGKILL)
        for _ in range(50):
            if what == "broadcast":
                world.copy_from_first([torch.zeros(1000)])
            elif what == "sum":
                world.add_up(torch.zeros(1000))
            else:
                world.gather("x" * 1000, "saying something")

    outcomes = run_ranks(4, work)
    assert outcomes[victim].error == "killed"
    others = [outcome for outcome in outcomes if outcome.error != "killed"]
    assert {outcome.error for outcome in others} <= {"LostRankError", "PeerError", "Silenced"}
    assert any("is gone" in outcome.message for outcome in others)


def test_processes_may_meet_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A script may train several times; what was said in one run is not heard in the next."""
    store = dist.TCPStore("localhost", 0, None, True, wait_for_workers=False)
    given = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(store.port), "WORLD_SIZE": "2"}
    for name, value in {**given, "TORCHELASTIC_USE_AGENT_STORE": "True"}.items():
        monkeypatch.setenv(name, value)

    def work(world: Group) -> list[object]:
        monkeypatch.setenv("RANK", str(world.rank))
        found: list[object] = []
        for number in range(4):
            try:
                with member() as group:
                    assert group is not None
                    group.tell()  # as a command does when it ends
                    if number % 2 and group.rank == 1:
                        raise DataError(f"no rows in run {number}")
                    found.append(group.gather((number, group.rank), "meeting"))
            except (PeerError, Silenced) as error:
                found.append(str(error).partition(": ")[2])
        return found

    for found in values_of(run_ranks(2, work)):
        assert found == [[(0, 0), (0, 1)], "no rows in run 1", [(2, 0), (2, 1)], "no rows in run 3"]


@pytest.fixture
def injection() -> Injection:
    model: PreTrainedModel = build_model("llama")
    injection = inject(model, LoraConfig(r=3, lora_dropout=0.2), 0)
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


@pytest.mark.parametrize(("counts", "size"), [([1, 3, 2, 1, 2], 2), ([2, 1], 3)])
def test_a_step_of_several_processes_is_the_step_of_one(injection: Injection, counts: list[int], size: int) -> None:
    """Gradients and losses are the same to the bit, whatever the number of processes, and with dropout."""
    model, head, tensors = injection.model, find_head(injection.model), list(injection.tensors().values())
    micro_batches = examples(counts)
    optimizer = torch.optim.SGD(tensors, lr=0.0)
    model.train()

    def step(world: World) -> tuple[float, list[torch.Tensor]]:
        taken: list[torch.Tensor] = []
        check = lambda: taken.extend(t.grad.clone() for t in tensors if t.grad is not None)  # noqa: E731
        parts = (model, head, CrossEntropy(), optimizer, tensors, micro_batches)
        with fast_path(model, longest=40) as path:
            result = training_step(*parts, 0.0, 0.0, check=check, layout=path.layout, world=world, seed=4)
        return result.loss, taken

    loss, gradients = step(ALONE)
    for other_loss, others in values_of(run_ranks(size, step)):
        assert other_loss == loss
        assert all(torch.equal(one, other) for one, other in zip(gradients, others, strict=True))
    assert not torch.equal(step(ALONE)[1][0], torch.zeros(()))


def test_an_evaluation_of_several_processes_is_that_of_one(injection: Injection) -> None:
    model, head = injection.model, find_head(injection.model)
    (rows,) = examples([7])
    whole = evaluate_loss(model, head, Figures(), rows, 2)
    found = values_of(run_ranks(5, lambda world: evaluate_loss(model, head, Figures(), rows, 2, world=world)))
    assert found == [whole] * 5


class Figures(CrossEntropy):
    """Has a figure of every row, one of the rows that end in an odd token, and none where there is no such row."""

    def compute(self, model: PreTrainedModel, head: Head, batches: Sequence[Batch]) -> LossSum:
        rows = [example for batch in batches for example in batch.examples]
        odd = sum(float(example.input_ids[-1] % 2) for example in rows)
        figures = {"rows": Metric(torch.tensor(float(len(rows))), len(rows))}
        if odd or len(batches[0].document_lengths) > 1:
            figures["odd"] = Metric(torch.tensor(odd), odd)
        return LossSum(super().compute(model, head, batches).total, figures)


def test_what_was_not_counted_is_no_figure(injection: Injection) -> None:
    model, head = injection.model, find_head(injection.model)
    even = [EncodedExample(np.arange(9, dtype=np.int32), np.arange(9) > 2, row=row) for row in (1, 2)]
    result = evaluate_loss(model, head, Figures(), even, 2)
    assert result.metrics == {"rows": 1.0}
    assert np.isfinite(result.loss)
    assert np.isnan(evaluate_loss(model, head, Figures(), [], 2).loss)


def test_the_first_process_alone_writes_and_tells(tmp_path: Path) -> None:
    told: list[str] = []
    config = load_config({"data": {"train": "rows.jsonl"}})
    for rank in (1, 0):
        run = Run(tmp_path / str(rank))
        run.path.mkdir()
        with EventLog(run, config, lambda event: told.append(event.kind), -1, StopRequest(), OneOf(rank, 2)) as log:
            log.emit(Note(0, message="a"))
            log.show(Progress(0, what="b", done=1, total=2))
        assert run.metrics_path.exists() == (rank == 0)
    assert told == ["note", "progress"]
