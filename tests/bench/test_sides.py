"""The contestants: each is found, and each trains the same way on the same rows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lamina.bench.job import SideRun
from lamina.bench.optional import is_installed
from lamina.bench.sides import find_side, side_names
from lamina.bench.sides._common import IGNORED, load_model, lora_config, padded_micro_batches, start_like_lamina
from lamina.bench.worker import run_job
from lamina.config.methods.lora import LoraConfig
from lamina.methods.shared.base import inject
from tests.support.bench import LENGTHS, examples, job

needs_trl = pytest.mark.skipif(not is_installed("trl"), reason="trl is not installed")


@pytest.fixture(scope="module")
def own(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> SideRun:
    return run_job(job("lamina", model_folder, tmp_path_factory.mktemp("own")))


def test_every_file_is_a_side_and_lamina_is_first() -> None:
    names = side_names()
    assert names[0] == "lamina"
    ours = {"lamina", "lamina-checkpointing", "lamina-selective"}
    assert set(names) == ours | {"litgpt", "peft", "trl", "trl-checkpointing", "unsloth"}
    for name in names:
        side = find_side(name)
        assert side.ABOUT and isinstance(side.REQUIRES, tuple) and callable(side.run)


def test_what_a_run_reports(own: SideRun) -> None:
    assert [step.tokens for step in own.steps] == [sum(lengths) for lengths in LENGTHS]
    assert [step.supervised_tokens for step in own.steps] == [sum(n // 3 for n in lengths) for lengths in LENGTHS]
    assert [step.limit_seconds is None for step in own.steps] == [True, False, False]
    assert len(own.timed) == 2
    assert all(0 < (step.share or 0) < 1 for step in own.timed)
    assert all(step.other_cores >= 0 for step in own.steps)
    assert 0 < own.loaded_bytes <= own.peak_bytes
    assert SideRun.from_json(own.as_json()) == own


@pytest.mark.parametrize(
    "side",
    [
        "lamina-checkpointing",
        "lamina-selective",
        "peft",
        pytest.param("trl", marks=needs_trl),
        pytest.param("trl-checkpointing", marks=needs_trl),
    ],
)
def test_losses_lie_on_top_of_laminas(side: str, own: SideRun, model_folder: Path, tmp_path: Path) -> None:
    """Same rows, same random start, same updates: in float32 only rounding is left, also after two updates."""
    run = run_job(job(side, model_folder, tmp_path))
    for theirs, ours in zip(run.steps, own.steps, strict=True):
        assert (theirs.tokens, theirs.supervised_tokens) == (ours.tokens, ours.supervised_tokens)
        assert theirs.loss == pytest.approx(ours.loss, abs=2e-4)
    assert own.steps[0].loss != pytest.approx(own.steps[1].loss, abs=1e-3)


def test_a_peers_adapter_starts_as_laminas(model_folder: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    work = job("peft", model_folder, tmp_path)
    theirs = peft.get_peft_model(load_model(work), lora_config(work))
    start_like_lamina(theirs, work)
    ours = inject(load_model(work), LoraConfig(r=work.rank, lora_alpha=work.alpha), work.seed).tensors()
    found = {name.replace(".default", ""): tensor for name, tensor in theirs.named_parameters() if "lora_" in name}
    assert found.keys() == ours.keys()
    for name, tensor in found.items():
        assert torch.equal(tensor, ours[name]), name


@pytest.mark.parametrize("count", [1, 2, 3])
def test_padded_micro_batches_hold_every_token_once(count: int) -> None:
    batch = examples(LENGTHS[2])
    parts = list(padded_micro_batches(batch, torch.device("cpu"), count))
    assert sorted(length for part in parts for length in part.lengths) == sorted(LENGTHS[2])
    assert sum(part.supervised_tokens for part in parts) == sum(example.supervised_tokens for example in batch)
    for part in parts:
        assert part.input_ids.shape == part.labels.shape == (len(part.lengths), max(part.lengths))
        assert int((part.labels != IGNORED).sum()) == part.supervised_tokens


@needs_trl
@pytest.mark.parametrize("rows", [1, 2, 4])
def test_packed_rows_of_trl_hold_every_token_once(rows: int) -> None:
    from lamina.bench.sides.trl import packed

    batch = examples(LENGTHS[2])
    found = packed(batch, rows)
    assert len(found) == rows
    assert sorted(length for row in found for length in row["seq_lengths"]) == sorted(LENGTHS[2])
    for row in found:
        assert len(row["input_ids"]) == len(row["labels"]) == sum(row["seq_lengths"])
    assert sum(label != -100 for row in found for label in row["labels"]) == sum(e.supervised_tokens for e in batch)
