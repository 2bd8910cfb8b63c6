"""What the machine allows: the shortest time of a step of decoding, whoever computes it.

A step of N streams must read every weight once, the adapters that its rows use, and the keys and values of each stream;
and it must multiply each row by all of these. Reading can go on beside the products, so the limit is the longer of

    (weights + adapters + cache) / (rate of reading),   N * (products of a row) / (rate of products).

The rate of reading is that of a sum over a buffer much larger than the caches, with all threads; the rate of products
is that of plain products of the model's shapes with many rows (`bench/gemm.py`), which a step of few rows cannot reach.
Both are measured before and after every side. A machine whose last cache holds a part of the weights may beat the
first.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoConfig

from lamina.bench.flops import ModelUse, model_use
from lamina.bench.gemm import measure_rates
from lamina.bench.serving.job import AdapterFacts, Window
from lamina.bench.serving.traffic import ALIKE
from lamina.config.methods.lora import LoraConfig
from lamina.machine.hardware import DTYPES

# Larger than the last cache of any processor by far.
_BUFFER_BYTES = 2**30
_READS = 5

# Rows of the products whose rate counts.
_ROWS = 2048
_HEAD_ROWS = 512


@dataclass(frozen=True)
class StepWork:
    """What one step of decoding must do.

    Attributes:
        use: The model's shapes.
        weight_bytes: Weights of the linear layers and of the head.
        cache_bytes: Keys and values of one position.
        row_operations: Products of one row with the weights, two for a multiply and an add.
        attention_operations: Products of one row with the keys and values of one position.
    """

    use: ModelUse
    weight_bytes: float
    cache_bytes: float
    row_operations: float
    attention_operations: float


@dataclass(frozen=True)
class AdapterWork:
    """What adapters add to a step of a number of streams.

    Attributes:
        read_bytes: Of the adapters that its rows use.
        row_operations: Products of a row with its adapter, in the mean.
        positions: Virtual tokens that a row has, in the mean.
    """

    read_bytes: float = 0.0
    row_operations: float = 0.0
    positions: float = 0.0


@dataclass(frozen=True)
class Rates:
    """What the machine did at a moment.

    Attributes:
        read: Bytes per second.
        products: Operations per second, in the model's shapes.
    """

    read: float
    products: float


@dataclass(frozen=True)
class StepLimit:
    """The shortest time of a step.

    Attributes:
        read_seconds: That reading takes.
        product_seconds: That the products take.
        streams: Rows of the step.
    """

    read_seconds: float
    product_seconds: float
    streams: int

    @property
    def tokens_per_second(self) -> float:
        """Of all streams."""
        return self.streams / max(self.read_seconds, self.product_seconds)


def step_work(folder: Path | str, dtype: str) -> StepWork:
    """Counts what a step of a model must do, from its config.

    Args:
        folder: Of the base.
        dtype: What it is held in.
    """
    use = model_use(folder, LoraConfig(r=1))
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False).get_text_config()
    size = DTYPES[dtype].itemsize
    numbers = sum(count * kind.in_features * kind.out_features for kind, count in use.linears.items())
    numbers += use.hidden_size * use.vocabulary
    key_heads = getattr(config, "num_key_value_heads", None)
    cached = scored = 0
    for kind, count in use.attention.items():
        cached += count * (key_heads or kind.heads) * (kind.head_size + kind.value_size)
        scored += count * kind.heads * (kind.head_size + kind.value_size)
    return StepWork(use, float(numbers * size), float(cached * size), 2.0 * numbers, 2.0 * scored)


def adapter_work(adapters: Sequence[AdapterFacts], streams: int, dtype: str) -> AdapterWork:
    """What adapters add to a step whose rows are spread over them as evenly as they go.

    Of more adapters than are popular alike, a step's rows are taken to use as many as it has rows; popular ones are
    read once for several, so that this is a little more than must be read.
    """
    if not adapters:
        return AdapterWork()
    parameters = statistics.mean(adapter.parameters for adapter in adapters)
    used = min(streams, len(adapters), ALIKE)
    virtual = statistics.mean(adapter.virtual_tokens for adapter in adapters)
    return AdapterWork(used * parameters * DTYPES[dtype].itemsize, 2.0 * parameters, virtual)


def step_limit(work: StepWork, adapters: AdapterWork, rates: Rates, streams: int, positions: float) -> StepLimit:
    """The shortest time of a step.

    Args:
        work: Of the base.
        adapters: What they add.
        rates: Of the machine.
        streams: Rows of the step.
        positions: Tokens that a stream has in the cache, in the mean over an answer.
    """
    seen = positions + adapters.positions
    read = work.weight_bytes + adapters.read_bytes + streams * seen * work.cache_bytes
    products = work.row_operations + adapters.row_operations + seen * work.attention_operations
    return StepLimit(read / rates.read, streams * products / rates.products, streams)


def mean_positions(window: Window) -> float:
    """Tokens that a stream has in the cache, in the mean over the answers of a window."""
    return statistics.mean(answer.prompt_tokens + len(answer.times) / 2 for answer in window.answers)


def measure_machine(work: StepWork, dtype: str, buffer_bytes: int = _BUFFER_BYTES) -> Rates:
    """Reads and multiplies for a moment."""
    rates = measure_rates(work.use, _ROWS, _HEAD_ROWS, DTYPES[dtype], torch.device("cpu"))
    seconds = 2.0 * work.use.hidden_size * work.use.vocabulary / rates.head_forward
    for kind, count in work.use.linears.items():
        shape = (kind.in_features, kind.out_features)
        seconds += 2.0 * count * shape[0] * shape[1] / rates.forward[shape]
    return Rates(_read_rate(buffer_bytes), work.row_operations / seconds)


def _read_rate(size: int) -> float:
    buffer = torch.ones(size // 4)  # written, so that its pages are there
    times = []
    for _ in range(_READS):
        began = time.perf_counter()
        buffer.sum()
        times.append(time.perf_counter() - began)
    return size / min(times)
