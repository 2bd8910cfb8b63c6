"""Bottleneck adapters: h + s (W_up f(W_down h + b_down) + b_up) with small W_down, W_up; W_up is zero at the start.

Houlsby et al. 2019, arXiv:1902.00751: after a layer's attention and after its feed-forward part, before the residual is
added. Pfeiffer et al. 2020, arXiv:2005.00247: only after the feed-forward part. He et al. 2021, arXiv:2110.04366: in
parallel with the feed-forward part, with the same input x: FFN(x) + s (W_up f(W_down x + b_down) + b_up).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel

from lamina.compute.ops import row_forms
from lamina.compute.ops.adapter import AdapterModule, set_module
from lamina.compute.weights import freeze_linear
from lamina.config.methods.bottleneck import BottleneckConfig
from lamina.errors import AdapterError, ConfigError, Problem
from lamina.methods.shared.base import Injection, Method
from lamina.structure.layers import decoder_layers

PEFT_TYPE = "LAMINA_BOTTLENECK"

_ACTIVATIONS: dict[row_forms.Activation, Callable[[torch.Tensor], torch.Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "tanh": torch.tanh,
}


@dataclass(frozen=True)
class Sublayers:
    """The module names of a decoder layer's two sublayers."""

    attention: str
    feed_forward: str


class BottleneckAdapter(AdapterModule):
    """A sublayer of a decoder layer with a bottleneck adapter after it or in parallel.

    Attributes:
        base: The sublayer, unchanged.
        down_weight: (bottleneck, width), float32; uniform in +-1/sqrt(width).
        down_bias: (bottleneck,), float32; zero.
        up_weight: (width, bottleneck), float32; zero, so that the layer starts as the base.
        up_bias: (width,), float32; zero.
    """

    merges: ClassVar[bool] = False

    def __init__(
        self, base: nn.Module, width: int, config: BottleneckConfig, device: torch.device, generator: torch.Generator
    ) -> None:
        super().__init__()
        size, bound = config.size(width), width**-0.5
        self.base = base
        # Drawn on the CPU, so that a seed gives the same adapter for every device.
        init = torch.empty(size, width).uniform_(-bound, bound, generator=generator)
        self.down_weight = nn.Parameter(init.to(device))
        self.down_bias = nn.Parameter(torch.zeros(size, device=device))
        self.up_weight = nn.Parameter(torch.zeros(width, size, device=device))
        self.up_bias = nn.Parameter(torch.zeros(width, device=device))
        self.parallel = config.variant == "parallel"
        self.scaling = config.scaling
        self.activation: row_forms.Activation = config.non_linearity

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the sublayer, and applies the adapter to its (first) output (..., width)."""
        output = self.base(*args, **kwargs)
        if not self.enabled:
            return output
        hidden = output[0] if isinstance(output, tuple) else output
        source = (args[0] if args else next(iter(kwargs.values()))) if self.parallel else hidden
        hidden = hidden + self.scaling * self._network(source)
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    def _network(self, x: torch.Tensor) -> torch.Tensor:
        down = F.linear(x, self.down_weight.to(x.dtype), self.down_bias.to(x.dtype))
        return F.linear(_ACTIVATIONS[self.activation](down), self.up_weight.to(x.dtype), self.up_bias.to(x.dtype))

    def adapter_tensors(self) -> dict[str, nn.Parameter]:
        return {
            "adapter_down.weight": self.down_weight,
            "adapter_down.bias": self.down_bias,
            "adapter_up.weight": self.up_weight,
            "adapter_up.bias": self.up_bias,
        }

    def row_forms(self) -> tuple[row_forms.RowForm, ...]:
        down, up = (self.down_weight, self.down_bias), (self.up_weight, self.up_bias)
        return (row_forms.Bottleneck(*down, *up, self.scaling, self.activation, self.parallel),)

    def fold_in(self, model: PreTrainedModel, name: str) -> None:
        raise AdapterError("a bottleneck adapter cannot be merged into weights. Fix: use it as an adapter.")


class Bottleneck(Method):
    """Small networks after or in parallel with a layer's sublayers."""

    in_peft: ClassVar[bool] = False

    def attach(self, model: PreTrainedModel, config: BottleneckConfig, seed: int) -> Injection:
        width = model.config.get_text_config().hidden_size
        if config.size(width) > width:
            raise ConfigError(
                Problem(
                    "method.bottleneck_size",
                    f"{config.bottleneck_size} is larger than the model's width ({width}).",
                    f"use at most {width}",
                )
            )
        generator = torch.Generator().manual_seed(seed)
        layers: dict[str, AdapterModule] = {}
        for sublayers in find_sublayers(model):
            both = config.variant == "houlsby"
            for name in [sublayers.attention, sublayers.feed_forward] if both else [sublayers.feed_forward]:
                adapter = BottleneckAdapter(model.get_submodule(name), width, config, model.device, generator)
                layers[name] = adapter
                set_module(model, name, adapter)
        return Injection(model, config, layers)

    def peft_config(self, config: BottleneckConfig, target_modules: list[str], base_ref: str) -> dict[str, Any]:
        return {
            "peft_type": PEFT_TYPE,
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base_ref,
            **config.model_dump(mode="json", exclude={"type"}),
        }

    def reads_peft(self, peft_config: Mapping[str, Any]) -> bool:
        return peft_config.get("peft_type") == PEFT_TYPE

    def from_peft(self, peft_config: Mapping[str, Any]) -> BottleneckConfig:
        about = {"peft_type", "task_type", "base_model_name_or_path"}
        try:
            return BottleneckConfig(**{key: value for key, value in peft_config.items() if key not in about})
        except ValueError as error:
            raise AdapterError(f"adapter_config.json does not fit a bottleneck adapter: {error}") from None


METHOD = Bottleneck()


def find_sublayers(model: PreTrainedModel) -> list[Sublayers]:
    """Finds the sublayers of each decoder layer: its children with linear layers; attention has a `layer_idx`.

    Raises:
        ConfigError: A layer does not have exactly one attention and one feed-forward part.
    """
    names = {module: name for name, module in model.named_modules()}
    found = []
    for layer in decoder_layers(model):
        parts = [part for part in layer.children() if any(freeze_linear(m) is not None for m in part.modules())]
        attention = [part for part in parts if "layer_idx" in vars(part)]
        others = [part for part in parts if part not in attention]
        if len(attention) != 1 or len(others) != 1:
            raise ConfigError(_no_sublayers(model, f"{names[layer]} has {len(attention)} and {len(others)}"))
        found.append(Sublayers(names[attention[0]], names[others[0]]))
    if not found:
        raise ConfigError(_no_sublayers(model, "no list of layers was found"))
    return found


def _no_sublayers(model: PreTrainedModel, found: str) -> Problem:
    return Problem(
        "method.type",
        f"{type(model).__name__} has no decoder layers of one attention and one feed-forward part each: {found}.",
        "use a method that adapts linear layers, such as lora",
    )
