"""From measured windows to figures: percentiles, medians over rounds, shares of the limit, ratios, and a plot."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lamina.bench.machine import DISTURBED_CORES, machine_facts
from lamina.bench.optional import optional
from lamina.bench.serving.job import AdapterFacts, Answer, Window
from lamina.bench.serving.limit import StepLimit
from lamina.bench.serving.sides import OWN

PERCENTILES = (50, 95, 99)
_TRANSFORMERS = "transformers"


@dataclass(frozen=True)
class Load:
    """What was put on a side: the same for all that are compared.

    Attributes:
        adapters: How many there were.
        concurrency: Streams of a closed loop; None for an open one.
        rate: Requests per second of an open loop.
    """

    adapters: int
    concurrency: int | None
    rate: float | None

    def line(self) -> str:
        """In words."""
        how = f"{self.concurrency} streams" if self.rate is None else f"{self.rate:g} requests/s"
        return f"{self.adapters} adapters, {how}"


@dataclass(frozen=True)
class Measured:
    """One window of one side in one round.

    Attributes:
        window: What came.
        adapters: Those that the side served.
        limit: Of a step; None for an open loop, whose steps have no fixed number of rows.
        peak_bytes: Of the process.
        settings: Of the side.
    """

    window: Window
    adapters: list[AdapterFacts]
    limit: StepLimit | None
    peak_bytes: int
    settings: dict[str, Any]

    @property
    def tokens_per_second(self) -> float:
        """Of answers, over the whole window, prompts included in its time."""
        return self.window.tokens / self.window.seconds

    @property
    def decode_tokens_per_second(self) -> float | None:
        """All streams over the median time between tokens: the rate while no prompt is read."""
        streams = self.window.concurrency
        between = [gap for answer in self.window.answers for gap in answer.between_seconds]
        return None if streams is None or not between else streams / max(statistics.median(between), 1e-9)

    @property
    def limit_share(self) -> float | None:
        """The decoding rate over the limit's."""
        rate = self.decode_tokens_per_second
        return None if rate is None or self.limit is None else rate / self.limit.tokens_per_second


@dataclass(frozen=True)
class ServeReport:
    """The whole comparison.

    Attributes:
        settings: What was compared, and on what.
        machine: Where.
        sides: A side's figures under each load.
        ratios: Tokens per second of one over another, medians over rounds.
        failed: Sides that failed, with the load and the error.
        left_out: Sides that were not tried, with the load and the reason.
        rounds: Every window as it was measured.
    """

    settings: dict[str, Any]
    machine: dict[str, Any]
    sides: list[dict[str, Any]]
    ratios: list[dict[str, Any]]
    failed: list[dict[str, Any]]
    left_out: list[dict[str, Any]]
    rounds: list[dict[str, Any]]

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        return dict(vars(self))

    def disturbed(self) -> list[str]:
        """Sides and loads beside which so much else was running that their figures say little."""
        return [
            f"{side['side']} ({_load(side).line()}): other processes kept {side['other_cores']:.1f} cores busy"
            for side in self.sides
            if side["other_cores"] > DISTURBED_CORES
        ]


def build_report(
    settings: dict[str, Any],
    measured: Mapping[tuple[str, Load], list[Measured]],
    failed: list[dict[str, Any]],
    left_out: list[dict[str, Any]],
) -> ServeReport:
    """Reduces what the processes measured.

    Args:
        settings: What was compared, and on what.
        measured: Of each side under each load, a window for each round.
        failed: As in `ServeReport`.
        left_out: The same.
    """
    return ServeReport(
        settings=settings,
        machine=machine_facts(),
        sides=[_figures(side, load, found) for (side, load), found in measured.items()],
        ratios=list(_ratios(measured)),
        failed=failed,
        left_out=left_out,
        rounds=[
            {"side": side, **vars(load), "round": number, **dataclasses.asdict(one.window)}
            for (side, load), found in measured.items()
            for number, one in enumerate(found, start=1)
        ],
    )


def milliseconds(seconds: Iterable[float]) -> dict[str, float | None]:
    """The percentiles of some times, in milliseconds; null where there are no times.

    >>> milliseconds([0.001, 0.002, 0.003])["p50"]
    2.0
    """
    times = list(seconds)
    values = [None] * len(PERCENTILES) if not times else np.percentile(times, PERCENTILES).tolist()
    return {
        f"p{percent}": None if value is None else round(1000 * value, 4)
        for percent, value in zip(PERCENTILES, values, strict=True)
    }


def _figures(side: str, load: Load, found: Sequence[Measured]) -> dict[str, Any]:
    answers = [answer for one in found for answer in one.window.answers]
    limits = [one.limit for one in found if one.limit is not None]
    return {
        "side": side,
        **vars(load),
        "adapters_served": len(found[0].adapters),
        "tokens_per_second": statistics.median(one.tokens_per_second for one in found),
        **_waits(answers),
        "limit_share": _median([one.limit_share for one in found]),
        "decode_tokens_per_second": _median([one.decode_tokens_per_second for one in found]),
        "limit_tokens_per_second": _median([limit.tokens_per_second for limit in limits]),
        "limit_read_ms": _median([1000 * limit.read_seconds for limit in limits]),
        "limit_product_ms": _median([1000 * limit.product_seconds for limit in limits]),
        "requests": len(answers),
        "peak_bytes": statistics.median(one.peak_bytes for one in found),
        "other_cores": statistics.mean(one.window.other_cores for one in found),
        "settings": found[0].settings,
        "by_adapter": _by_adapter(found[0].adapters, answers),
    }


