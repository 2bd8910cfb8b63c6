"""`lamina convert` on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from tests.support.cli import Cli


def old_adapter(folder: Path) -> Path:
    folder.mkdir()
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    torch.save({"base_model.model.x.q_proj.lora_A.weight": torch.zeros(2, 3)}, folder / "adapter_model.bin")
    return folder


def test_an_old_adapter_is_written_again(cli: Cli, tmp_path: Path) -> None:
    old = old_adapter(tmp_path / "old")
    result = cli("convert", old, "--out", "new", "--json")
    assert result.code == 0, result.err
    assert result.json() == {
        "path": "new",
        "tensors": 1,
        "bytes": (tmp_path / "new" / "adapter_model.safetensors").stat().st_size,
    }
    assert "already exists" in cli("convert", old, "--out", "new").error()


def test_what_is_no_old_adapter_is_one_error(cli: Cli, tmp_path: Path) -> None:
    assert "there is no such folder" in cli("convert", "nowhere", "--out", "new").error()
    (tmp_path / "empty").mkdir()
    assert "holds no adapter_config.json" in cli("convert", "empty", "--out", "new").error()
