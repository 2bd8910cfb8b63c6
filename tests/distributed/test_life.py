"""Runs of several processes that are cut, lose a process, or begin with something different in one of them."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import lamina
from lamina.distributed.group import Group
from lamina.losses.base import LossSum
from lamina.losses.cross_entropy import CrossEntropy
from lamina.runs import Run
from lamina.runs.events import CheckpointSaved, Note, Step
from tests.support.ranks import Outcome, run_ranks, values_of
from tests.support.training import settings, write_rows

# Seconds within which every fault must have ended all processes, on a loaded machine.
SOON = 20.0


def values(folder: Path, model: Path, name: str = "run") -> dict[str, Any]:
    train = {"gradient_accumulation_steps": 3, "max_steps": 6, "eval_steps": 6, "save_steps": 2}
    return settings(folder, model, name, train=train)


def trained(size: int, config: dict[str, Any], before: Callable[[Group], object], timeout: float = 60.0, **more: Any):
    """Trains in several processes, after `before` has prepared each."""

    def work(world: Group) -> str:
        changed = before(world)
        return str(lamina.train(changed if isinstance(changed, dict) else config, world=world, **more).path)

    began = time.monotonic()
    outcomes = run_ranks(size, work, timeout)
    assert time.monotonic() - began < SOON + timeout * (timeout < 60)
    return outcomes


def of_first(outcomes: list[Outcome]) -> str:
    """The first process's message; the others are silent or have it too."""
    assert all(outcome.error for outcome in outcomes)
    assert {outcome.error for outcome in outcomes[1:]} <= {"Silenced", "killed"}
    return outcomes[0].message


def at_step(step: int, do: Callable[[], None], rank: int = 1) -> Callable[[Group], None]:
    """Does something in the middle of a step, in one process."""

    def before(world: Group) -> None:
        if world.rank != rank:
            return
        real, calls = CrossEntropy.compute, [0]

        def compute(self: CrossEntropy, *args: Any) -> LossSum:
            if torch.is_grad_enabled():
                calls[0] += 1
                if calls[0] == step + 1:  # the first measures the speed
                    do()
            return real(self, *args)

        CrossEntropy.compute = compute  # type: ignore[method-assign]

    return before


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def digest(config: dict[str, Any]) -> str:
    summary = Run(Path(config["output_dir"])).summary
    assert summary is not None
    return summary.adapter_digest


def test_a_killed_process_is_named_and_the_run_resumes_with_another_number(model_folder: Path, tmp_path: Path) -> None:
    config, whole = values(tmp_path, model_folder), values(tmp_path, model_folder, "whole")
    lamina.train(whole)
    outcomes = trained(2, config, at_step(3, kill))
    assert outcomes[1].error == "killed"
    assert outcomes[0].error == "LostRankError"
    assert "rank 1 (" in outcomes[0].message and "is gone" in outcomes[0].message
    run = Run(Path(config["output_dir"]))
    assert [event.step for event in run.events(Step)] == [1, 2]
    assert [event.step for event in run.events(CheckpointSaved)] == [2]
    assert run.status == "interrupted"
    values_of(trained(3, config, lambda world: None, resume=True))
    assert digest(config) == digest(whole)


def test_one_of_the_others_tells_that_the_first_is_gone(model_folder: Path, tmp_path: Path) -> None:
    outcomes = trained(3, values(tmp_path, model_folder), at_step(3, kill, rank=0))
    assert outcomes[0].error == "killed"
    assert sorted(outcome.error for outcome in outcomes[1:]) == ["LostRankError", "Silenced"]
    (message,) = [outcome.message for outcome in outcomes if outcome.error == "LostRankError"]
    assert "rank 0 (" in message and "is gone" in message


def test_a_killed_process_is_named_where_it_shares_the_base(model_folder: Path, tmp_path: Path) -> None:
    """The others are then in the middle of the model, whose exchanges are torch's."""
    config = {**values(tmp_path, model_folder), "distributed": {"strategy": "fsdp"}}
    outcomes = trained(2, config, at_step(3, kill))
    assert outcomes[1].error == "killed"
    assert outcomes[0].error == "LostRankError"
    assert "rank 1 (" in outcomes[0].message and "is gone" in outcomes[0].message


@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_one_process_stops_all_with_a_checkpoint(rank: int, model_folder: Path, tmp_path: Path) -> None:
    config = values(tmp_path, model_folder)
    message = of_first(trained(2, config, at_step(3, lambda: os.kill(os.getpid(), signal.SIGTERM), rank)))
    assert f"stopped by SIGTERM to rank {rank} (" in message
    step = 3 if rank else 2  # the first computes two losses in a step
    assert f"after step {step} of 6, with a checkpoint" in message
    run = Run(Path(config["output_dir"]))
    assert [event.step for event in run.events(CheckpointSaved)][-1] == step
    assert run.status == "interrupted"


def raise_error() -> None:
    raise RuntimeError("the device has failed")


def test_an_error_in_one_process_is_the_message_of_all(model_folder: Path, tmp_path: Path) -> None:
    config = values(tmp_path, model_folder)
    message = of_first(trained(3, config, at_step(2, raise_error)))
    assert message.startswith("rank 1 (")
    assert message.endswith("RuntimeError: the device has failed")
    assert "rank 1" in (Run(Path(config["output_dir"])).manifest.error or "")


