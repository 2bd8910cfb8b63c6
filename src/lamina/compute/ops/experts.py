"""A mixture's experts: every token goes through the few experts that the router chose for it.

    out_t = sum_j w_tj down_e(act(gate_e(x_t)) up_e(x_t))        for each of the k experts e = e_tj of token t

Rows are sorted by expert once, so that every expert's projections are one product over its rows
(`ops/expert_linear.py`), instead of a search for the rows of each expert or a product of all tokens with all experts.
What stands between the two projections is the family's own gate, in one kernel where that is the usual one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from transformers.integrations import moe

from lamina.compute.ops.expert_linear import ExpertFactors, expert_linear
from lamina.compute.ops.gated import gated_halves, read_activation
from lamina.compute.weights.experts import DenseExperts, ExpertWeights, PackedStack

# What transformers' decorator of modules with experts sets on them, or the class defines.
_DECLARED = ("has_gate", "has_bias", "is_transposed", "num_experts", "_apply_gate", "down_proj")
_OWN_GATE = getattr(moe, "_default_apply_gate", None)


@dataclass(frozen=True)
class Experts:
    """How a module with the experts of a layer computes.

    Attributes:
        module: The module; its weights are frozen.
        first: Name of the weights of the first projection, gate and up together where there is a gate.
        second: Name of the weights of the second one.
        transposed: Whether the weights are stored (experts, in, out).
        activation: The kernels' name of the activation, if the gate is act(gate) up of two halves; else None.
        every_token: Whether the module is called with every token for each expert in turn, as Llama 4's is, where
            tokens that are not the expert's are zero.
        stacks: The weights by name, if they are packed and so not in the module.
    """

    module: nn.Module
    first: str
    second: str
    transposed: bool
    activation: int | None
    every_token: bool
    stacks: Mapping[str, PackedStack] = field(default_factory=dict)

    def weights(self, name: str) -> ExpertWeights:
        """Returns the frozen weights of that name."""
        if name in self.stacks:
            return self.stacks[name]
        return DenseExperts(getattr(self.module, name).detach(), self.transposed)

    def bias(self, name: str) -> torch.Tensor | None:
        """Returns the biases (experts, out) beside the weights of that name; None if there are none."""
        return getattr(self.module, f"{name}_bias", None)

    def gate(self, x: torch.Tensor) -> torch.Tensor:
        """Computes what stands between the projections, for x (S, out of the first)."""
        module: Any = self.module
        if self.activation is not None and x.dtype == torch.float64:  # the kernels compute in float32
            gate, up = x.chunk(2, dim=-1)
            return module.act_fn(gate) * up
        if self.activation is not None:
            return gated_halves(x, self.activation)
        return module._apply_gate(x) if module.has_gate else module.act_fn(x)


def read_experts(module: Any) -> Experts | None:
    """Reads how a module with stacked experts computes; returns None if it is no such module, or of unknown code."""
    if isinstance(module, PackedExperts):
        return module.experts
    if type(module).__name__ == "Llama4TextExperts":  # not declared, and the only one that is called in its way
        activation = read_activation(module.act_fn)
        return None if activation is None else Experts(module, "gate_up_proj", "down_proj", True, activation, True)
    if not all(hasattr(module, name) for name in _DECLARED):
        return None
    if getattr(module, "has_post_expert_norm", False) or getattr(module, "_is_expert_parallel", False):
        return None
    first = "gate_up_proj" if module.has_gate else "up_proj"
    usual = module.has_gate and type(module)._apply_gate is _OWN_GATE
    activation = read_activation(module.act_fn) if usual else None
    return Experts(module, first, "down_proj", bool(module.is_transposed), activation, False)


class PackedExperts(nn.Module):
    """A module of experts whose weights are packed; its biases and all else stay in the module itself.

    Attributes:
        own: The module, without its stacked weights.
        stacks: The packed weights by name, in the module's order.
    """

    def __init__(self, experts: Experts, stacks: Mapping[str, PackedStack]) -> None:
        """
        Args:
            experts: A module as read, which loses the weights that `stacks` has.
            stacks: The packed weights by name.
        """
        super().__init__()
        self.own, self.stacks = experts.module, nn.ModuleDict(stacks)
        self.experts = replace(experts, stacks=self.stacks)  # pyright: ignore[reportArgumentType]
        for name in stacks:
            self.own._parameters.pop(name, None)

    def forward(self, *args: torch.Tensor, **kwargs: torch.Tensor) -> torch.Tensor:
        """Computes what the module itself does."""
        return run_experts(self.experts, {}, *args, *kwargs.values())

    def __getattr__(self, name: str) -> Any:
        """Reads what the model's code reads from the module itself, such as its number of experts."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("own"), name)


