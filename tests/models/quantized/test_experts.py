"""Experts in 4 and 8 bits: an expert's matrix at a time, the same from the cache, trained on, and merged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from lamina.compute.ops.experts import PackedExperts
from lamina.config.methods.lora import LoraConfig
from lamina.config.quantization import QuantizationConfig
from lamina.export.fold import fold_and_save
from lamina.methods.shared.base import inject
from lamina.methods.shared.coverage import find_coverage
from lamina.models.load import load_base
from lamina.quantization.pack import pack_weight
from tests.support.architectures import build_architecture
from tests.support.models_zoo import build_tokenizer
from tests.support.peft_oracle import disturb

IDS = torch.arange(3, 40)[None]
NAMES = {
    "gpt_oss": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
    "llama4_text": ["feed_forward.experts.gate_up_proj", "feed_forward.experts.down_proj"],
}
CASES = [("mixtral", 4), ("mixtral", 8), ("gpt_oss", 4), ("llama4_text", 8), ("deepseek_v3", 4)]


@pytest.mark.parametrize(("architecture", "bits"), CASES)
def test_experts_are_packed_trained_on_and_merged(architecture: str, bits: Any, tmp_path: Path) -> None:
    original = build_architecture(architecture)
    original.save_pretrained(tmp_path / "model")
    build_tokenizer().save_pretrained(tmp_path / "model")
    config = QuantizationConfig(bits=bits)
    first, again = (load_base(str(tmp_path / "model"), "float32", quantization=config) for _ in range(2))
    assert first.packed_digest == again.packed_digest and first.packing is not None and first.packing.share > 0.98
    packed = {name: m for name, m in first.model.named_modules() if isinstance(m, PackedExperts)}
    assert packed
    for name, module in packed.items():
        for key, stack in module.experts.stacks.items():
            weight = getattr(original.get_submodule(name), key)
            for expert in range(len(weight)):
                alone = pack_weight(weight[expert].contiguous(), config).dense(torch.float32)
                assert torch.equal(stack.expert(expert).dense(torch.float32), alone)
            assert first.rounding_errors[f"{name}.{key}"][0] < (0.11 if bits == 4 else 0.01)

    injection = inject(first.model, LoraConfig(r=4, target_parameters=NAMES.get(architecture)), seed=0)
    coverage = find_coverage(injection)
    assert not coverage.stacked and coverage.share > 0.98
    disturb(injection.tensors())
    expected = first.model.eval()(input_ids=IDS, use_cache=False).logits
    expected.sum().backward()
    assert all(tensor.grad is not None and tensor.grad.any() for tensor in injection.tensors().values())

    folder = tmp_path / "merged"
    folder.mkdir()
    folds = fold_and_save(injection, folder)
    merged = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert not folds.lost_in(merged)
    found = merged(input_ids=IDS, use_cache=False).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.detach().abs().max()))


def test_a_change_of_dtype_keeps_the_scales(tmp_path: Path) -> None:
    build_architecture("mixtral").save_pretrained(tmp_path / "model")
    build_tokenizer().save_pretrained(tmp_path / "model")
    model = load_base(str(tmp_path / "model"), "float32", quantization=QuantizationConfig()).model
    module = next(m for m in model.modules() if isinstance(m, PackedExperts))
    before = module.experts.stacks["down_proj"].dense()
    model.to(torch.bfloat16)
    stack = module.experts.stacks["down_proj"]
    assert stack.dtype == torch.bfloat16
    assert torch.equal(stack.dense(torch.float32), before)
