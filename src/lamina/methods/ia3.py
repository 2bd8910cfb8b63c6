"""IA3: y = l * (x W^T + b) for keys and values, y = (l * x) W^T + b for the last layer of a feed-forward.

Liu et al. 2022, "Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning",
arXiv:2205.05638. The trained l has one factor per output feature, or in a feed-forward per input feature; all are 1 at
the start. They are factors of the rows or columns of W, so they can be merged into it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from lamina.compute.ops.adapter import AdapterLinear
from lamina.compute.ops.row_forms import RowForm, Scales
from lamina.compute.weights import FrozenLinear
from lamina.config.methods.ia3 import IA3Config
from lamina.errors import ConfigError, Problem
from lamina.methods.shared.base import Injection, Method
from lamina.methods.shared.linears import peft_fields, read_peft_fields
from lamina.methods.shared.targets import FIELD, find_targets, replace_linears

FEEDFORWARD_FIELD = "method.feedforward_modules"

# Names of the layers that compute keys and values; the first tuple of which a model has all names is used. Where one
# layer computes queries as well, they are scaled too.
KEYS_AND_VALUES = (
    ("k_proj", "v_proj"),  # Llama, Qwen, Gemma, Mistral, Phi, OPT, GPT-J, GPT-Neo
    ("c_attn",),  # GPT-2
    ("qkv_proj",),  # Phi-3
    ("query_key_value",),  # GPT-NeoX, Falcon, BLOOM
    ("Wqkv",),  # MPT
)

# Names of the last linear layer of a feed-forward, in the same way.
FEEDFORWARD = (
    ("down_proj",),  # Llama, Qwen, Gemma, Mistral, Phi-3, MPT
    ("fc2",),  # Phi, OPT
    ("mlp.c_proj",),  # GPT-2, GPT-Neo; its attention has a c_proj too
    ("dense_4h_to_h",),  # GPT-NeoX, Falcon, BLOOM
    ("fc_out",),  # GPT-J
)


class IA3Linear(AdapterLinear):
    """A frozen linear layer whose output, or input, is scaled.

    Attributes:
        ia3_l: l, (out_features, 1), or (1, in_features) in a feed-forward; float32.
    """

    def __init__(self, frozen: FrozenLinear, is_feedforward: bool, generator: torch.Generator | None) -> None:
        """
        Args:
            frozen: The base layer.
            is_feedforward: Whether the input is scaled.
            generator: Generator for initial scales from a normal distribution; None for ones.
        """
        super().__init__(frozen)
        shape = (1, frozen.in_features) if is_feedforward else (frozen.out_features, 1)
        scales = torch.ones(shape) if generator is None else torch.randn(shape, generator=generator)
        self.ia3_l = nn.Parameter(scales.to(self.weight.device))
        self.is_feedforward = is_feedforward

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (..., in_features) -> (..., out_features)."""
        if not self.enabled:
            return self.frozen.matmul(x)
        # The scale is used in float32 and the product is rounded: bfloat16 has no value between 1 and 1.0078.
        if self.is_feedforward:
            return self.frozen.matmul((x * self.ia3_l[0]).to(x.dtype))
        return (self.frozen.matmul(x) * self.ia3_l[:, 0]).to(x.dtype)

    def adapter_tensors(self) -> dict[str, nn.Parameter]:
        return {"ia3_l": self.ia3_l}

    def row_forms(self) -> tuple[RowForm, ...]:
        return (Scales(inputs=self.ia3_l[0]) if self.is_feedforward else Scales(outputs=self.ia3_l[:, 0]),)

    def delta_weight(self) -> torch.Tensor:
        return (self.ia3_l - 1) * self.frozen.weight(torch.float32)

    def delta_bias(self) -> torch.Tensor | None:
        if self.is_feedforward or self.bias is None:
            return None
        return (self.ia3_l[:, 0] - 1) * self.bias.float()


