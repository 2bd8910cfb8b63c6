"""A quantized base from its folder to a merged model: loading, the cache, training, the lock, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

import lamina
from lamina.adapters.load import load
from lamina.cache.folder import cache_folder
from lamina.compute.weights.packed import EightBitLinear, FourBitLinear, PackedLinear
from lamina.config import load_config
from lamina.config.quantization import QuantizationConfig
from lamina.errors import CertificateError, ConfigError, ModelError, StorageError
from lamina.models.load import Base, load_base
from lamina.models.quantized import load as quantized
from tests.support.models_zoo import build_model

functional = pytest.importorskip("bitsandbytes.functional")

IDS = torch.tensor([[5, 9, 17, 33, 4, 101, 7, 60, 21]])


def packed_of(base: Base) -> dict[str, PackedLinear]:
    return {name: module for name, module in base.model.named_modules() if isinstance(module, PackedLinear)}


def kept() -> list[Path]:
    root = cache_folder() / "quantized"
    return [path for path in root.iterdir() if path.is_dir()] if root.is_dir() else []


@pytest.mark.parametrize("blocksize", [64, 128])
@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
def test_loaded_weights_are_quantized_ones_of_the_file(folder: Path, quant_type: str, blocksize: int) -> None:
    plain = load_base(str(folder), "float32").model
    config = QuantizationConfig(quant_type=quant_type, blocksize=blocksize)
    base = load_base(str(folder), "float32", quantization=config)
    packed = packed_of(base)
    assert len(packed) == 14
    assert all(type(module) is FourBitLinear for module in packed.values())
    assert type(base.model.lm_head) is torch.nn.Linear
    for name, module in packed.items():
        expected, state = functional.quantize_4bit(
            plain.get_submodule(name).weight, blocksize=blocksize, compress_statistics=True, quant_type=quant_type
        )
        assert torch.equal(module.packed, expected)
        assert torch.equal(module.nested_absmax, state.state2.absmax)
        error = (module.dense() - plain.get_submodule(name).weight).norm() / plain.get_submodule(name).weight.norm()
        assert 0.0 < float(error) < 0.15


def test_eight_bits(folder: Path) -> None:
    base = load_base(str(folder), "bfloat16", quantization=QuantizationConfig(bits=8))
    plain = load_base(str(folder), "bfloat16").model
    assert {type(module) for module in packed_of(base).values()} == {EightBitLinear}
    for name, module in packed_of(base).items():
        weight = plain.get_submodule(name).weight
        assert float((module.dense() - weight).norm() / weight.norm()) < 0.01


@pytest.mark.parametrize("bits", [4, 8])
def test_the_second_start_takes_what_the_first_one_kept(
    folder: Path, bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = QuantizationConfig(bits=bits)
    first = load_base(str(folder), "bfloat16", quantization=config)
    assert len(kept()) == 1
    monkeypatch.setattr(quantized, "StreamingConfig", None)  # nothing may be quantized again
    second = load_base(str(folder), "bfloat16", quantization=config)
    for one, other in zip(packed_of(first).values(), packed_of(second).values(), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one.buffers(), other.buffers(), strict=True))
    with torch.no_grad():
        assert torch.equal(first.model(IDS).logits, second.model(IDS).logits)


def test_another_base_or_setting_is_kept_apart(folder: Path, tmp_path: Path) -> None:
    load_base(str(folder), "bfloat16", quantization=QuantizationConfig())
    load_base(str(folder), "float32", quantization=QuantizationConfig())
    load_base(str(folder), "bfloat16", quantization=QuantizationConfig(double_quant=False))
    other = build_model("llama", vocab_size=259)
    with torch.no_grad():
        other.model.layers[0].mlp.up_proj.weight += 1.0
    other.save_pretrained(folder)
    load_base(str(folder), "bfloat16", quantization=QuantizationConfig())
    assert len(kept()) == 4


def test_a_folder_that_is_quantized_already_loads_as_it_is(folder: Path, tmp_path: Path) -> None:
    settings = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype="bfloat16"
    )
    model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=settings, dtype=torch.bfloat16)
    stored = model.model.layers[1].mlp.up_proj.weight.data.clone()
    shutil.copytree(folder, tmp_path / "small")
    (tmp_path / "small" / "model.safetensors").unlink()
    model.save_pretrained(tmp_path / "small")
    for asked in (None, QuantizationConfig()):
        base = load_base(str(tmp_path / "small"), "bfloat16", quantization=asked)
        assert base.quantization is not None
        assert (base.quantization.bits, base.quantization.double_quant) == (4, True)
        assert torch.equal(packed_of(base)["model.layers.1.mlp.up_proj"].packed, stored)
    assert kept() == []
    with pytest.raises(ConfigError, match=r"quantization.bits: .* already quantized with bits 4, but 8 was requested"):
        load_base(str(tmp_path / "small"), quantization=QuantizationConfig(bits=8))
    with pytest.raises(ConfigError, match="quant_type nf4, but fp4"):
        load_base(str(tmp_path / "small"), quantization=QuantizationConfig(quant_type="fp4"))


def test_a_folder_that_is_quantized_otherwise_is_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps(config | {"quantization_config": {"quant_method": "gptq", "bits": 4}})
    )
    for asked in (None, QuantizationConfig()):
        with pytest.raises(ModelError, match=r"quantized with gptq, .* Fix: use the model in 16 bits"):
            load_base(str(folder), quantization=asked)


def test_modules_that_stay(folder: Path) -> None:
    config = QuantizationConfig(modules_to_not_convert=["down_proj", "layers.0.self_attn"])
    names = set(packed_of(load_base(str(folder), quantization=config)))
    parts = ["q_proj", "k_proj", "v_proj", "o_proj"]
    expected = {f"model.layers.{i}.mlp.{part}" for i in (0, 1) for part in ("gate_proj", "up_proj")}
    assert names == expected | {f"model.layers.1.self_attn.{part}" for part in parts}
    with pytest.raises(ConfigError, match=r"modules_to_not_convert: 'down' matches no module .* down_proj"):
        load_base(str(folder), quantization=QuantizationConfig(modules_to_not_convert=["down"]))


def test_a_block_that_does_not_divide(folder: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"quantization.blocksize: blocksize 4096 does not divide .*q_proj \(48 x 48\)"
    ):
        load_base(str(folder), quantization=QuantizationConfig(blocksize=4096))
    assert kept() == []


def test_a_full_disk_leaves_nothing_in_the_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("transformers.modeling_utils.safe_save_file", full)
    with pytest.raises(StorageError, match="disk is full"):
        load_base(str(folder), quantization=QuantizationConfig())
    root = cache_folder() / "quantized"
    assert [path.name for path in root.iterdir() if path.suffix not in (".lock", ".used")] == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quantization": {"bits": 3}}, "quantization.bits"),
        ({"quantization": {"blocksize": 100}}, "blocksize 100 is not supported; use one of 32, 64"),
        ({"quantization": {"bits": 8, "quant_type": "fp4"}}, "quant_type applies to 4 bits only"),
        ({"quantization": {"quant_type": "nf3"}}, "quantization.quant_type"),
        ({"quantization": {"compute_dtype": "float32"}, "dtype": "bfloat16"}, "set only one of them"),
        ({"quantization": {}, "method": {"type": "full"}}, "stores them packed and frozen"),
        ({"quantization": {"double_quants": True}}, "double_quant"),
    ],
)
def test_impossible_settings(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config({"data": {"train": "rows.jsonl"}, **changes})


def test_from_training_to_a_merged_model(folder: Path, tmp_path: Path) -> None:
    """Trained, resumed, loaded and merged; the lock knows how the base was quantized."""
    rows = [{"prompt": f"Say {i}", "completion": f"{i} is said"} for i in range(40)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = {
        "model": str(folder),
        "data": {"train": str(tmp_path / "rows.jsonl"), "eval": 0.1, "max_length": 64},
        "quantization": {"bits": 4},
        "train": {"max_steps": 6, "learning_rate": 0.02, "per_device_train_batch_size": 2},
        "dtype": "float32",
        "output_dir": str(tmp_path / "run"),
    }
    summary = lamina.train(config).summary
    assert summary is not None
    assert summary.eval_loss < summary.eval_loss_first
    loaded = load(tmp_path / "run")
    assert loaded.adapter.lock is not None
    assert loaded.adapter.lock.quantization == QuantizationConfig().model_dump()
    assert loaded.base.quantization == QuantizationConfig()
    loaded.certify().require()
    with torch.no_grad():
        expected = loaded.model(IDS).logits

    merged = lamina.merge(tmp_path / "run", tmp_path / "merged")
    model = AutoModelForCausalLM.from_pretrained(merged.path, dtype=torch.float32)
    assert getattr(model.config, "quantization_config", None) is None
    with torch.no_grad():
        torch.testing.assert_close(model(IDS).logits, expected, rtol=1e-4, atol=1e-4)

    with pytest.raises(CertificateError, match="a logit differs"):
        lamina.merge(tmp_path / "run", tmp_path / "original", original_base=True)
    assert not (tmp_path / "original").exists()
    insisted = lamina.merge(tmp_path / "run", tmp_path / "original", original_base=True, allow_difference=True)
    assert not insisted.certificate.passed
    assert insisted.certificate.max_logit_difference > insisted.certificate.tolerance
    written = json.loads((tmp_path / "original" / "lamina_certificate.json").read_text())
    assert written["passed"] is False
