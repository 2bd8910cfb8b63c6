"""Sums over the micro-batches of a step whose result does not depend on the order, and so not on who computed what.

Gradients are float32. Their sum is formed in float64 and rounded once: it is exact, and hence the same in every order,
as long as the terms of an element are within 2^26 of each other; beyond, two orders differ in the last bit of float64,
which changes the rounded sum with a chance of about 2e-9 for an element.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from lamina.distributed.world import World


class GradientSum:
    """The gradients of a step's micro-batches, added up in float64.

    Args:
        parameters: What has gradients.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self._parameters = parameters
        self._touched = [False] * len(parameters)
        self._flat: torch.Tensor | None = None

    @property
    def touched(self) -> list[bool]:
        """Whether each parameter got a gradient from a micro-batch of this process."""
        return list(self._touched)

    @torch.no_grad()
    def take(self) -> None:
        """Adds the gradients that a backward has left, and clears them."""
        for place, (parameter, part) in enumerate(zip(self._parameters, self._parts(), strict=True)):
            if parameter.grad is not None:
                part.add_(parameter.grad)
                parameter.grad = None
                self._touched[place] = True

    def is_finite(self) -> bool:
        """Whether the sum of this process is finite."""
        return self._flat is None or bool(torch.isfinite(self._flat.sum()))

    @torch.no_grad()
    def put_back(self, world: World, touched: Sequence[bool]) -> None:
        """Adds up over all processes, and makes the rounded sums the parameters' gradients.

        Args:
            world: The processes.
            touched: Whether each parameter got a gradient in any of them; the others keep none.
        """
        parts = self._parts()
        assert self._flat is not None
        world.add_up(self._flat)
        for parameter, part, is_touched in zip(self._parameters, parts, touched, strict=True):
            parameter.grad = part.to(parameter.dtype, copy=True) if is_touched else None

    def _parts(self) -> list[torch.Tensor]:
        """Views of the flat sum in the parameters' shapes."""
        sizes = [parameter.numel() for parameter in self._parameters]
        if self._flat is None:
            device = self._parameters[0].device if self._parameters else None
            self._flat = torch.zeros(sum(sizes), dtype=torch.float64, device=device)
        pairs = zip(self._flat.split(sizes), self._parameters, strict=True)
        return [part.view(parameter.shape) for part, parameter in pairs]


def digest_of(tensors: Mapping[str, torch.Tensor]) -> str:
    """Returns a short digest of tensors, to compare replicas with."""
    digest = hashlib.blake2b(digest_size=8)
    for name, tensor in tensors.items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
