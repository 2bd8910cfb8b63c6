"""Weights written as they come."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from lamina.models.fingerprint import fingerprint_base
from lamina.models.shards import ShardWriter
from tests.support.models_zoo import build_model


def test_small_ones_are_one_file(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path)
    tensors = {"b": torch.randn(3, 4), "a": torch.arange(5)}
    for name, tensor in tensors.items():
        writer.add(name, tensor)
    writer.close()
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    found = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


def test_large_ones_are_several_that_transformers_reads(tmp_path: Path) -> None:
    model = build_model("llama").to(torch.bfloat16)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    model.save_pretrained(whole)
    parts.mkdir()
    model.config.save_pretrained(parts)
    writer = ShardWriter(parts, max_bytes=20_000)
    tied = model.all_tied_weights_keys
    for name, tensor in model.state_dict().items():
        if name not in tied:
            writer.add(name, tensor.T.contiguous().T if tensor.dim() == 2 else tensor)  # columns that lie apart, too
    writer.close()
    shards = sorted(parts.glob("*.safetensors"))
    assert len(shards) > 2
    assert shards[0].name == f"model-00001-of-{len(shards):05d}.safetensors"
    index = json.loads((parts / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(t.nbytes for n, t in model.state_dict().items() if n not in tied)
    assert fingerprint_base(parts).tensors == fingerprint_base(whole).tensors
    loaded = AutoModelForCausalLM.from_pretrained(parts, dtype=torch.bfloat16)
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_what_was_written_can_be_taken_away(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, max_bytes=64)
    for number in range(4):
        writer.add(str(number), torch.ones(10))
    assert writer.names == {"0", "1", "2", "3"}
    assert list(tmp_path.iterdir())
    writer.discard()
    assert not list(tmp_path.iterdir())
