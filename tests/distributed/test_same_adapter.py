"""Training gives the same adapter and the same losses, to the bit, from any number of processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import lamina
from lamina.runs import Run
from tests.support.preferences import preference_settings
from tests.support.processes import METHODS, values, what_it_gave
from tests.support.ranks import run_ranks, values_of


def trained(size: int, config: dict[str, Any]) -> dict[str, Any]:
    if size == 1:
        return what_it_gave(lamina.train(config))
    values_of(run_ranks(size, lambda world: lamina.train(config, world=world).path))
    run = Run(Path(config["output_dir"]))
    assert run.summary is not None
    assert (run.summary.world_size, run.summary.strategy) == (size, "ddp")
    assert run.summary.peak_memory_by_rank is not None
    assert run.summary.peak_memory_bytes == max(run.summary.peak_memory_by_rank)
    assert len(run.summary.peak_memory_by_rank) == size
    return what_it_gave(run)


def check(sizes: list[int], folder: Path, model: Path, method: str, dtype: str, **changes: Any) -> None:
    one, *others = [trained(size, values(folder, model, f"run{size}", method, dtype, **changes)) for size in sizes]
    for other in others:
        assert other == one


@pytest.mark.parametrize(
    ("method", "dtype", "sizes"),
    [("lora", "float32", [1, 2, 3]), pytest.param("adalora", "bfloat16", [1, 4], marks=pytest.mark.slow)],
)
def test_any_number_of_processes(method: str, dtype: str, sizes: list[int], model_folder: Path, tmp_path: Path) -> None:
    check(sizes, tmp_path, model_folder, method, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("method", METHODS)
def test_any_method(method: str, dtype: str, model_folder: Path, tmp_path: Path) -> None:
    check([1, 2, 3, 4], tmp_path, model_folder, method, dtype)


@pytest.mark.parametrize(
    "train",
    [
        {"optim": "badam", "badam": {"switch_interval": 2}},
        pytest.param({"optim": "apollo_adamw", "apollo": {"rank": 8}}, marks=pytest.mark.slow),
    ],
    ids=["badam", "apollo"],
)
def test_optimizers_of_all_weights(train: dict[str, Any], model_folder: Path, tmp_path: Path) -> None:
    def config(size: int) -> dict[str, Any]:
        given = values(tmp_path, model_folder, f"run{size}", "lora", "float32")
        return {**given, "method": {"type": "full"}, "train": {**given["train"], **train}}

    assert trained(1, config(1)) == trained(2, config(2))


LOSSES: dict[str, dict[str, Any]] = {
    "dpo": {"type": "dpo"},
    "rpo": {"type": "dpo", "loss_type": ["sigmoid", "sft"]},
    "kto": {"type": "kto"},
    "orpo": {"type": "orpo"},
    "simpo": {"type": "simpo"},
    "reward": {"type": "reward"},
}
QUICK = ("kto",)


@pytest.mark.parametrize("loss", [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in LOSSES])
def test_any_loss(loss: str, model_folder: Path, tmp_path: Path) -> None:
    def config(size: int) -> dict[str, Any]:
        train = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 3, "max_steps": 4}
        changes = {"train": train, "method": {"lora_dropout": 0.1}}
        return preference_settings(tmp_path, model_folder, LOSSES[loss], f"run{size}", **changes)

    assert trained(1, config(1)) == trained(2, config(2))
