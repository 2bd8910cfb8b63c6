"""Bottleneck adapters' own: against a plain reference, where they are, fusion, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lamina.compute.fusion import fast_path
from lamina.config import load_config
from lamina.config.methods.bottleneck import BottleneckConfig
from lamina.errors import AdapterError, ConfigError
from lamina.methods.bottleneck import METHOD
from lamina.methods.shared.base import Injection, inject
from tests.support.models_zoo import build_model

IDS = torch.tensor([[5, 9, 17, 33, 4, 101, 7, 60, 21, 8]])
FAMILIES = ["llama", "gemma3", "gpt2", "phi"]


def adapted(family: str, config: BottleneckConfig) -> Injection:
    injection = inject(build_model(family), config, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in injection.tensors().values():
            tensor += 0.1 * torch.randn(tensor.shape, generator=generator)
    return injection


def reference(family: str, config: BottleneckConfig, injection: Injection) -> nn.Module:
    """The same by forward hooks on a bare model, one product after the other."""
    model = build_model(family)
    activation = {"relu": F.relu, "gelu": F.gelu, "silu": F.silu, "tanh": torch.tanh}[config.non_linearity]
    for name, layer in injection.layers.items():
        own = layer.adapter_tensors()

        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any, own: dict[str, torch.Tensor] = own) -> Any:
            hidden = output[0] if isinstance(output, tuple) else output
            x = inputs[0] if config.variant == "parallel" else hidden
            down = activation(x @ own["adapter_down.weight"].T + own["adapter_down.bias"])
            up = down @ own["adapter_up.weight"].T + own["adapter_up.bias"]
            hidden = hidden + config.scaling * up
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        model.get_submodule(name).register_forward_hook(hook)
    return model


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("variant", ["houlsby", "pfeiffer", "parallel"])
@pytest.mark.parametrize(("non_linearity", "scaling"), [("relu", 1.0), ("gelu", 4.0), ("silu", 0.5), ("tanh", 1.0)])
def test_forward_and_gradients_are_those_of_the_reference(
    family: str, variant: Any, non_linearity: Any, scaling: float
) -> None:
    config = BottleneckConfig(variant=variant, bottleneck_size=6, non_linearity=non_linearity, scaling=scaling)
    injection = adapted(family, config)
    results = []
    for model in (injection.model, reference(family, config, injection)):
        output = model(input_ids=IDS).logits
        grads = torch.autograd.grad(output.square().mean(), list(injection.tensors().values()))
        results.append([output, *grads])
    for mine, plain in zip(*results, strict=True):
        torch.testing.assert_close(mine, plain, rtol=1e-5, atol=1e-5 * float(plain.abs().max()))


@pytest.mark.parametrize("family", FAMILIES)
def test_where_they_are(family: str) -> None:
    parts = {"gpt2": ("attn", "mlp")}.get(family, ("self_attn", "mlp"))
    for variant, expected in (("houlsby", parts), ("pfeiffer", parts[1:]), ("parallel", parts[1:])):
        names = list(adapted(family, BottleneckConfig(variant=variant)).layers)
        assert [name.rpartition(".")[2] for name in names] == [*expected, *expected]


def test_the_bottleneck_is_the_width_divided() -> None:
    for config, size in (
        (BottleneckConfig(), 3),
        (BottleneckConfig(reduction_factor=4.0), 12),
        (BottleneckConfig(reduction_factor=1000.0), 1),
        (BottleneckConfig(bottleneck_size=7), 7),
    ):
        assert {layer.down_weight.shape for layer in adapted("llama", config).layers.values()} == {(size, 48)}


@pytest.mark.parametrize("variant", ["houlsby", "pfeiffer", "parallel"])
@pytest.mark.parametrize("training", [False, True])
def test_layers_with_an_adapter_are_not_fused(variant: Any, training: bool) -> None:
    """Also a fresh one, which changes no number yet, and one that is not trained."""
    injection = inject(build_model("llama"), BottleneckConfig(variant=variant), seed=0)
    injection.model.train(training).requires_grad_(training)
    with fast_path(injection.model) as report:
        assert (report.fused, report.reasons) == (0, ["BottleneckAdapter cannot join a fused layer"])


def test_peft_refuses_it(tmp_path: Path) -> None:
    about = METHOD.peft_config(BottleneckConfig(), [], "base")
    (tmp_path / "adapter_config.json").write_text(json.dumps(about))
    with pytest.raises(KeyError, match="LAMINA_BOTTLENECK"):
        peft.PeftConfig.from_pretrained(tmp_path)


def test_a_foreign_configuration_is_refused() -> None:
    with pytest.raises(AdapterError, match="ln_before"):
        METHOD.from_peft({"peft_type": "LAMINA_BOTTLENECK", "ln_before": True})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"reduction_factor": 8.0, "bottleneck_size": 8}, "both set the bottleneck's width"),
        ({"variant": "houlsbi"}, "Did you mean 'houlsby'"),
        ({"reduction_factor": 0.5}, "greater than or equal to 1"),
    ],
)
def test_bad_fields_are_errors(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config({"data": {"train": "x.jsonl"}, "method": {"type": "bottleneck", **fields}})


def test_a_bottleneck_wider_than_the_model_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"method.bottleneck_size: 49 is larger than the model's width \(48\)"):
        inject(build_model("llama"), BottleneckConfig(bottleneck_size=49), seed=0)


def test_a_layer_of_other_parts_is_an_error() -> None:
    model = build_model("llama")
    model.model.layers[1].extra = nn.Linear(4, 4)
    with pytest.raises(ConfigError, match=r"model.layers.1 has 1 and 2"):
        inject(model, BottleneckConfig(), seed=0)
