"""The micro-batches of an epoch: the largest of them, which a run tries before its first step."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lamina.chat.template import build_template
from lamina.config import DataConfig
from lamina.data.dataset import build_dataset
from lamina.data.packing import plan_epoch
from lamina.data.side import Batches
from tests.support.models_zoo import build_tokenizer


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("seed", range(5))
def test_the_largest_micro_batch_is_the_one_with_the_most_tokens(packing: bool, seed: int, tmp_path: Path) -> None:
    rows = [{"prompt": "q" * (seed + 1), "completion": "a" * (number % 17 + 1)} for number in range(41)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    config = DataConfig(train=str(path), eval=None, packing=packing, max_length=64)
    side = build_dataset(config, build_template(build_tokenizer()), 3, seed).train
    batches = Batches(side, plan_epoch(side.lengths, 3, 64, packing, seed, 0))
    sizes = [sum(map(len, batch)) for batch in batches]
    assert len(batches) > 1
    largest = batches.largest()
    assert [row.row for row in largest] == [row.row for row in batches[sizes.index(max(sizes))]]
    assert [row.row for row in batches[:1].largest()] == [row.row for row in batches[0]]
