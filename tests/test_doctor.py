"""What `lamina doctor` measures."""

from __future__ import annotations

import time

import pytest
import torch

from lamina.doctor import gemm_rate

CPU = torch.device("cpu")


def test_a_rate_of_products() -> None:
    assert 1e6 < gemm_rate(torch.float32, CPU, 200, 0.01) < 1e15


def test_slow_products_are_measured_on_small_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    """As bfloat16 on a CPU without instructions for it, where one product of 1,024 takes seconds."""
    sides: list[int] = []

    def slow(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        sides.append(a.shape[0])
        time.sleep(2 * a.shape[0] ** 3 / 2e9)
        return a

    monkeypatch.setattr(torch, "matmul", slow)
    assert 0 < gemm_rate(torch.bfloat16, CPU, 1024, 0.2) <= 2.1e9
    assert max(sides) < 1024