def stored_weight(module: nn.Module, name: str) -> nn.Parameter | PackedStack:
    """Returns a module's weight of that name: a parameter, or the packed weights of experts."""
    return module.stacks[name] if isinstance(module, PackedExperts) else getattr(module, name)  # pyright: ignore[reportReturnType]


def unpack_experts(model: nn.Module) -> None:
    """Gives every module of packed experts its weights back, dequantized in their compute dtype."""
    for name, module in [(n, m) for n, m in model.named_modules() if isinstance(m, PackedExperts)]:
        for key, stack in module.experts.stacks.items():
            setattr(module.own, key, nn.Parameter(stack.dense(), requires_grad=False))
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, module.own)


def run_experts(experts: Experts, factors: Mapping[str, ExpertFactors], *args: torch.Tensor) -> torch.Tensor:
    """Computes what the module's forward does, with low-rank paths beside its weights.

    Args:
        experts: The module.
        factors: The paths, by the names of the weights that have one.
        args: As the module is called: hidden states (T, H), the chosen experts (T, k) and their weights (T, k); or,
            with `every_token`, the hidden states of every expert in turn, (experts T, H).

    Returns:
        (T, H), or (experts T, H) with `every_token`.
    """
    if experts.every_token:
        return _run_every_token(experts, factors, args[0])
    x, index, weights = args
    order = torch.sort(index.reshape(-1), stable=True).indices
    counts = torch.bincount(index.reshape(-1), minlength=experts.weights(experts.first).experts).tolist()
    rows: Any = _Spread.apply(x, order, index.shape[1])
    y = _project(experts, factors, rows, counts)
    out: Any = _Combine.apply(y, weights, order)
    return out.to(x.dtype)


def _run_every_token(experts: Experts, factors: Mapping[str, ExpertFactors], x: torch.Tensor) -> torch.Tensor:
    """Leaves out rows of zeros, whose outputs and gradients are zero."""
    number = experts.weights(experts.first).experts
    x = x.reshape(-1, x.shape[-1])
    chosen = x.detach().ne(0).any(-1)
    counts = chosen.view(number, -1).sum(1).tolist()
    places = chosen.nonzero()[:, 0]
    y = _project(experts, factors, x.index_select(0, places), counts)
    return torch.zeros_like(x).index_copy(0, places, y)


def _project(
    experts: Experts, factors: Mapping[str, ExpertFactors], rows: torch.Tensor, counts: list[int]
) -> torch.Tensor:
    y = rows
    for name in (experts.first, experts.second):
        y = expert_linear(y, experts.weights(name), counts, experts.bias(name), factors.get(name))
        if name == experts.first:
            y = experts.gate(y)
    return y


class _Spread(torch.autograd.Function):
    """Repeats every token for its k experts, sorted by expert: x (T, H) -> (T k, H)."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, order: torch.Tensor, k: int) -> torch.Tensor:
        ctx.save_for_backward(order)
        ctx.k = k
        return x.index_select(0, order // k)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (order,) = ctx.saved_tensors
        return _by_token(grads[0], order, ctx.k).sum(1), None, None


class _Combine(torch.autograd.Function):
    """Adds up the outputs of every token's experts: y (T k, H) sorted by expert, weights (T, k) -> (T, H)."""

    @staticmethod
    def forward(ctx: Any, y: torch.Tensor, weights: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(y if ctx.needs_input_grad[1] else None, weights, order)
        dtype = torch.promote_types(y.dtype, weights.dtype)
        parts = _by_token(y, order, weights.shape[1]).to(dtype)
        return torch.bmm(weights.to(dtype)[:, None], parts)[:, 0]

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        y, weights, order = ctx.saved_tensors
        k = weights.shape[1]
        g = grads[0].index_select(0, order // k)
        dy = (g * weights.reshape(-1)[order][:, None]).to(y.dtype) if ctx.needs_input_grad[0] else None
        dw = None
        if ctx.needs_input_grad[1]:
            dw = torch.empty_like(weights)
            dw.view(-1)[order] = (g * y).sum(-1).to(weights.dtype)
        return dy, dw, None


def _by_token(rows: torch.Tensor, order: torch.Tensor, k: int) -> torch.Tensor:
    """Undoes the sorting: (T k, H) -> (T, k, H)."""
    places = torch.empty_like(order)
    places[order] = torch.arange(len(order), device=order.device)
    return rows.index_select(0, places).view(-1, k, rows.shape[-1])
