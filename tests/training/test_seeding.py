"""A run seeds the generators that it draws from, and no other: those of the caller's GPUs stay where they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import lamina
from lamina.config import METHOD_CONFIGS
from lamina.machine.seeding import seed_generators, seeded
from lamina.quantization.loftq import split_weight
from tests.support.training import settings

METHODS: dict[str, dict[str, Any]] = {name: {"type": name} for name in METHOD_CONFIGS if name != "bitfit"}
METHODS |= {
    "peft": {"type": "peft", "peft_type": "GRALORA", "r": 4, "gralora_k": 2},
    "pissa": {"type": "lora", "r": 4, "init_lora_weights": "pissa_niter_4"},
    "eva": {"type": "lora", "r": 4, "init_lora_weights": "eva"},
    "prefix_projection": {"type": "prefix_tuning", "prefix_projection": True},
}


@pytest.fixture
def reseeded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Who has seeded a GPU's generator since."""
    calls: list[str] = []

    def record(name: str) -> Callable[[int], None]:
        return lambda seed: calls.append(name)

    for name in ("manual_seed", "manual_seed_all"):
        monkeypatch.setattr(torch.cuda, name, record(name))
    return calls


@pytest.mark.skipif(torch.cuda.is_available(), reason="the run is on the GPU then, and seeds that")
@pytest.mark.parametrize("method", METHODS)
def test_a_run_on_the_cpu_seeds_no_gpu(method: str, reseeded: list[str], model_folder: Path, tmp_path: Path) -> None:
    values = settings(tmp_path, model_folder, train={"max_steps": 1, "gradient_accumulation_steps": 1})
    before = torch.get_rng_state()
    lamina.train(values | {"method": METHODS[method]})
    assert not reseeded
    assert torch.equal(torch.get_rng_state(), before)


def test_loftq_seeds_no_gpu(reseeded: list[str]) -> None:
    split_weight(torch.randn(32, 32), 4, 1.0, 2, lambda rest: rest.round())
    assert not reseeded


def test_what_is_drawn_is_what_torch_would_draw() -> None:
    torch.manual_seed(7)
    drawn = torch.randn(5)
    before = torch.get_rng_state()
    with seeded(7):
        assert torch.equal(torch.randn(5), drawn)
    assert torch.equal(torch.get_rng_state(), before)
    seed_generators(7)
    assert torch.equal(torch.randn(5), drawn)
