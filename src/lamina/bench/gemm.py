"""Measures how fast this machine computes a model's matrix products, and how long a step would take at that speed.

The limit of a step is its required operations divided by the speed of plain products of the same shapes: x W^T for the
forward and g W for the backward, in the run's dtype, with the step's number of tokens. Adapter and attention products
count with the average of these speeds. They cannot reach it, so no implementation reaches the limit.

The speed of a machine changes within seconds (shared cores, clock). It is therefore measured in the same process right
before and right after each step, and a step is compared with the mean of both.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from lamina.bench.flops import ModelUse

# Enough rows for full speed, but so few that this measurement does not determine the peak memory. A GPU needs more rows
# than a CPU to reach full speed; with fewer, a step could be faster than the limit.
MAX_ROWS = {"cpu": 2048, "cuda": 16384}
MAX_HEAD_ROWS = {"cpu": 512, "cuda": 4096}
MAX_HEAD_COLUMNS = 2**15

# How long products of a shape are repeated; the result is the median.
SECONDS_PER_SHAPE = 0.03
MIN_REPEATS = 3


@dataclass(frozen=True)
class Rates:
    """Measured speeds of plain products, in floating-point operations per second.

    Attributes:
        forward: Speed of x W^T, by (in, out) of the layer.
        backward: Speed of g W, by (in, out) of the layer.
        head_forward: Speed of the output head.
        head_backward: Speed of the output head's input gradient.
    """

    forward: dict[tuple[int, int], float]
    backward: dict[tuple[int, int], float]
    head_forward: float
    head_backward: float

    def limit_seconds(self, use: ModelUse, lengths: Sequence[int], supervised: int) -> float:
        """Computes the time of a step of nothing but required products, at these speeds."""
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
    """Measures the speed of products with matrices of the model's shapes.

    Args:
        use: The model's linear layers.
        tokens: Number of rows of the layers' products.
        supervised: Number of rows of the head's product.
        dtype: Dtype of all matrices.
        device: Device to measure.
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
    # Results are written in place, so that the limit does not include the page faults of new memory.
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
    """Waits until the device is idle, so that a clock can be read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
