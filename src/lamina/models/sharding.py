"""Divides the frozen base over processes, so that each holds a part of every decoder layer: torch's FSDP2.

Only what is frozen is divided; the adapter stays whole in every process, and so do the optimizer, clipping, saving and
resuming. Packed weights are divided as they are, in 4 or 8 bits, with their scales. Embedding, head, norms, biases and
stacked experts stay whole.

Weights that are mapped from a file are copied layer by layer, and their pages let go, so that a process holds at most
one whole layer beside its parts. All processes of a machine read from one page cache.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lamina.compute.weights.mapped import drop_pages
from lamina.compute.weights.packed import PackedLinear
from lamina.compute.weights.sharded import mark_sharded
from lamina.errors import ConfigError, Problem
from lamina.structure.layers import decoder_layers, text_decoder


@dataclass(frozen=True)
class Sharding:
    """How the base is divided.

    Attributes:
        parts: Number of processes that share one base.
        own_bytes: Bytes of frozen weights that this process holds.
        whole_bytes: Bytes of all frozen weights.
    """

    parts: int
    own_bytes: int
    whole_bytes: int

    def line(self) -> str:
        """Formats a sentence for the run's plan."""
        share = self.own_bytes / max(self.whole_bytes, 1)
        return (
            f"The frozen base of {self.whole_bytes / 2**30:.2f} GiB is divided over {self.parts} processes: each holds "
            f"{self.own_bytes / 2**30:.2f} GiB ({share:.0%}), and two whole layers while it computes."
        )


def shard_layers(model: PreTrainedModel, mesh: DeviceMesh, reshard_after_forward: bool = True) -> Sharding:
    """Divides the frozen weights of the decoder layers over the processes of a mesh.

    Args:
        model: The model with its adapter; not run before.
        mesh: One-dimensional, or with a first dimension of copies of the divided base.
        reshard_after_forward: Whether a layer's weights are freed between its forward and its backward.

    Raises:
        ConfigError: There is nothing to divide.
    """
    layers = decoder_layers(model)
    whole_bytes = 0
    for layer in layers:
        modules = _with_frozen_weights(layer)
        weights = [weight for module in modules for weight in _divisible(module)]
        whole_bytes += sum(weight.nbytes for weight in weights)
        mapped = [weight.data for weight in weights]
        ignored = set(layer.parameters()) - set(weights)
        fully_shard(layer, mesh=mesh, ignored_params=ignored, reshard_after_forward=reshard_after_forward)
        mark_sharded(layer, modules)
        for weight in mapped:
            drop_pages(weight)
    if not whole_bytes:
        message = f"{type(model).__name__} has no frozen linear layers to divide over processes"
        raise ConfigError(Problem("distributed.strategy", message, "use ddp"))
    decoder = text_decoder(model)
    divided = {parameter for layer in layers for parameter in layer.parameters() if isinstance(parameter, DTensor)}
    fully_shard(decoder, mesh=mesh, ignored_params=set(decoder.parameters()) - divided, reshard_after_forward=False)
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    own = sum(_bytes(parameter) for parameter in frozen)
    undivided = sum(parameter.nbytes for parameter in frozen if not isinstance(parameter, DTensor))
    return Sharding(mesh.size(mesh.ndim - 1), own, whole_bytes + undivided)


def _with_frozen_weights(layer: nn.Module) -> list[nn.Module]:
    return [
        module
        for module in layer.modules()
        if isinstance(module, PackedLinear)
        or (type(module) in (nn.Linear, Conv1D) and not any(p.requires_grad for p in module.parameters()))
    ]


def _divisible(module: nn.Module) -> Iterable[nn.Parameter]:
    """A module's large tensors; the buffers of a packed weight become parameters, since FSDP2 leaves buffers whole."""
    if not isinstance(module, PackedLinear):
        weight: Any = module.weight
        return [weight]
    for name, buffer in list(module.named_buffers()):
        if buffer.dim() > 0 and name in module.divisible:
            del module._buffers[name]
            module.register_parameter(name, nn.Parameter(buffer, requires_grad=False))
    return [parameter for name, parameter in module.named_parameters() if name in module.divisible]


def _bytes(parameter: torch.Tensor) -> int:
    return parameter.to_local().nbytes if isinstance(parameter, DTensor) else parameter.nbytes
