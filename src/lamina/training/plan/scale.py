"""Estimates on paper how training scales over GPUs: time, communication and memory of each way to share the work.

    compute of a micro-batch       4 N T + 12 L D sum(len^2) / 2 operations: LoRA computes no gradient of the N weights
    ddp                            one all-reduce of the adapter's gradients (float64) in a step
    fsdp                           two gathers of the base in a micro-batch, beside the computation; the longer counts
    hybrid                         fsdp within a machine, the gradients between machines
    sequence (Ulysses)             four all-to-alls of T D / P elements in a layer, forward and backward each

A ring moves 2 (W - 1) / W of a tensor for an all-reduce and (W - 1) / W for a gather, at the bandwidth of the slowest
link in it. The figures are claims until they have been measured on such machines.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Way = Literal["ddp", "fsdp", "hybrid"]

# Bytes for an adapter's weight: itself, its gradient, AdamW's two moments, and the sum of gradients in float64.
ADAPTER_BYTES = 4 + 4 + 8 + 8
_SUM_BYTES = 8


@dataclass(frozen=True)
class Work:
    """What is trained.

    Attributes:
        weights: N, weights of the decoder layers.
        head_weights: Weights of embedding and head, which every process holds.
        adapter_weights: Weights of the adapter.
        layers: L, decoder layers.
        width: D, the hidden size.
        weight_bytes: Bytes of a frozen weight in memory, such as 2, or 0.516 for NF4.
        tokens: T, tokens of a micro-batch.
        document: Tokens of a document.
        micro_batches: Micro-batches of a step, over all processes together.
        activation_bytes: Bytes that a micro-batch keeps for its backward.
    """

    weights: float
    head_weights: float
    adapter_weights: float
    layers: int
    width: int
    weight_bytes: float = 2.0
    tokens: int = 4096
    document: int = 512
    micro_batches: int = 64
    activation_bytes: float = 0.0

    @property
    def operations(self) -> float:
        """Floating-point operations of a micro-batch."""
        attention = 6 * self.layers * self.width * self.tokens * min(self.document, self.tokens)
        return 4 * (self.weights + self.head_weights / 2) * self.tokens + attention


@dataclass(frozen=True)
class Machine:
    """GPUs and the links between them.

    Attributes:
        name: For tables.
        operations: Operations per second that a GPU reaches in such products.
        memory: Bytes of a GPU.
        per_host: GPUs of a machine.
        inside: Bytes per second between two GPUs of a machine, in one direction.
        between: Bytes per second between two machines, in one direction.
        latency: Seconds of the smallest exchange between neighbors.
    """

    name: str
    operations: float
    memory: float
    per_host: int
    inside: float
    between: float
    latency: float = 2e-5


MACHINES = {
    "h100": Machine("8 x H100 80 GB, NVLink, 400 Gb/s for each GPU", 4e14, 80e9, 8, 2.4e11, 4e10),
    "a100-pcie": Machine("8 x A100 40 GB, PCIe 4, 100 Gb/s", 1.6e14, 40e9, 8, 1.2e10, 1.1e10),
    "4090": Machine("2 x RTX 4090 24 GB, PCIe 4, 25 Gb/s", 8e13, 24e9, 2, 1.2e10, 2.8e9),
}
"""Machines with measured rates from public reports, not from here."""


@dataclass(frozen=True)
class Estimate:
    """A step on paper.

    Attributes:
        way: How the work is shared.
        gpus: Number of GPUs.
        seconds: Of a step.
        communication: Share of it in which nothing is computed, because of communication.
        efficiency: Work done per GPU, relative to one GPU that could hold everything.
        memory: Bytes of a GPU.
        fits: Whether that is less than it has.
    """

    way: Way
    gpus: int
    seconds: float
    communication: float
    efficiency: float
    memory: float
    fits: bool


def estimate(work: Work, machine: Machine, way: Way, gpus: int) -> Estimate:
    """Estimates a step.

    Args:
        work: What is trained.
        machine: On what.
        way: How the work is shared.
        gpus: Number of GPUs; whole machines, or part of one.
    """
    slots = math.ceil(work.micro_batches / gpus)
    compute = work.operations / machine.operations
    shards = {"ddp": 1, "fsdp": gpus, "hybrid": min(gpus, machine.per_host)}[way]
    base = work.weights * work.weight_bytes
    gather = 0.0
    if shards > 1:
        link = machine.inside if shards <= machine.per_host else min(machine.inside, machine.between)
        gather = 2 * (base * (shards - 1) / shards / link + work.layers * machine.latency)
    reduction = 0.0
    if gpus > 1:
        link = machine.inside if gpus <= machine.per_host else min(machine.inside, machine.between)
        moved = 2 * (gpus - 1) / gpus * _SUM_BYTES * work.adapter_weights
        reduction = moved / link + 2 * math.log2(gpus) * machine.latency
    seconds = slots * max(compute, gather) + reduction
    busy = slots * compute
    layer = base / work.layers
    memory = base / shards + (2 * layer if shards > 1 else 0.0) + 2 * work.head_weights
    memory += ADAPTER_BYTES * work.adapter_weights + work.activation_bytes
    alone = work.micro_batches * compute
    return Estimate(way, gpus, seconds, 1 - busy / seconds, alone / (seconds * gpus), memory, memory <= machine.memory)


def fastest(work: Work, machine: Machine, gpus: int) -> Estimate:
    """Estimates the fastest way that fits; the one that needs the least memory if none does."""
    ways: tuple[Way, ...] = ("ddp", "hybrid", "fsdp")
    found = [estimate(work, machine, way, gpus) for way in ways]
    fitting = [each for each in found if each.fits]
    return min(fitting, key=lambda each: each.seconds) if fitting else min(found, key=lambda each: each.memory)


def ulysses_seconds(work: Work, machine: Machine, parts: int, element_bytes: int = 2) -> float:
    """Estimates the all-to-alls of a micro-batch whose documents are divided over `parts` processes."""
    link = machine.inside if parts <= machine.per_host else min(machine.inside, machine.between)
    moved = work.tokens / parts * work.width * element_bytes * (parts - 1) / parts
    return work.layers * 2 * 4 * (moved / link + machine.latency)
