"""Adapters and bases that are not where they are looked for: what the error names, and that it works."""

from __future__ import annotations

import shutil
from pathlib import Path

import peft
import pytest

import lamina
from lamina.adapters.adapter import read_adapter
from lamina.errors import AdapterError
from tests.support.models_zoo import build_model
from tests.support.training import settings


def test_a_folder_of_checkpoints_names_those_in_it(tmp_path: Path) -> None:
    """A trainer's output: the folder itself is no adapter, each checkpoint is."""
    for step in (10, 20):
        config = peft.LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM")
        peft.get_peft_model(build_model("llama"), config).save_pretrained(str(tmp_path / f"checkpoint-{step}"))
    with pytest.raises(AdapterError) as caught:
        read_adapter(tmp_path)
    assert f"Fix: name {tmp_path}/checkpoint-10 or {tmp_path}/checkpoint-20." in str(caught.value)
    assert read_adapter(tmp_path / "checkpoint-10").tensors


@pytest.mark.parametrize("is_locked", [True, False])
def test_a_base_that_is_gone_promises_only_the_check_that_there_is(
    is_locked: bool, model_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(model_folder, tmp_path / "base")
    run = lamina.train(settings(tmp_path, tmp_path / "base", train={"max_steps": 1}))
    (tmp_path / "base").rename(tmp_path / "moved")
    if not is_locked:
        (run.adapter / "lamina.json").unlink()
    with pytest.raises(
        AdapterError, match=r"which is not here: .* does not exist\. Fix: say where it is with --model"
    ) as caught:
        lamina.load(run.adapter)
    assert ("its digest is checked" in str(caught.value)) == is_locked
    assert bool(lamina.load(run.adapter, model=str(tmp_path / "moved")).notes) == (not is_locked)
