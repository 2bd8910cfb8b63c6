"""Checks within one model in memory: each compares one optimization of training with the plain computation.

They form a chain from transformers' own code to what training runs. Each link changes one thing, so that a failed check
shows which one is wrong:

    plain adapter arithmetic -> adapter layers -> + chunked loss -> + packing -> + fused layers
                                                                 -> + accumulation, + checkpointing
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import nn

from lamina.adapters.moved import with_rounding_moved
from lamina.compute.fusion import Recompute, fast_path
from lamina.compute.ops.adapter import AdapterLinear
from lamina.compute.ops.attention import packed_attention
from lamina.config.optimizers import OPTIMIZERS
from lamina.data.batch import Layout, build_units
from lamina.data.example import EncodedExample
from lamina.distributed.world import ALONE
from lamina.machine.hardware import dtype_name
from lamina.machine.seeding import seed_generators
from lamina.methods.shared.base import Injection
from lamina.training.reference import with_live_reference
from lamina.training.session import Session
from lamina.training.step import training_step
from lamina.verification.report import Measure, Skipped
from lamina.verification.rounding import (
    Gradient,
    Noise,
    collect,
    relative,
    rounding_noise,
    taken_gradients,
)

# One document at a time, in the model's own attention.
_SEPARATE = Layout(together=False, own_attention=True)

# The norm of a filled adapter's update, relative to the weight's norm.
FILL = 0.1

# Number of draws for the noise of the loss. On two documents of SmolLM2-135M in bfloat16, single draws are between
# 0.0017 and 0.0105 of it.
LOSS_DRAWS = 6

# Standard deviation of values that replace zeros where there is no other scale: the usual one of initial weights.
_FRESH = 0.02

# Number of roundings in the output of an adapter layer: factors, the product between them, output. In bfloat16, the
# rounding of sums is negligible; in float32 it dominates.
_LAYER_ROUNDINGS = {torch.bfloat16: 4, torch.float16: 4, torch.float32: 64}


@torch.no_grad()
def fill_adapter(injection: Injection, seed: int) -> None:
    """Fills a new adapter with values drawn from `seed`: an adapter without an effect would hide errors."""
    generator = torch.Generator().manual_seed(seed)
    for layer in injection.layers.values():
        tensors = list(layer.adapter_tensors().values())
        if not isinstance(layer, AdapterLinear):
            for tensor in tensors:
                size = FILL * tensor.abs().mean() if tensor.any() else _FRESH
                tensor.add_(size * torch.randn(tensor.shape, generator=generator).to(tensor))
            continue
        # A tensor that starts at zero is a factor of the whole update, and switches it off.
        switches = [tensor for tensor in tensors if not tensor.any()]
        for tensor in tensors:
            drawn = torch.randn(tensor.shape, generator=generator).to(tensor.device)
            tensor.copy_(drawn if not tensor.any() else tensor * (1 + FILL * drawn))
        if switches:
            switches[0].mul_(FILL * layer.frozen.weight(torch.float32).norm() / layer.delta_weight().norm())


class Paths:
    """Computes loss and gradient of a few documents in several ways, each once, and compares them.

    Args:
        session: A model with a filled adapter, and the documents as its training data.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._model = session.base.model.eval()
        self._tensors = session.tensors
        self._longest = max(document.longest for document in session.dataset.train)
        with fast_path(self._model, longest=self._longest) as path:
            self._path = path
            parts = (self._model, session.head, [list(session.dataset.train)], path.layout, ALONE)
            (self._documents,) = session.loss.over_step(*parts)

    @property
    def notes(self) -> list[str]:
        """Training's notes on how it runs the model."""
        return self._path.notes

    def adapter_is_formula(self) -> list[Measure]:
        """Compares each adapter layer's forward and backward with the formula, on the layer's inputs for the data."""
        generator = torch.Generator().manual_seed(self._session.config.seed)
        measures: list[Measure] = []

        def compare(name: str) -> Callable[[nn.Module, tuple[torch.Tensor]], None]:
            def hook(layer: nn.Module, inputs: tuple[torch.Tensor]) -> None:
                assert isinstance(layer, AdapterLinear)
                with torch.enable_grad():
                    measures.append(_worst_of_layer(name, layer, inputs[0].detach(), generator))

            return hook

        layers = self._session.injection.layers
        linears = {name: layer for name, layer in layers.items() if isinstance(layer, AdapterLinear)}
        if not linears:
            raise Skipped("the method adds nothing to single linear layers")
        handles = [layer.register_forward_pre_hook(compare(name)) for name, layer in linears.items()]
        try:
            with torch.no_grad():
                self._model(input_ids=_longest(self._documents, self._model.device)[None], use_cache=False)
        finally:
            for handle in handles:
                handle.remove()
        return measures

    def chunked_is_transformers(self) -> list[Measure]:
        """Compares lamina's loss with transformers' own, one document at a time, in the model's own attention."""
        return self._noise.measures(self._apart, self._plain)

    def packed_is_apart(self) -> list[Measure]:
        """Compares documents as training runs them with one at a time in the model's own attention."""
        if self._path.layout == _SEPARATE:
            raise Skipped(str(self._path.fallback))
        return self._noise.measures(self._packed, self._apart)

    def compiled_is_eager(self) -> list[Measure]:
        """Fused layers against transformers' layer code."""
        with fast_path(self._model, longest=self._longest) as report:
            if not report.fused:
                raise Skipped(f"training runs transformers' own layer code: {'; '.join(report.notes)}")
            fused = collect(self._tensors, lambda: self._backward(report.layout))
        return self._noise.measures(fused, self._packed)

    def accumulated_is_full(self) -> list[Measure]:
        """One optimizer step over micro-batches of one document each, against one over all documents at once."""
        if OPTIMIZERS[self._session.config.train.optim].layerwise:
            raise Skipped("the optimizer moves tensors during the backward, so gradients are not accumulated")
        full = self._step([self._documents])
        accumulated = self._step([[document] for document in self._documents])
        return self._noise.measures(accumulated, full)

    def reference_is_live(self) -> list[Measure]:
        """Compares the reference's log-probabilities as training reads them with those that the model gives now."""
        session, reference = self._session, self._session.reference
        assert reference is not None, "only for a loss with a reference"
        with reference.active():
            live = with_live_reference(self._documents, session.base, session.head, _SEPARATE)
        layout = self._path.layout
        with contextlib.nullcontext() if layout.own_attention else packed_attention(self._model):
            return self._noise.measures(collect(self._tensors, lambda: self._backward(layout, live)), self._packed)

    def checkpointed_is_not(self) -> list[Measure]:
        """Layers recomputed in the backward, whole and in part, against layers that kept everything, with dropout."""
        if self._path.fused < self._path.layers and not self._model.supports_gradient_checkpointing:
            raise Skipped(f"{type(self._model).__name__} cannot recompute its layers in the backward")
        kept = self._trained(recompute=False)
        measures = []
        for recomputed in (self._trained(recompute) for recompute in (True, "selective")):
            if self._model.device.type != "cpu":  # where the order of sums in a backward may change from run to run
                measures += self._noise.measures(recomputed, kept)
                continue
            why = "0, because the same operations run again on the same numbers, dropout's draws included"
            measures.append(Measure("loss", abs(recomputed.loss - kept.loss), 0.0, why))
            for name, tensor in kept.tensors.items():
                measures.append(Measure(f"gradient of {name}", relative(recomputed.tensors[name], tensor), 0.0, why))
        return measures

    @cached_property
    def _plain(self) -> Gradient:
        return collect(self._tensors, lambda: [self._backward_of_transformers(d, exact=False) for d in self._documents])

    @cached_property
    def _noise(self) -> Noise:
        seed = self._session.config.seed
        with with_rounding_moved(self._model, seed):
            moved = collect(
                self._tensors, lambda: [self._backward_of_transformers(d, exact=True) for d in self._documents]
            )
        more_losses = []
        for draw in range(1, LOSS_DRAWS):
            with torch.no_grad(), with_rounding_moved(self._model, seed + draw):
                more_losses.append([float(self._loss_of_transformers(d, exact=True)) for d in self._documents])
        return rounding_noise(self._plain, moved, self._session.base.dtype, more_losses)

    @cached_property
    def _apart(self) -> Gradient:
        return collect(self._tensors, lambda: self._backward(_SEPARATE))

    @cached_property
    def _packed(self) -> Gradient:
        layout = self._path.layout
        with contextlib.nullcontext() if layout.own_attention else packed_attention(self._model):
            return collect(self._tensors, lambda: self._backward(layout))

    def _trained(self, recompute: Recompute = False) -> Gradient:
        """Computes the gradient as training does, including dropout."""
        self._model.train()
        try:
            with fast_path(self._model, recompute, longest=self._longest) as path:
                seed_generators(self._session.config.seed, self._model.device)
                return collect(self._tensors, lambda: self._backward(path.layout))
        finally:
            self._model.eval()

    def _backward(self, layout: Layout, documents: Sequence[EncodedExample] | None = None) -> list[float]:
        losses = []
        for unit in build_units(self._documents if documents is None else documents, layout):
            batches = [batch.to(self._model.device) for batch in unit]
            loss = self._session.loss.compute(self._model, self._session.head, batches).total
            loss.backward()
            losses.append(float(loss.detach()))
        return losses

    def _backward_of_transformers(self, document: EncodedExample, exact: bool) -> float:
        loss = self._loss_of_transformers(document, exact)
        loss.backward()
        return float(loss.detach())

    def _loss_of_transformers(self, document: EncodedExample, exact: bool) -> torch.Tensor:
        """The loss's formula on transformers' own logits of one example. `exact` computes it in float64: over a large
        vocabulary, torch's own float32 sum is off by more than all other roundings, which belongs to the noise."""
        parts = _ids(document, self._model.device).split(document.lengths)
        loss = self._session.loss
        logits = [loss.outputs(self._model, ids[None]) for ids in parts]
        return loss.formula([one.double() if exact else one.float() for one in logits], document)

    def _step(self, micro_batches: Sequence[Sequence[EncodedExample]]) -> Gradient:
        """Computes the gradient of a real optimizer step, captured before the optimizer's update."""
        gradients: list[dict[str, torch.Tensor]] = []
        optimizer = self._session.optimizer
        if OPTIMIZERS[self._session.config.train.optim].blockwise:  # which would show the gradients of one layer
            optimizer = torch.optim.SGD(self._tensors.values(), lr=0.0)

        with fast_path(self._model, longest=self._longest) as path:
            result = training_step(
                self._model,
                self._session.head,
                self._session.loss,
                optimizer,
                list(self._tensors.values()),
                micro_batches,
                learning_rate=0.0,
                max_grad_norm=0.0,
                check=lambda: gradients.append(taken_gradients(self._tensors)),
                layout=path.layout,
            )
        return Gradient([result.loss], gradients[0])