def test_a_late_process_is_named_with_what_it_has_not_reached(model_folder: Path, tmp_path: Path) -> None:
    config = {**values(tmp_path, model_folder), "distributed": {"timeout": 2.0}}
    message = of_first(trained(2, config, at_step(2, lambda: time.sleep(5.0)), timeout=2.0))
    assert "rank 1 (" in message and "has not reached 'the end of step 2'" in message
    assert "within 2 s (distributed.timeout)" in message


def test_a_gradient_that_is_not_finite_is_skipped_by_all(model_folder: Path, tmp_path: Path) -> None:
    config = values(tmp_path, model_folder)

    def before(world: Group) -> None:
        state = {"bad": False}
        at_step(2, lambda: state.update(bad=True))(world)
        if world.rank == 1:
            inner = CrossEntropy.compute

            def compute(self: CrossEntropy, *args: Any) -> LossSum:
                found = inner(self, *args)
                bad, state["bad"] = state["bad"], False
                return LossSum(found.total * float("inf")) if bad else found

            CrossEntropy.compute = compute  # type: ignore[method-assign]

    values_of(trained(2, config, before))
    run = Run(Path(config["output_dir"]))
    assert run.summary is not None and run.summary.skipped_steps == 1
    (note,) = [event.message for event in run.events(Note) if "not finite" in event.message]
    assert "from rank 1 (" in note


def test_other_data_on_one_host_is_named(model_folder: Path, tmp_path: Path) -> None:
    config = values(tmp_path, model_folder)
    (tmp_path / "other").mkdir()
    rows = write_rows(tmp_path / "other" / "rows.jsonl", 30)
    other = {**config, "data": {**config["data"], "train": str(rows)}}
    message = of_first(trained(2, config, lambda world: other if world.rank == 1 else None))
    assert "rank 1 (" in message and "the data file rows.jsonl" in message


def test_another_base_on_one_host_is_named(model_folder: Path, tmp_path: Path) -> None:
    from tests.support.models_zoo import build_model, build_tokenizer

    other = tmp_path / "model"
    model = build_model("llama", vocab_size=len(build_tokenizer()))
    with torch.no_grad():
        model.model.norm.weight.add_(0.5)
    model.save_pretrained(other)
    build_tokenizer().save_pretrained(other)
    config = values(tmp_path, model_folder)
    message = of_first(trained(2, config, lambda world: {**config, "model": str(other)} if world.rank == 1 else None))
    assert "rank 1 (" in message and "the base's tensors" in message


def test_another_setting_on_one_host_is_named(model_folder: Path, tmp_path: Path) -> None:
    config = values(tmp_path, model_folder)
    message = of_first(trained(3, config, lambda world: {**config, "seed": 7} if world.rank == 2 else None))
    assert "rank 2 (" in message and "seed is 7 there, and 0 on rank 0" in message


def test_a_full_disk_ends_all(model_folder: Path, tmp_path: Path) -> None:
    config = values(tmp_path, model_folder)

    def before(world: Group) -> None:
        from lamina.training import checkpoint

        def full(*args: Any, **more: Any) -> None:
            raise OSError(errno.ENOSPC, "No space left on device", "adapter.safetensors")

        checkpoint.save_file = full  # type: ignore[attr-defined]

    message = of_first(trained(2, config, before))
    assert message.startswith("rank 0 (")
    assert "disk is full" in message or "No space left" in message


def test_a_layerwise_optimizer_is_refused(model_folder: Path, tmp_path: Path) -> None:
    config = values(tmp_path, model_folder)
    train = {**config["train"], "optim": "galore_adamw_layerwise", "max_grad_norm": 0.0}
    train["gradient_accumulation_steps"] = 1
    config = {**config, "method": {"type": "full"}, "train": train}
    assert "train.optim" in of_first(trained(2, config, lambda world: None))


def test_more_processes_than_micro_batches_is_noted(model_folder: Path, tmp_path: Path) -> None:
    config = values(tmp_path, model_folder)
    train = {"max_steps": 1, "per_device_train_batch_size": 2, "global_batch_size": 4, "learning_rate": 1e-3}
    config = {**config, "train": train}
    values_of(trained(3, config, lambda world: None))
    notes = [event.message for event in Run(Path(config["output_dir"])).events(Note)]
    assert any(
        "A step has 2 micro-batches over all processes, so 1 of 3 processes have nothing to do" in note
        for note in notes
    )


def test_a_run_that_is_locked_is_refused_by_all(model_folder: Path, tmp_path: Path) -> None:
    from lamina.runs import exclusive

    config = values(tmp_path, model_folder)
    with exclusive(Run(Path(config["output_dir"]))):
        message = of_first(trained(2, config, lambda world: None))
    assert "another process is training into this run" in message


def test_nobody_waits_for_a_process_that_failed_before_joining(tmp_path: Path) -> None:
    def work(world: Group) -> list[int]:
        if world.rank == 1:
            raise ValueError("no configuration")
        return world.gather(world.rank, "the start")

    assert "ValueError: no configuration" in of_first(run_ranks(3, work))