class IA3(Method):
    """Scales on keys, values and the feed-forward's inner activations."""

    draws = False

    def attach(self, model: PreTrainedModel, config: IA3Config, seed: int) -> Injection:
        targets, feedforward = config.target_modules, config.feedforward_modules
        if targets is None:
            targets = _default_targets(model)
        names = find_targets(model, targets)
        if feedforward is None:
            ends = [pattern for patterns in FEEDFORWARD for pattern in patterns]
            feedforward = [pattern for pattern in ends if _matching(names, [pattern])]
            if targets == names:
                feedforward = sorted(_matching(names, feedforward))
        at_input = _select_feedforward(feedforward, names)
        generator = None if config.init_ia3_weights else torch.Generator().manual_seed(seed)
        which = iter([name in at_input for name in names])

        def build(frozen: FrozenLinear) -> IA3Linear:
            return IA3Linear(frozen, next(which), generator)

        # The configuration records what was scaled, so that loading does not depend on the defaults.
        chosen = config.model_copy(update={"target_modules": targets, "feedforward_modules": feedforward})
        return Injection(model, chosen, replace_linears(model, names, build))

    def peft_config(self, config: IA3Config, target_modules: list[str], base_ref: str) -> dict[str, Any]:
        feedforward = config.feedforward_modules
        if isinstance(feedforward, list):  # peft requires the same strings in target_modules
            target_modules = sorted({*target_modules, *feedforward})
        return peft_fields("IA3", config.target_modules, target_modules, base_ref) | {
            "feedforward_modules": feedforward,
            "fan_in_fan_out": False,
            "init_ia3_weights": config.init_ia3_weights,
        }

    def reads_peft(self, peft_config: Mapping[str, Any]) -> bool:
        return peft_config.get("peft_type") == "IA3"

    def from_peft(self, peft_config: Mapping[str, Any]) -> IA3Config:
        return read_peft_fields(IA3Config, peft_config)


METHOD = IA3()


def _default_targets(model: PreTrainedModel) -> list[str]:
    linears = find_targets(model, "all-linear")
    targets: list[str] = []
    for what, choices in (("keys and values", KEYS_AND_VALUES), ("the output of a feed-forward", FEEDFORWARD)):
        found = next((patterns for patterns in choices if all(_matching(linears, [p]) for p in patterns)), None)
        if found is None:
            short = ", ".join(sorted({name.rpartition(".")[2] for name in linears}))
            message = f"none of {type(model).__name__}'s linear layers is known to compute {what}; they are {short}."
            raise ConfigError(Problem(FIELD, message, f"name them, and those of a feed-forward in {FEEDFORWARD_FIELD}"))
        targets += found
    called = set(linears)
    names = find_targets(model, targets)
    # The same names may be in a vision tower, which does not run on a text.
    return targets if called.issuperset(names) else [name for name in names if name in called]


def _select_feedforward(patterns: str | list[str], names: list[str]) -> set[str]:
    """Selects the target layers whose input is scaled.

    Raises:
        ConfigError: A pattern selects none of them.
    """
    if isinstance(patterns, str):
        chosen = {name for name in names if re.fullmatch(patterns, name)}
        wrong = [] if chosen else [patterns]
    else:
        chosen = _matching(names, patterns)
        wrong = [pattern for pattern in patterns if not _matching(names, [pattern])]
    if wrong:
        short = ", ".join(sorted({name.rpartition(".")[2] for name in names}))
        message = f"{wrong[0]!r} matches none of the layers that target_modules selects: {short}."
        raise ConfigError(Problem(FEEDFORWARD_FIELD, message, "name some of them, or add it to target_modules too"))
    return chosen


def _matching(names: Iterable[str], patterns: Iterable[str]) -> set[str]:
    """Selects names as peft does: a pattern is a whole name, or its last parts."""
    return {name for name in names for pattern in patterns if name == pattern or name.endswith(f".{pattern}")}