def _worst_of_layer(name: str, layer: AdapterLinear, x: torch.Tensor, generator: torch.Generator) -> Measure:
    """Compares a layer with `x (W + delta W)^T + b + delta b` in plain float32 arithmetic and torch's own backward."""
    tensors = layer.adapter_tensors()
    x = x.requires_grad_()
    y = layer.forward(x)
    grad = torch.randn(y.shape, generator=generator).to(y)
    ours = [y, *torch.autograd.grad(y, [x, *tensors.values()], grad)]

    exact_x = x.detach().float().requires_grad_()
    biases = [part.float() for part in (layer.bias, layer.delta_bias()) if part is not None]
    bias = torch.stack(biases).sum(0) if biases else None
    exact_y = F.linear(exact_x, layer.frozen.weight(torch.float32) + layer.delta_weight(), bias)
    exact = [exact_y, *torch.autograd.grad(exact_y, [exact_x, *tensors.values()], grad.float())]

    roundings = _LAYER_ROUNDINGS[y.dtype]
    why = (
        f"{roundings} roundings to {dtype_name(y.dtype)}: of the factors, the product between them, the result, and "
        "the sums in between"
    )
    parts = ("output", "input gradient", *(f"gradient of {key}" for key in tensors))
    differences = [relative(a.detach(), b.detach()) for a, b in zip(ours, exact, strict=True)]
    tolerance = roundings * torch.finfo(y.dtype).eps / 2
    measures = [Measure(f"{part}, {name}", d, tolerance, why) for part, d in zip(parts, differences, strict=True)]
    return max(measures, key=lambda measure: measure.severity)


def _longest(documents: Sequence[EncodedExample], device: torch.device) -> torch.Tensor:
    """Finds the longest sequence."""
    parts = [part for document in documents for part in _ids(document, device).split(document.lengths)]
    return max(parts, key=len)


def _ids(document: EncodedExample, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(document.input_ids).long().to(device)
