"""Weights mapped from a file do not stay in memory beside their copies."""

from __future__ import annotations

import sys
from pathlib import Path

import psutil
import pytest
import torch

from lamina.compute.weights.mapped import drop_pages

SIZE = 64 << 20


@pytest.fixture
def mapped(tmp_path: Path) -> torch.Tensor:
    path = tmp_path / "weights"
    path.write_bytes(bytes(range(256)) * (SIZE // 256))
    return torch.from_file(str(path), shared=False, size=SIZE, dtype=torch.uint8)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks Linux")
def test_a_mapped_tensor_leaves_memory_and_can_be_read_again(mapped: torch.Tensor) -> None:
    before = mapped.sum()
    held = psutil.Process().memory_info().rss
    drop_pages(mapped[1:-1])
    assert psutil.Process().memory_info().rss < held - SIZE // 2
    assert mapped.sum() == before


def test_other_memory_is_left_alone() -> None:
    own = torch.arange(SIZE // 8)
    before = own.clone()
    drop_pages(own)
    assert torch.equal(own, before)
