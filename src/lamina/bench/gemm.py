"""The machine's own rate at a model's matrix products, and the time that a step would take at that rate.

The limit of a step is (operations that its mathematics needs) / (rate of plain products), layer shape by layer shape:
x W^T for the forward and g W for the backward, in the run's dtype, at the step's number of tokens. Adapter and
attention products are charged at the average of those rates, which they cannot reach: the limit is one that nobody
meets.

Rates of one machine move within seconds (shared cores, clock), so they are taken in the same process right before and
right after each step, and a step is held against the mean of both.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from lamina.bench.flops import ModelUse

# Enough for the full rate, and little enough that probing does not become the peak of memory. A GPU reaches its rate
# with more rows than a CPU; at fewer, the limit would be one that a step could beat.
MAX_ROWS = {"cpu": 2048, "cuda": 16384}
MAX_HEAD_ROWS = {"cpu": 512, "cuda": 4096}
MAX_HEAD_COLUMNS = 2**15

# Products of a shape are repeated for so long; the median counts.
SECONDS_PER_SHAPE = 0.03
MIN_REPEATS = 3


@dataclass(frozen=True)
class Rates:
    """Measured rates of plain products, in floating-point operations per second.

    Attributes:
        forward: By (in, out) of the layer: x W^T.
        backward: The same of g W.
        head_forward: Of the output head.
        head_backward: The same of its input gradient.
    """

    forward: dict[tuple[int, int], float]
    backward: dict[tuple[int, int], float]
    head_forward: float
    head_backward: float

    def limit_seconds(self, use: ModelUse, lengths: Sequence[int], supervised: int) -> float:
        """The time of a step that does nothing but needed products, at these rates."""
        flops = use.step(lengths, supervised)
        tokens = sum(lengths)
        seconds = 0.0
        for linear, count in use.linears.items():
            shape = linear.in_features, linear.out_features
            product = count * 2 * tokens * shape[0] * shape[1]
            seconds += product / self.forward[shape]
            if linear.input_gradient:
                seconds += product / self.backward[shape]
        seconds += flops.head / 2 / self.head_forward + flops.head / 2 / self.head_backward
        average = (flops.frozen_forward + flops.frozen_backward + flops.head) / seconds
        return seconds + (flops.adapter + flops.attention) / average


def measure_rates(use: ModelUse, tokens: int, supervised: int, dtype: torch.dtype, device: torch.device) -> Rates:
    """Multiplies matrices of the model's shapes for a moment.

    Args:
        use: The model's shapes.
        tokens: Rows of the layers' products.
        supervised: Rows of the head's.
        dtype: Of all matrices.
        device: Where to multiply.
    """
    rows = min(tokens, MAX_ROWS.get(device.type, MAX_ROWS["cpu"]))
    head_rows = min(supervised, MAX_HEAD_ROWS.get(device.type, MAX_HEAD_ROWS["cpu"]))
    columns = min(use.vocabulary, MAX_HEAD_COLUMNS)
    forward, backward = {}, {}
    for shape in {(linear.in_features, linear.out_features) for linear in use.linears}:
        forward[shape], backward[shape] = _rates(rows, *shape, dtype, device)
    head = _rates(max(1, head_rows), use.hidden_size, columns, dtype, device)
    return Rates(forward, backward, *head)


def _rates(rows: int, inner: int, outer: int, dtype: torch.dtype, device: torch.device) -> tuple[float, float]:
    x_TI = torch.randn(rows, inner, dtype=dtype, device=device)
    w_OI = torch.randn(outer, inner, dtype=dtype, device=device)
    y_TO = torch.empty(rows, outer, dtype=dtype, device=device)
    operations = 2.0 * rows * inner * outer
    # Written in place: the limit is the product's alone, without what a fresh result costs in page faults.
    forward = _seconds(lambda: torch.mm(x_TI, w_OI.T, out=y_TO), device)
    backward = _seconds(lambda: torch.mm(y_TO, w_OI, out=x_TI), device)
    return operations / forward, operations / backward


@torch.no_grad()
def _seconds(product: Callable[[], torch.Tensor], device: torch.device) -> float:
    product()
    times: list[float] = []
    synchronize(device)
    while len(times) < MIN_REPEATS or sum(times) < SECONDS_PER_SHAPE:
        began = time.perf_counter()
        product()
        synchronize(device)
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def synchronize(device: torch.device) -> None:
    """Waits until the device has done what it was given, so that a clock can be read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
