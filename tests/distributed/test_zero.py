"""DeepSpeed's ZeRO: the losses of lamina's own sums, the same checkpoints, and settings that cannot contradict."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import lamina
from lamina.errors import ConfigError
from lamina.runs import Run
from lamina.runs.events import Step
from lamina.training.zero import zero_settings
from tests.support.ranks import run_ranks, values_of
from tests.support.training import settings


def config_of(deepspeed: Any = None, **train: Any) -> lamina.Config:
    values = {"data": {"train": "x"}, "train": train, "distributed": {"strategy": "deepspeed", "deepspeed": deepspeed}}
    return lamina.load_config(values)


def test_what_lamina_decides_is_filled_in(tmp_path: Path) -> None:
    given = {"gradient_clipping": "auto", "train_batch_size": "auto", "zero_optimization": {"stage": 1}}
    path = tmp_path / "ds.json"
    path.write_text(json.dumps(given))
    for deepspeed in (given, str(path)):
        found = zero_settings(config_of(deepspeed, max_grad_norm=0.5))
        assert found["gradient_clipping"] == 0.5
        assert found["zero_optimization"]["stage"] == 1
        assert found["gradient_accumulation_steps"] == 1
        assert "train_batch_size" not in found
    assert zero_settings(config_of())["zero_optimization"]["stage"] == 2
    offload = {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}
    assert zero_settings(config_of(offload))["zero_optimization"]["offload_optimizer"] == {"device": "cpu"}


@pytest.mark.parametrize(
    ("deepspeed", "train", "named"),
    [
        ({"gradient_clipping": 3.0}, {}, "distributed.deepspeed.gradient_clipping: is 3.0, and lamina sets it to 1.0"),
        ({"train_batch_size": 64}, {}, "train.global_batch_size"),
        ({"optimizer": {"type": "Adam"}}, {}, "train.optim"),
        ({"bf16": {"enabled": True}}, {}, "set dtype instead"),
        ({"zero_optimization": {"stage": 3}}, {}, "strategy: fsdp"),
        ("nowhere.json", {}, "cannot be read"),
        (None, {"optim": "muon"}, "train.optim"),
    ],
)
def test_contradictions_are_named(deepspeed: Any, train: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        zero_settings(config_of(deepspeed, **train))


def trained(size: int, config: dict[str, Any], strategy: str, resume: bool = False, **more: Any) -> Run:
    config = {**config, "distributed": {"strategy": strategy, **more}}
    values_of(run_ranks(size, lambda world: lamina.train(config, world=world, resume=resume).path))
    return Run(Path(config["output_dir"]))


def losses_of(run: Run) -> list[float]:
    return [event.loss for event in run.events(Step)]


@pytest.mark.slow
@pytest.mark.parametrize("method", [{"type": "lora", "r": 4, "lora_dropout": 0.1}, {"type": "full"}])
@pytest.mark.parametrize("more", [{}, {"deepspeed": {"zero_optimization": {"stage": 1}}}])
def test_twenty_steps(method: dict[str, Any], more: dict[str, Any], model_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    train = {"gradient_accumulation_steps": 3, "max_steps": 20, "eval_steps": 10, "learning_rate": 1e-3}
    runs = [settings(tmp_path, model_folder, name, method=method, train=train) for name in ("ddp", "zero")]
    for run in runs:
        run["method"] = method
    ours, theirs = trained(2, runs[0], "ddp"), trained(2, runs[1], "deepspeed", **more)
    assert losses_of(theirs) == pytest.approx(losses_of(ours), abs=1e-5)
    summary = theirs.summary
    assert summary is not None and summary.strategy == "deepspeed"
    assert lamina.load(theirs.path).injection.tensors()


@pytest.mark.slow
@pytest.mark.parametrize(("first", "second"), [("deepspeed", "ddp"), ("ddp", "deepspeed")])
def test_either_goes_on_from_the_other(first: str, second: str, model_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    train = {"gradient_accumulation_steps": 2, "max_steps": 12, "save_steps": 6, "learning_rate": 1e-3}
    whole = trained(2, settings(tmp_path, model_folder, "whole", train=train), "ddp")
    cut = settings(tmp_path, model_folder, "cut", train=train)

    class Cut(BaseException):
        pass

    def stop(event: Any) -> None:
        if event.kind == "checkpoint" and event.step == 6:
            raise Cut

    config = {**cut, "distributed": {"strategy": first}}
    outcomes = run_ranks(2, lambda world: lamina.train(config, stop, world=world).path)
    assert all(outcome.error for outcome in outcomes)
    assert losses_of(trained(2, cut, second, resume=True)) == pytest.approx(losses_of(whole), abs=1e-5)
