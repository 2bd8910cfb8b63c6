"""LoRA on parameters of modules that are no linear layers: a mixture's experts, stacked in one tensor, and its router.

    W_e becomes W_e + s B_e A_e        for every expert e

A is stored as (experts r, in), expert after expert, and B as (out, r experts), with the experts innermost, as HF peft's
`ParamWrapper` stores them. Where a module has several such parameters, peft nests a wrapper for each, in the module's
order: the last one's tensors are the module's own, and `base_layer.` stands once more before those of each one before.

Experts are computed by `compute/ops/experts.py`, one product per expert over its rows. Any other module runs its own
forward on W + s B A.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from transformers import PreTrainedModel

from lamina.compute.ops.adapter import AdapterModule, set_module
from lamina.compute.ops.expert_linear import ExpertFactors
from lamina.compute.ops.experts import PackedExperts, read_experts, run_experts, stored_weight
from lamina.compute.ops.row_forms import NotMixable, RowForm
from lamina.config.methods.lora import LoraConfig
from lamina.methods.shared.linears import uniform


@dataclass(frozen=True)
class Target:
    """A parameter that gets LoRA.

    Attributes:
        name: Its name in its module.
        r: Rank.
        scaling: s.
        layers: How many linear layers of transformers 4 it stands for.
    """

    name: str
    r: int
    scaling: float
    layers: int = 1


class LoraParameters(AdapterModule):
    """A module, some of whose parameters have a LoRA adapter.

    Attributes:
        base: The module; its parameters are frozen.
        lora_A: Parameter -> A, (experts r, in), float32; for a matrix (out, in), (r, in).
        lora_B: Parameter -> B, (out, r experts), float32.
        trains_A: Whether the A's are trained; False with `lora_fa`.
        dropout: Probability of dropping an element of an expert's low-rank input in training. There is none in other
            modules, whose own code multiplies with W + s B A.
    """

    def __init__(
        self, base: nn.Module, targets: Sequence[Target], config: LoraConfig, generator: torch.Generator
    ) -> None:
        """
        Args:
            base: The module.
            targets: Its adapted parameters, in its own order.
            config: For the initialization.
            generator: Draws it, on the CPU.
        """
        super().__init__()
        self.base, self._targets = base, {target.name: target for target in targets}
        self.trains_A, self.dropout = not config.lora_fa, config.lora_dropout
        self.lora_A, self.lora_B = nn.ParameterDict(), nn.ParameterDict()
        for target in targets:
            experts, outputs, inputs = self._sizes(target.name)
            A, B = _initial((experts * target.r, inputs), (outputs, target.r * experts), target.r, config, generator)
            device = stored_weight(base, target.name).device
            self.lora_A[target.name] = nn.Parameter(A.to(device), requires_grad=self.trains_A)
            self.lora_B[target.name] = nn.Parameter(B.to(device))
        self._experts = read_experts(base)

    def forward(self, *args: torch.Tensor, **kwargs: torch.Tensor) -> Any:
        """Computes what the module does, with the adapted parameters in place of its own."""
        if self._experts is not None:
            factors = {name: self.expert_factors(name) for name in self._targets} if self.enabled else {}
            return run_experts(self._experts, factors, *args, *kwargs.values())
        if not self.enabled:
            return self.base(*args, **kwargs)
        adapted = {
            name: parameter + self.delta(name).to(parameter.dtype)
            for name, parameter in self.base.named_parameters(recurse=False)
            if name in self._targets
        }
        return functional_call(self.base, adapted, args, kwargs)

    def __getattr__(self, name: str) -> Any:
        """Reads what the model's code reads from the module itself, such as its number of experts."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base"), name)

    def layers_of_parameters(self) -> dict[str, int]:
        """The adapted parameters, in the module's order: how many linear layers of transformers 4 each stands for."""
        return {name: target.layers for name, target in self._targets.items()}

    def adapter_tensors(self) -> dict[str, nn.Parameter]:
        return {
            f"{prefix}{factor}.weight": tensors[name]
            for name, prefix in self._prefixes()
            for factor, tensors in (("lora_A", self.lora_A), ("lora_B", self.lora_B))
            if factor == "lora_B" or self.trains_A
        }

    def fixed_tensors(self) -> dict[str, torch.Tensor]:
        if self.trains_A:
            return {}
        return {f"{prefix}lora_A.weight": self.lora_A[name] for name, prefix in self._prefixes()}

    def fast_tensors(self) -> list[str]:
        return [f"{prefix}lora_B.weight" for _, prefix in self._prefixes()]

    def row_forms(self) -> tuple[RowForm, ...]:
        return (NotMixable("LoRA on experts or a router acts on what the router chose for a whole batch"),)

    def untouched(self) -> dict[str, int]:
        packed = self.base.experts.stacks if isinstance(self.base, PackedExperts) else {}
        own = {**dict(self.base.named_parameters(recurse=False)), **packed}
        return {name: weight.numel() for name, weight in own.items() if name not in self._targets}

    @property
    def base_module(self) -> nn.Module:
        return self.base

    @torch.no_grad()
    def fold_in(self, model: PreTrainedModel, name: str) -> None:
        for key in self._targets:
            stored = getattr(self.base, key)  # merging unpacks experts first
            merged = (stored.float() + self.delta(key)).to(stored.dtype)
            setattr(self.base, key, nn.Parameter(merged, requires_grad=False))
        set_module(model, name, self.base)

    def delta(self, name: str) -> torch.Tensor:
        """Computes what merging adds to a parameter, in its own layout, float32."""
        B, A = self._by_expert(name)
        delta = self._targets[name].scaling * (B @ A)
        if delta.shape[0] == 1:
            return delta[0]
        return delta.mT if self._is_declared_transposed() else delta

    def expert_factors(self, name: str) -> ExpertFactors:
        """Returns the factors of an experts' parameter, as `compute/ops/experts.py` multiplies with them."""
        assert self._experts is not None
        B, A = self._by_expert(name)
        if self._experts.transposed and not self._is_declared_transposed():
            A, B = B.mT, A.mT  # of Llama 4, whose weights peft takes as they are stored, for (out, in)
        dropout = self.dropout if self.training else 0.0
        return ExpertFactors(B.contiguous(), A.contiguous(), self._targets[name].scaling, dropout)

    def _by_expert(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns B (experts, out, r) and A (experts, r, in)."""
        A, B, r = self.lora_A[name], self.lora_B[name], self._targets[name].r
        return B.view(B.shape[0], r, -1).permute(2, 0, 1), A.view(-1, r, A.shape[-1])

    def _sizes(self, name: str) -> tuple[int, int, int]:
        """Returns the number of experts, and out and in as peft counts them."""
        shape = stored_weight(self.base, name).shape
        if len(shape) == 2:
            return 1, shape[0], shape[1]
        experts, first, second = shape
        return (experts, second, first) if self._is_declared_transposed() else (experts, first, second)

    def _is_declared_transposed(self) -> bool:
        return bool(getattr(self.base, "is_transposed", False))

    def _prefixes(self) -> list[tuple[str, str]]:
        last = len(self._targets) - 1
        return [(name, "base_layer." * (last - place)) for place, name in enumerate(self._targets)]


def _initial(
    shape_A: tuple[int, int], shape_B: tuple[int, int], r: int, config: LoraConfig, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draws A and zeros for B, as `init_lora_weights` says (see `lora_init.py`)."""
    if config.init_lora_weights == "gaussian":
        return torch.randn(shape_A, generator=generator) / r, torch.zeros(shape_B)
    A = uniform(shape_A, generator)
    return A, torch.zeros(shape_B) if config.init_lora_weights else uniform(shape_B, generator)
