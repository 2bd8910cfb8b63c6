"""From measured windows to figures: percentiles, medians over rounds, shares of the limit, and ratios."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lamina.bench.machine import machine_facts
from lamina.bench.serving.job import AdapterFacts, Answer, Window
from lamina.bench.serving.limit import StepLimit
from lamina.bench.serving.report import (
    AdapterFigures,
    Failure,
    LeftOut,
    Load,
    Percentiles,
    Round,
    ServeReport,
    SideFigures,
    SideRatio,
    Waits,
)
from lamina.bench.serving.sides import OWN

PERCENTILES = (50, 95, 99)
_TRANSFORMERS = "transformers"


@dataclass(frozen=True)
class Measured:
    """One window of one side in one round.

    Attributes:
        window: The window, as it was measured.
        adapters: Adapters that the side served.
        limit: The machine's limit of a step; None for an open loop, whose steps have no fixed number of rows.
        peak_bytes: The most memory of the process.
        settings: What the side chose, and the version of its library.
    """

    window: Window
    adapters: list[AdapterFacts]
    limit: StepLimit | None
    peak_bytes: int
    settings: dict[str, Any]

    @property
    def tokens_per_second(self) -> float:
        """Tokens of answers over the time of the whole window, prompts included."""
        return self.window.tokens / self.window.seconds

    @property
    def decode_tokens_per_second(self) -> float | None:
        """Number of streams over the median time between tokens: the rate while no prompt is read."""
        streams = self.window.concurrency
        between = [gap for answer in self.window.answers for gap in answer.between_seconds]
        return None if streams is None or not between else streams / max(statistics.median(between), 1e-9)

    @property
    def limit_share(self) -> float | None:
        """The decoding rate over the limit's."""
        rate = self.decode_tokens_per_second
        return None if rate is None or self.limit is None else rate / self.limit.tokens_per_second


def build_report(
    settings: dict[str, Any],
    measured: Mapping[tuple[str, Load], list[Measured]],
    failed: list[Failure],
    left_out: list[LeftOut],
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
            Round(side, load, number, one.window)
            for (side, load), found in measured.items()
            for number, one in enumerate(found, start=1)
        ],
    )


def milliseconds(seconds: Iterable[float]) -> Percentiles:
    """Computes percentiles of times, in milliseconds; None where there are no times.

    >>> milliseconds([0.001, 0.002, 0.003])["p50"]
    2.0
    """
    times = list(seconds)
    values = [None] * len(PERCENTILES) if not times else np.percentile(times, PERCENTILES).tolist()
    return {
        f"p{percent}": None if value is None else round(1000 * value, 4)
        for percent, value in zip(PERCENTILES, values, strict=True)
    }


def _figures(side: str, load: Load, found: Sequence[Measured]) -> SideFigures:
    answers = [answer for one in found for answer in one.window.answers]
    limits = [one.limit for one in found if one.limit is not None]
    return SideFigures(
        side=side,
        load=load,
        adapters_served=len(found[0].adapters),
        tokens_per_second=statistics.median(one.tokens_per_second for one in found),
        waits=_waits(answers),
        limit_share=_median([one.limit_share for one in found]),
        decode_tokens_per_second=_median([one.decode_tokens_per_second for one in found]),
        limit_tokens_per_second=_median([limit.tokens_per_second for limit in limits]),
        limit_read_ms=_median([1000 * limit.read_seconds for limit in limits]),
        limit_product_ms=_median([1000 * limit.product_seconds for limit in limits]),
        requests=len(answers),
        peak_bytes=statistics.median(one.peak_bytes for one in found),
        other_cores=statistics.mean(one.window.other_cores for one in found),
        settings=found[0].settings,
        by_adapter=_by_adapter(found[0].adapters, answers),
    )


def _waits(answers: Sequence[Answer]) -> Waits:
    return Waits(
        ttft_ms=milliseconds(answer.first_token_seconds for answer in answers),
        itl_ms=milliseconds(gap for answer in answers for gap in answer.between_seconds),
    )


def _by_adapter(adapters: Sequence[AdapterFacts], answers: Sequence[Answer]) -> list[AdapterFigures]:
    """Reduces the answers of each adapter that was asked."""
    about = {adapter.name: adapter for adapter in adapters}
    own: dict[str, list[Answer]] = {}
    for answer in answers:
        if answer.adapter is not None:
            own.setdefault(answer.adapter, []).append(answer)
    return [
        AdapterFigures(
            adapter=name,
            method=about[name].method,
            rank=about[name].rank,
            requests=len(found),
            tokens_per_second=sum(len(answer.times) for answer in found)
            / max(sum(answer.times[-1] - answer.asked for answer in found), 1e-9),
            waits=_waits(found),
        )
        for name, found in sorted(own.items())
    ]


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def _ratios(measured: Mapping[tuple[str, Load], list[Measured]]) -> Iterable[SideRatio]:
    """Yields each side over transformers, lamina over the best peer, and each side over itself without adapters.

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
) -> SideRatio:
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
    return SideRatio(
        side=side,
        load=load,
        over=over,
        peer=peer,
        tokens_per_second=statistics.median(speeds),
        decode_tokens_per_second=_median(decoding),
        limit_tokens_per_second=_median(allowed),
    )
