"""Every method on a packed base, against the same method on the dense weights that the packed ones stand for."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from lamina.compute.fusion import fast_path
from lamina.compute.weights.packed import EightBitLinear, FourBitLinear, PackedLinear
from lamina.config import METHOD_CONFIGS, MethodConfig, load_config
from lamina.config.methods.full import FullConfig
from lamina.config.methods.peft import PeftConfig
from lamina.errors import ConfigError
from lamina.methods.shared.base import Injection, inject
from tests.support.hot_path import loss_and_gradients, unfused
from tests.support.models_zoo import build_model

pytest.importorskip("bitsandbytes")

# `full` trains the weights themselves, `bitfit` biases, which these models have not; `peft` has its own layers.
METHODS = [name for name in METHOD_CONFIGS if name not in ("full", "bitfit", "peft")]
FUSED = ("lora", "dora", "adalora", "vera", "prompt_tuning", "p_tuning")


def packed_and_dense(family: str, bits: int, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedModel]:
    """A model with every linear layer but the head packed, and one with the weights that these stand for."""
    packed, dense = build_model(family, dtype=dtype), build_model(family, dtype=dtype)
    for name, module in list(packed.named_modules()):
        if type(module) is nn.Linear and module is not packed.get_output_embeddings():
            small = FourBitLinear.pack(module) if bits == 4 else EightBitLinear.pack(module)
            packed.set_submodule(name, small)
            dense.get_submodule(name).weight.data = small.dense()
    assert sum(isinstance(module, PackedLinear) for module in packed.modules()) == 14
    return packed, dense


def attached(model: PreTrainedModel, method: str) -> Injection:
    injection = inject(model, METHOD_CONFIGS[method](), 0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in injection.tensors().values():
            tensor += 0.02 * torch.randn(tensor.shape, generator=generator)
    model.train()
    return injection


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("method", METHODS)
def test_loss_and_gradients_unfused(method: str, bits: int) -> None:
    packed, dense = (attached(model, method) for model in packed_and_dense("llama", bits, torch.float32))
    with unfused(packed.model):
        loss, grads = loss_and_gradients(packed)
    with unfused(dense.model):
        expected, wanted = loss_and_gradients(dense)
    assert loss == pytest.approx(expected, rel=1e-5)
    assert grads.keys() == wanted.keys()
    for name, grad in grads.items():
        torch.testing.assert_close(grad, wanted[name], rtol=1e-4, atol=1e-5 * float(wanted[name].abs().max()))


@pytest.mark.usefixtures("members")
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("family", ["llama", "gemma3"])
@pytest.mark.parametrize("method", METHODS)
def test_fast_path_is_bitwise_that_of_dense_weights(method: str, family: str, recompute: bool) -> None:
    """Fused or part by part: the same products with the same numbers, wherever the weights lie."""
    results = []
    for model in packed_and_dense(family, 4, torch.bfloat16):
        injection = attached(model, method)
        with fast_path(injection.model, recompute) as report:
            assert report.fused == (2 if method in FUSED else 0)
            assert report.fused + report.in_parts == 2
            results.append(loss_and_gradients(injection))
    (loss, grads), (expected, wanted) = results
    assert loss == expected
    assert all(torch.equal(grads[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("config", [FullConfig(), PeftConfig(peft_type="HRA")])
def test_methods_that_need_the_bases_own_layers_refuse_packed_ones(config: MethodConfig) -> None:
    packed, _ = packed_and_dense("llama", 4, torch.float32)
    with pytest.raises(ConfigError, match=rf"method.type: '{config.type}' needs .*q_proj is stored packed"):
        inject(packed, config, seed=0)
    with pytest.raises(ConfigError, match=rf"method '{config.type}' needs the base model's own layers"):
        load_config({"data": {"train": "x"}, "method": config.model_dump(), "quantization": {"bits": 4}})
