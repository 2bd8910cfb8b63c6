"""Tests, on two short documents, whether a fast way of running a model reproduces the model's own outputs.

The reference is transformers' code with the attention that the model was loaded with, one document at a time. A
candidate must agree with it in two respects:

* No document influences another: the gradient of one document's loss with respect to the embeddings of the other is
  exactly zero, in any dtype. A model that mixes tokens outside of its attention fails this.
* Logits and gradients equal those of the reference up to rounding. How much rounding matters to this model is measured:
  the reference is run again with the output of every layer perturbed by as much as rounding may change it.

`limits.py` covers what two short documents cannot show, for the longest document: which tokens the attention mask lets
a token see, and whether rotary positions depend on the length of the whole sequence.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel

from lamina.compute.fusion.inputs import model_inputs, token_rows
from lamina.compute.ops.adapter import AdapterModule
from lamina.data.batch import Layout, build_batch
from lamina.data.example import EncodedExample
from lamina.machine.seeding import kept_generators

# Tokens of the two documents. The second is longer than two blocks of the attention kernels.
LENGTHS = (37, 70)

# A factor on the measured noise: both sides round, and rounding also happens elsewhere than in the outputs of layers.
NOISE_ALLOWED = 4.0

# Relative difference that is always allowed: float32 sums in another order.
FLOOR = 1e-4

# Draws of the noise before a difference counts as too large: in a mixture of experts, the noise jumps with the routing.
DRAWS = 3

INFLUENCE = "documents in one sequence influence each other"

_OWN = Layout(together=False, own_attention=True)
_FIRST, _SECOND = slice(0, LENGTHS[0]), slice(LENGTHS[0], sum(LENGTHS))


@dataclass(frozen=True)
class Numbers:
    """The outputs of one way of running the documents.

    Attributes:
        logits: Logits of both documents, (T, V), float32.
        gradient: Gradient of the second document's loss with respect to its own embeddings, (L, D), float32.
        leaked: Largest absolute gradient of that loss with respect to any other embedding.
    """

    logits: torch.Tensor
    gradient: torch.Tensor
    leaked: float


class Reference:
    """The model's own outputs, computed once, to compare others with.

    Args:
        model: The model with its own attention implementation, with or without an adapter; adapters are disabled.
        virtual_tokens: Whether an adapter's virtual tokens do, since how they are put in depends on the way.
    """

    def __init__(self, model: PreTrainedModel, virtual_tokens: bool = False) -> None:
        self._model = model
        self._virtual_tokens = virtual_tokens
        vocabulary = model.config.get_text_config().vocab_size
        ids = ((np.arange(sum(LENGTHS)) * 7 + 3) % vocabulary).astype(np.int32)
        self._documents = [
            EncodedExample(part, np.arange(len(part)) > 0, row=row)
            for row, part in enumerate((ids[_FIRST], ids[_SECOND]), start=1)
        ]
        self._own = self.run(_OWN)
        self._noise: list[tuple[float, float]] = []
        if torch.finfo(model.dtype).bits < 32:  # in which no way is so close that it need not be known
            self.measure_more()

    def run(self, layout: Layout) -> Numbers:
        """The numbers of the documents in a layout, with the model as it is now switched."""
        if layout.shared:
            logits, gradient = self._forward_backward(self._documents, _SECOND, layout)
            own = gradient[_SECOND].clone()
            gradient[_SECOND] = 0.0
            return Numbers(logits[: sum(LENGTHS)], own, float(gradient.abs().max()))
        (first, _), (second, gradient) = (
            self._forward_backward([document], wanted, layout)
            for document, wanted in zip(self._documents, (None, slice(0, LENGTHS[1])), strict=True)
        )
        parts = [logits[:length] for logits, length in zip((first, second), LENGTHS, strict=True)]
        return Numbers(torch.cat(parts), gradient[: LENGTHS[1]], 0.0)

    def difference(self, numbers: Numbers) -> str | None:
        """Says how numbers differ from the model's own, as far as rounding was measured.

        Returns:
            None if they are the model's own.
        """
        if numbers.leaked != 0.0:
            return INFLUENCE
        found, allowed = _distances(numbers, self._own), self._allowed()
        if all(distance <= most for distance, most in zip(found, allowed, strict=True)):
            return None
        rows = zip(("logits", "gradients"), found, allowed, strict=True)
        what, distance, most = max(rows, key=lambda row: row[1] / row[2])
        return f"its {what} are not its own (relative difference {distance:.1e}, rounding allows {most:.1e})"

    def measure_more(self) -> bool:
        """Measures once more what rounding does, which must be done in the model's own way.

        Returns:
            Whether there was a draw left.
        """
        if len(self._noise) >= DRAWS:
            return False
        with _perturbed_rounding(self._model, seed=len(self._noise)):
            self._noise.append(_distances(self.run(_OWN), self._own))
        return True

    def seconds(self, layout: Layout) -> float:
        """Of a forward over both documents and a backward over one."""
        began = time.perf_counter()
        self.run(layout)
        return time.perf_counter() - began

    def _allowed(self) -> tuple[float, float]:
        """For logits and gradient, from the largest noise so far."""
        logits, gradients = (NOISE_ALLOWED * max(noise, default=0.0) + FLOOR for noise in self._both_noises())
        return logits, gradients

    def _both_noises(self) -> tuple[list[float], list[float]]:
        return [logits for logits, _ in self._noise], [gradients for _, gradients in self._noise]

    def _forward_backward(
        self, documents: list[EncodedExample], asked: slice | None, layout: Layout
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Computes the logits (T, V), and the gradient (T, D) of the loss of the `asked` tokens by all embeddings."""
        batch = build_batch(documents, layout).to(self._model.device)
        embeddings: list[torch.Tensor] = []

        def leaf(module: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
            embeddings.append(output.detach().requires_grad_(asked is not None))
            return embeddings[-1].clone()  # models may write into it in place

        with plain_model(self._model, self._virtual_tokens), torch.set_grad_enabled(asked is not None):
            handle = self._model.get_input_embeddings().register_forward_hook(leaf)
            try:
                logits = token_rows(batch, self._model(**model_inputs(batch)).logits)
            finally:
                handle.remove()
            gradient = torch.empty(0)
            if asked is not None:
                targets = batch.input_ids[0, asked][1:]
                loss = F.cross_entropy(logits[asked][:-1].float(), targets, reduction="sum")
                (gradient,) = torch.autograd.grad(loss, embeddings[:1])
                gradient = token_rows(batch, gradient).float()
        return logits.detach().float(), gradient


def _distances(ours: Numbers, own: Numbers) -> tuple[float, float]:
    """Computes the relative differences of logits and gradient; infinite where a number is not finite."""
    distances = [
        float((a - b).norm() / b.norm().clamp_min(1e-30))
        for a, b in ((ours.logits, own.logits), (ours.gradient, own.gradient))
    ]
    logits, gradient = (distance if np.isfinite(distance) else float("inf") for distance in distances)
    return logits, gradient


@contextlib.contextmanager
def plain_model(model: PreTrainedModel, virtual_tokens: bool = False) -> Iterator[None]:
    """Evaluation mode without adapters, or with virtual tokens alone, and the random state is put back."""
    adapters = [module for module in model.modules() if isinstance(module, AdapterModule) and module.enabled]
    adapters = [adapter for adapter in adapters if not (virtual_tokens and adapter.virtual_tokens)]
    modes = {module: module.training for module in model.modules()}
    try:
        for adapter in adapters:
            adapter.enabled = False
        model.eval()
        with kept_generators(model.device):
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for adapter in adapters:
            adapter.enabled = True


@contextlib.contextmanager
def _perturbed_rounding(model: nn.Module, seed: int) -> Iterator[None]:
    """Inside the block, perturbs the output and the gradient of every layer with weights by up to a rounding error."""
    generator = torch.Generator(next(model.parameters()).device).manual_seed(seed)

    def perturb(module: nn.Module, args: Any, output: Any) -> Any:
        tensor = isinstance(output, torch.Tensor) and output.is_floating_point() and output.requires_grad
        return _Perturbed.apply(output, generator) if tensor else output

    handles = [
        module.register_forward_hook(perturb)
        for module in model.modules()
        if isinstance(module, AdapterModule)
        or (next(module.children(), None) is None and next(module.parameters(), None) is not None)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Perturbed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        ctx.generator = generator
        return _perturbed(y, generator)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return _perturbed(grads[0], ctx.generator), None


def _perturbed(y: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    drawn = torch.empty(y.shape, device=y.device).uniform_(-1.0, 1.0, generator=generator)
    exact = y.float()
    return (exact + drawn * exact.abs() * (torch.finfo(y.dtype).eps / 2)).to(y.dtype)