def _waits(answers: Sequence[Answer]) -> dict[str, Any]:
    return {
        "ttft_ms": milliseconds(answer.first_token_seconds for answer in answers),
        "itl_ms": milliseconds(gap for answer in answers for gap in answer.between_seconds),
    }


def _by_adapter(adapters: Sequence[AdapterFacts], answers: Sequence[Answer]) -> list[dict[str, Any]]:
    """The figures of each adapter that was asked; a stream's tokens per second are those of its own answers."""
    about = {adapter.name: adapter for adapter in adapters}
    own: dict[str, list[Answer]] = {}
    for answer in answers:
        if answer.adapter is not None:
            own.setdefault(answer.adapter, []).append(answer)
    return [
        {
            "adapter": name,
            "method": about[name].method,
            "rank": about[name].rank,
            "requests": len(found),
            "tokens_per_second": sum(len(answer.times) for answer in found)
            / max(sum(answer.times[-1] - answer.asked for answer in found), 1e-9),
            **_waits(found),
        }
        for name, found in sorted(own.items())
    ]


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def _ratios(measured: Mapping[tuple[str, Load], list[Measured]]) -> Iterable[dict[str, Any]]:
    """Each side over transformers and lamina over the best peer, under one load; and each over itself without adapters.

    Ratios of one round are of processes that ran one after another; their median counts.
    """
    loads = dict.fromkeys(load for _, load in measured)
    for load in loads:
        under = {side: found for (side, other), found in measured.items() if other == load}
        peers = {side: found for side, found in under.items() if side != OWN}
        best = max(peers, key=lambda side: statistics.median(o.tokens_per_second for o in peers[side]), default=None)
        for side, found in under.items():
            if side == OWN and best is not None:
                yield _ratio(side, load, "best peer", best, found, under[best])
            if side != _TRANSFORMERS and _TRANSFORMERS in under:
                yield _ratio(side, load, _TRANSFORMERS, _TRANSFORMERS, found, under[_TRANSFORMERS])
            bare = measured.get((side, dataclasses.replace(load, adapters=0)))
            if load.adapters and bare is not None:
                yield _ratio(side, load, "no adapters", side, found, bare)


def _ratio(
    side: str, load: Load, over: str, peer: str, own: Sequence[Measured], other: Sequence[Measured]
) -> dict[str, Any]:
    pairs = list(zip(own, other, strict=False))  # one that failed later has fewer rounds
    speeds = [a.tokens_per_second / b.tokens_per_second for a, b in pairs]
    decoding = [
        a.decode_tokens_per_second / b.decode_tokens_per_second
        for a, b in pairs
        if a.decode_tokens_per_second and b.decode_tokens_per_second
    ]
    # Of two sides under one load, the limits differ by when they were measured alone.
    allowed = [
        a.limit.tokens_per_second / b.limit.tokens_per_second
        for a, b in pairs
        if over == "no adapters" and a.limit is not None and b.limit is not None
    ]
    return {
        "side": side,
        **vars(load),
        "over": over,
        "peer": peer,
        "tokens_per_second": statistics.median(speeds),
        "decode_tokens_per_second": _median(decoding),
        "limit_tokens_per_second": _median(allowed),
    }


def _load(side: Mapping[str, Any]) -> Load:
    return Load(side["adapters"], side["concurrency"], side["rate"])


def plot(report: ServeReport, path: Path) -> None:
    """Draws tokens per second of each side under each load, with the limit of decoding as a line over each.

    Args:
        report: What to draw.
        path: Where to; the suffix decides the format (`.png`, `.svg`, `.pdf`).

    Raises:
        BenchError: matplotlib is not installed.
    """
    optional("matplotlib").use("Agg")
    loads = list(dict.fromkeys(_load(side) for side in report.sides))
    names = list(dict.fromkeys(side["side"] for side in report.sides))
    rows = len(report.sides) + len(loads)
    figure, axis = optional("matplotlib.pyplot").subplots(figsize=(10, 1.5 + 0.35 * rows), layout="constrained")
    place, ticks, words = 0, [], []
    for load in loads:
        ticks.append(place)
        words.append(load.line())
        place += 1
        for side in (side for side in report.sides if _load(side) == load):
            bar = axis.barh(place, side["tokens_per_second"], color=f"C{names.index(side['side'])}")
            share = "" if side["limit_share"] is None else f", decoding at {side['limit_share']:.0%} of the limit"
            axis.bar_label(bar, [f"{side['tokens_per_second']:,.0f}{share}"], padding=3)
            ticks.append(place)
            words.append(side["side"])
            place += 1
    axis.set_yticks(ticks, words)
    axis.set(title="tokens per second", xlim=(0, 1.5 * max(side["tokens_per_second"] for side in report.sides)))
    axis.invert_yaxis()
    of = report.settings
    figure.suptitle(f"{of['model']}, {of['dtype']}, {of['max_new_tokens']} tokens an answer")
    figure.savefig(path, dpi=120)
