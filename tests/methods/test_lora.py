"""LoRA's own: peft's adapters read right, refused where they would not be, the rank checked, the head adapted."""

from __future__ import annotations

import json
from pathlib import Path

import peft
import pytest
import torch

import lamina
from lamina.config.methods.lora import LoraConfig
from lamina.errors import ConfigError
from lamina.methods.lora import METHOD
from lamina.methods.shared.base import inject
from tests.support.models_zoo import build_model, build_tokenizer

IDS = torch.tensor([[5, 9, 17, 33, 4, 101, 7]])


def trained_by_peft(family: str, folder: Path, **settings: object) -> tuple[torch.Tensor, Path]:
    """An adapter as peft saves it, and peft's logits."""
    base = build_model(family, vocab_size=259)
    base.save_pretrained(folder / "base")
    build_tokenizer().save_pretrained(folder / "base")
    base.config._name_or_path = base.name_or_path = str(folder / "base")
    config = peft.LoraConfig(task_type="CAUSAL_LM", **{"r": 4, "lora_alpha": 6, **settings})
    model = peft.get_peft_model(base, config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(0.0, 0.1)
    model.save_pretrained(folder / "adapter")
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits, folder / "adapter"


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "phi"])
@pytest.mark.parametrize("use_rslora", [False, True])
def test_adapters_of_peft_load_with_its_logits(family: str, use_rslora: bool, tmp_path: Path) -> None:
    expected, path = trained_by_peft(family, tmp_path, target_modules="all-linear", use_rslora=use_rslora)
    loaded = lamina.load(path, dtype="float32")
    assert "has no lamina.json" in loaded.notes[0]
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(input_ids=IDS).logits, expected, rtol=1e-4, atol=1e-4)


def test_a_regular_expression_of_peft_selects_the_same_modules(tmp_path: Path) -> None:
    expected, path = trained_by_peft("llama", tmp_path, target_modules=r".*layers\.1\..*(q|v)_proj")
    loaded = lamina.load(path, dtype="float32")
    assert list(loaded.injection.layers) == ["model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.v_proj"]
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(input_ids=IDS).logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("settings", [{"lora_bias": True}])
def test_what_only_peft_has_is_loaded_through_peft(settings: dict[str, object], tmp_path: Path) -> None:
    expected, path = trained_by_peft("llama", tmp_path, target_modules=["q_proj", "v_proj"], **settings)
    loaded = lamina.load(path, dtype="float32")
    assert loaded.injection.config.type == "peft"
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(input_ids=IDS).logits, expected, rtol=1e-4, atol=1e-4)


def test_scaling() -> None:
    assert LoraConfig(r=16, lora_alpha=32).scaling == 2.0
    assert LoraConfig(r=16, lora_alpha=32, use_rslora=True).scaling == 8.0


def test_rank_above_the_width_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"method.r: 17 is larger than the smaller side of .*k_proj \(16\)"):
        METHOD.prepare(inject(build_model("llama"), LoraConfig(r=17, target_modules=["k_proj"]), seed=0), [])


def test_initial_a_is_uniform_within_its_bound() -> None:
    layer = next(iter(inject(build_model("llama"), LoraConfig(r=16), seed=0).layers.values()))
    bound = 48**-0.5
    assert 0.9 * bound < layer.lora_A.abs().max() <= bound
    assert abs(layer.lora_A.std().item() - bound / 3**0.5) < 0.1 * bound
    assert not layer.lora_B.any()


def test_an_adapter_on_a_tied_head_leaves_the_embedding_alone(tmp_path: Path) -> None:
    base = build_model("llama", vocab_size=259)
    base.save_pretrained(tmp_path / "base")
    build_tokenizer().save_pretrained(tmp_path / "base")
    rows = [{"prompt": f"say {word}", "completion": word * 2} for word in ("a", "bc", "d", "ef")]
    data = tmp_path / "train.jsonl"
    data.write_text("\n".join(json.dumps(row) for row in rows))
    run = lamina.train(
        {
            "model": str(tmp_path / "base"),
            "data": {"train": str(data), "eval": None, "max_length": 128},
            "method": {"type": "lora", "r": 4, "target_modules": ["lm_head", "q_proj"]},
            "train": {"max_steps": 8, "learning_rate": 0.02},
            "dtype": "float32",
            "output_dir": str(tmp_path / "run"),
        }
    )
    merged = lamina.merge(run.path, tmp_path / "merged")
    assert merged.certificate.passed
    from transformers import AutoModelForCausalLM

    written = AutoModelForCausalLM.from_pretrained(merged.path, dtype=torch.float32)
    torch.testing.assert_close(written.get_input_embeddings().weight, base.get_input_embeddings().weight)
    assert not torch.equal(written.lm_head.weight, base.get_input_embeddings().weight)


def test_method_reads_only_its_own_peft_type() -> None:
    assert METHOD.reads_peft({"peft_type": "LORA"})
    assert not METHOD.reads_peft({"peft_type": "IA3"})
