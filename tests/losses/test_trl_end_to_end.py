"""Whole steps of DPO beside TRL's trainer, from the same adapter on the same tokens: the losses of each step agree."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import pytest

from tests.support.preferences import write_pairs


@pytest.mark.slow
def test_the_losses_of_each_step(tmp_path: Path, model_folder: Path) -> None:
    """In float32; one micro-batch a step, where TRL's mean of micro-batches is a mean over pairs."""
    pytest.importorskip("trl")
    from benchmarks.preference import run_lamina, run_trl

    rows = str(write_pairs(tmp_path / "pairs.jsonl"))
    args = Namespace(rows=rows, model=str(model_folder), dtype="float32", pairs=4, steps=5, max_length=128)
    ours, theirs = run_lamina(args), run_trl(args)
    assert ours["tokens"] == theirs["tokens"]
    assert ours["losses"] == pytest.approx(theirs["losses"], rel=1e-5)
    assert ours["losses"][-1] != pytest.approx(ours["losses"][0], rel=1e-3), "the steps had an effect"
