"""The figures of `lamina bench serve`, and the JSON that has them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from lamina.bench.machine import DISTURBED_CORES
from lamina.bench.serving.job import Window


@dataclass(frozen=True)
class Load:
    """The load on a side, the same for all that are compared.

    Attributes:
        adapters: Number of adapters.
        concurrency: Streams of a closed loop; None for an open one.
        rate: Requests per second of an open loop.
    """

    adapters: int
    concurrency: int | None
    rate: float | None

    def requests_line(self) -> str:
        """Describes how requests arrive."""
        return f"{self.concurrency} streams" if self.rate is None else f"{self.rate:g} requests/s"

    def line(self) -> str:
        """Describes the load."""
        return f"{self.adapters} adapters, {self.requests_line()}"


# Percentile, such as `p50` -> milliseconds; None where there are no times.
Percentiles = dict[str, float | None]


@dataclass(frozen=True)
class Waits:
    """How long clients wait.

    Attributes:
        ttft_ms: From a request to its first token.
        itl_ms: From a token to the next.
    """

    ttft_ms: Percentiles
    itl_ms: Percentiles


@dataclass(frozen=True)
class AdapterFigures:
    """The figures of one adapter under one load.

    Attributes:
        adapter: Its name.
        method: Name of its method.
        rank: Of LoRA or DoRA; 0 for others.
        requests: Number of measured requests.
        tokens_per_second: Of a stream: tokens over the time of this adapter's answers.
        waits: Of its requests.
    """

    adapter: str
    method: str
    rank: int
    requests: int
    tokens_per_second: float
    waits: Waits


@dataclass(frozen=True)
class SideFigures:
    """The figures of one side under one load; speeds are medians over rounds, None where they are not known.

    Attributes:
        side: Its name.
        load: The load.
        adapters_served: Adapters that it served; a side leaves out methods that it cannot serve.
        tokens_per_second: Of answers.
        waits: Of all requests.
        limit_share: The decoding rate over the machine's limit.
        decode_tokens_per_second: The decoding rate, while no prompt is read.
        limit_tokens_per_second: The machine's limit of the same.
        limit_read_ms: Of the limit's step, the time of reading weights and cache.
        limit_product_ms: Of the limit's step, the time of the products.
        requests: Number of measured requests.
        peak_bytes: Of the side's process.
        other_cores: Cores that other processes kept busy meanwhile: the mean over rounds.
        settings: What the side chose, and the version of its library.
        by_adapter: The figures of each adapter.
    """

    side: str
    load: Load
    adapters_served: int
    tokens_per_second: float
    waits: Waits
    limit_share: float | None
    decode_tokens_per_second: float | None
    limit_tokens_per_second: float | None
    limit_read_ms: float | None
    limit_product_ms: float | None
    requests: int
    peak_bytes: float
    other_cores: float
    settings: dict[str, Any]
    by_adapter: list[AdapterFigures]


@dataclass(frozen=True)
class SideRatio:
    """One side's speeds over another's: medians over rounds, None where one of the two is not known.

    Attributes:
        side: The side.
        load: Its load.
        over: What it is compared with: `best peer`, `transformers`, or itself with `no adapters`.
        peer: The side that this is.
        tokens_per_second: Ratio of tokens per second.
        decode_tokens_per_second: Ratio of the decoding rates.
        limit_tokens_per_second: Ratio of the machine's limits, with adapters over without.
    """

    side: str
    load: Load
    over: str
    peer: str
    tokens_per_second: float
    decode_tokens_per_second: float | None
    limit_tokens_per_second: float | None


@dataclass(frozen=True)
class Failure:
    """A side that failed with so many adapters."""

    side: str
    adapters: int
    error: str


@dataclass(frozen=True)
class LeftOut:
    """A side that was not tried with so many adapters."""

    side: str
    adapters: int
    reason: str


@dataclass(frozen=True)
class Round:
    """One window of one side, as it was measured; rounds are counted from 1."""

    side: str
    load: Load
    round: int
    window: Window


@dataclass(frozen=True)
class ServeReport:
    """The whole comparison.

    Attributes:
        settings: What was compared, and on what.
        machine: Where.
        sides: A side's figures under each load.
        ratios: Of a side over others.
        failed: Sides that failed.
        left_out: Sides that were not tried.
        rounds: Every window as it was measured.
    """

    settings: dict[str, Any]
    machine: dict[str, Any]
    sides: list[SideFigures]
    ratios: list[SideRatio]
    failed: list[Failure]
    left_out: list[LeftOut]
    rounds: list[Round]

    def as_json(self) -> dict[str, Any]:
        """Converts to plain data, in which load, waits and window have no key of their own."""
        return {
            name: [_flat(record) for record in value] if isinstance(value, list) else value
            for name, value in vars(self).items()
        }

    def disturbed(self) -> list[str]:
        """Lists sides and loads whose figures say little, because other processes used the machine."""
        return [
            f"{side.side} ({side.load.line()}): other processes kept {side.other_cores:.1f} cores busy"
            for side in self.sides
            if side.other_cores > DISTURBED_CORES
        ]


def _flat(record: SideFigures | SideRatio | Failure | LeftOut | Round | AdapterFigures) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for name, value in vars(record).items():
        if isinstance(value, Load | Waits | Window):
            content |= dataclasses.asdict(value)
        elif name == "by_adapter":
            content[name] = [_flat(adapter) for adapter in value]
        else:
            content[name] = value
    return content
