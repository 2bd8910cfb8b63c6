"""Frozen layers on disk: the same numbers, in the memory of two layers."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.pytorch_utils import Conv1D

import lamina
from lamina.adapters.load import load
from lamina.config import load_config
from lamina.config.quantization import QuantizationConfig
from lamina.errors import ConfigError
from lamina.machine.pages import mapped_spans
from lamina.models import offload
from lamina.models.fingerprint import weight_files
from lamina.models.load import Base, load_base
from lamina.models.offload import MappedLinear, wants_offload
from lamina.runs import Run
from lamina.runs.events import Started, Step
from tests.support.models_zoo import build_tokenizer

LAYERS = 8


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model whose layers take 2.5 MiB each, and a cache of its own."""
    monkeypatch.setenv("LAMINA_CACHE", str(tmp_path / "cache"))
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=259,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
    build_tokenizer().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def resident_bytes(files: list[Path]) -> int:
    """Of the files' mapped pages, how many this process has in memory."""
    spans, found, counted = mapped_spans(files), 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split(maxsplit=1)[0]
        if "-" in first and not first.endswith(":"):
            counted = tuple(int(part, 16) for part in first.split("-")) in spans
        elif counted and first == "Rss:":
            found += 1024 * int(line.split()[1])
    return found


@pytest.mark.parametrize("kind", ["linear", "linear without bias", "conv1d"])
def test_a_mapped_linear_is_the_linear(kind: str) -> None:
    torch.manual_seed(0)
    module = Conv1D(48, 32) if kind == "conv1d" else nn.Linear(32, 48, bias=kind == "linear")
    mapped = MappedLinear(module)
    assert (mapped.in_features, mapped.out_features) == (32, 48)
    x, g = torch.randn(2, 3, 32, requires_grad=True), torch.randn(2, 3, 48)
    ours, theirs = mapped(x), module(x)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(torch.autograd.grad(ours, x, g), torch.autograd.grad(theirs, x, g))


def _run(folder: Path, out: Path, name: str, **settings: Any) -> Path:
    rows = [{"prompt": f"Say {i}", "completion": f"{i} is said"} for i in range(24)]
    (out / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = {
        "model": str(folder),
        "data": {"train": str(out / "rows.jsonl"), "eval": 0.2, "max_length": 64},
        "train": {"max_steps": 3, "learning_rate": 0.01, "per_device_train_batch_size": 2},
        "dtype": "float32",
        "output_dir": str(out / name),
        **settings,
    }
    return lamina.train(config).path


def _steps(run: Path) -> list[tuple[float, float]]:
    return [(step.loss, step.grad_norm) for step in Run(run).events(Step)]


def _fused(run: Path) -> int:
    return next(Run(run).events(Started)).fused_layers


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"train": {"max_steps": 3, "learning_rate": 0.01, "gradient_checkpointing": True}},
        {"dtype": "bfloat16", "method": {"type": "lora", "lora_dropout": 0.1}},
        {"method": {"type": "ia3"}},
        {"method": {"type": "prefix_tuning"}},
    ],
)
def test_training_is_the_same(folder: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    inside = _run(folder, tmp_path, "inside", offload=False, **settings)
    outside = _run(folder, tmp_path, "outside", offload=True, **settings)
    # Losses and gradients, and not the adapter's elements: AdamW moves those whose gradient is nothing but rounding
    # by whole steps, and products over other addresses round otherwise.
    tolerance = 5e-3 if settings.get("dtype") == "bfloat16" else 1e-5
    ours, theirs = _steps(outside), _steps(inside)
    assert ours[0] == pytest.approx(theirs[0], rel=tolerance)
    assert [loss for loss, _ in ours] == pytest.approx([loss for loss, _ in theirs], rel=tolerance)
    assert len(theirs) == 3
    assert _fused(outside) == _fused(inside)
    load(outside).certify().require()


@pytest.mark.parametrize("bits", [None, 8, 4])
def test_memory_holds_two_layers_at_a_time(folder: Path, bits: Any) -> None:
    notes: list[str] = []
    ids = torch.arange(5, 40)[None]
    quantization = QuantizationConfig(bits=bits) if bits else None
    expected = load_base(str(folder), "float32", quantization=quantization, offload=False).model(ids).logits.detach()
    gc.collect()  # which had the same file mapped
    base = load_base(str(folder), "float32", quantization=quantization, offload=True, notify=notes.append)
    assert any("frozen layers stay on disk" in note for note in notes)
    files = _files_of(base, bits)
    seen: list[int] = []
    for layer in base.model.model.layers:
        layer.register_forward_hook(lambda *_: seen.append(resident_bytes(files)))
    embedded = base.model.get_input_embeddings()(ids).requires_grad_()
    size = sum(path.stat().st_size for path in files)
    torch.testing.assert_close(base.model(inputs_embeds=embedded).logits, expected, rtol=1e-5, atol=1e-5)
    assert len(seen) == LAYERS
    # Two layers, the next one that is being read, and what is no layer; a page here and there.
    assert max(seen) < 0.6 * size
    for layer in base.model.model.layers:
        layer.register_full_backward_hook(lambda *_: seen.append(resident_bytes(files)))
    seen.clear()
    base.model(inputs_embeds=embedded).logits.square().mean().backward()
    assert len(seen) == 2 * LAYERS
    assert max(seen) < 0.6 * size
    assert embedded.grad is not None and bool(embedded.grad.any())


def _files_of(base: Base, bits: int | None) -> list[Path]:
    if bits is None:
        return weight_files(base.source.folder)
    from lamina.cache.folder import cache_folder

    (cached,) = (path for path in (cache_folder() / "quantized").iterdir() if path.is_dir())
    return weight_files(cached)


def test_auto_leaves_on_disk_what_does_not_fit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def free(megabytes: int) -> None:
        memory = type("Memory", (), {"available": megabytes * 2**20})
        monkeypatch.setattr(offload.psutil, "virtual_memory", memory)

    free(1000)
    assert not any(isinstance(module, MappedLinear) for module in load_base(str(folder)).model.modules())
    free(15)
    notes: list[str] = []
    base = load_base(str(folder), "float32", notify=notes.append)
    assert sum(isinstance(module, MappedLinear) for module in base.model.modules()) == 7 * LAYERS
    assert any(note.startswith("0.02 GiB of frozen layers stay on disk") for note in notes)


@pytest.mark.parametrize(
    "method", [{"type": "full"}, {"type": "peft", "peft_type": "OFT", "target_modules": ["q_proj"]}]
)
def test_methods_that_need_the_base_s_own_layers_get_them(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: dict[str, Any]
) -> None:
    monkeypatch.setattr(offload, "_SHARE_FOR_BASE", 0.0)
    loaded = load(_run(folder, tmp_path, "run", method=method, train={"max_steps": 1, "learning_rate": 1e-4}))
    assert not any(isinstance(module, MappedLinear) for module in loaded.model.modules())


def test_bad_input(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"offload: it maps files .* training runs on cuda .*set it to false or auto"):
        wants_offload(True, weight_files(folder), torch.device("cuda"))
    assert wants_offload("auto", weight_files(folder), torch.device("cuda")) is False
    for method in ({"type": "full"}, {"type": "peft", "peft_type": "LORA", "target_modules": ["q_proj"]}):
        with pytest.raises(ConfigError, match=r"needs the base model's own layers.*set offload to false"):
            load_config({"data": {"train": "rows.jsonl"}, "method": method, "offload": True})
    with pytest.raises(ConfigError, match="offload"):
        load_config({"data": {"train": "rows.jsonl"}, "offload": "disk"})
