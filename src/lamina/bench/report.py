"""Reduces what the processes measured to medians and ratios, as JSON and as a plot."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lamina.bench.job import SideRun, Step
from lamina.bench.machine import DISTURBED_CORES, machine_facts
from lamina.bench.plot import new_plot
from lamina.bench.sides import OWN


@dataclass(frozen=True)
class SideReport:
    """One side over all rounds. Figures of a step are medians over every timed step of every round.

    Attributes:
        side: Name of the side.
        settings: The side's settings, and the version of its library.
        tokens_per_second: Tokens per second, without padding.
        supervised_tokens_per_second: Tokens in the loss per second.
        step_seconds: Seconds of an optimizer step.
        gemm_share: Share of the machine's GEMM limit (see `gemm.py`).
        peak_bytes: Peak memory of the process, or of CUDA; the median of the rounds.
        loaded_bytes: Memory before the first step, included in `peak_bytes`.
        losses: Loss of each step of the first round, including warmup.
        other_cores: Number of cores that other processes kept busy: the mean over the timed steps.
    """

    side: str
    settings: dict[str, Any]
    tokens_per_second: float
    supervised_tokens_per_second: float
    step_seconds: float
    gemm_share: float
    peak_bytes: float
    loaded_bytes: float
    losses: list[float]
    other_cores: float

    @property
    def disturbed(self) -> bool:
        """Whether other processes used so much of the machine that the figures are unreliable."""
        return self.other_cores > DISTURBED_CORES


@dataclass(frozen=True)
class Ratio:
    """lamina compared with one peer: medians, over rounds and steps, of lamina's figure divided by the peer's.

    Attributes:
        peer: Name of the peer.
        speed: Ratio of tokens per second on the same tokens. Above 1, lamina is faster.
        gemm_share: The same, relative to the machine's speed at the time of each step.
        peak_memory: Ratio of peak memory. Below 1, lamina needs less.
        training_memory: The same without the memory before the first step.
        loss_difference: Largest difference between the two losses of a step.
    """

    peer: str
    speed: float
    gemm_share: float
    peak_memory: float
    training_memory: float
    loss_difference: float


@dataclass(frozen=True)
class BenchReport:
    """The result of `lamina bench train`.

    Attributes:
        settings: Settings of the comparison.
        machine: Facts about the machine.
        flops: Operations that a timed step requires, by component: the mean over the steps.
        gemm_rate: Median speed of plain matrix products, in operations per second.
        sides: Figures of each side, lamina first.
        ratios: lamina compared with each peer.
        failed: Sides that failed, with the error.
        left_out: Sides that were not tried, with the reason.
        rounds: Measurements of every process, by side.
    """

    settings: dict[str, Any]
    machine: dict[str, Any]
    flops: dict[str, float]
    gemm_rate: float
    sides: list[SideReport]
    ratios: list[Ratio]
    failed: dict[str, str]
    left_out: dict[str, str]
    rounds: dict[str, list[SideRun]]

    def as_json(self) -> dict[str, Any]:
        """Converts to plain data."""
        return {
            **vars(self),
            "sides": [vars(side) for side in self.sides],
            "ratios": [vars(ratio) for ratio in self.ratios],
            "rounds": {side: [run.as_json() for run in runs] for side, runs in self.rounds.items()},
        }


def build_report(
    settings: dict[str, Any],
    runs: Mapping[str, list[SideRun]],
    failed: dict[str, str],
    left_out: dict[str, str],
) -> BenchReport:
    """Reduces what the processes measured.

    Args:
        settings: Settings of the comparison.
        runs: Measurements of each side's processes; a side that failed in a later round has fewer.
        failed: Sides that failed, with the error.
        left_out: Sides that were not tried, with the reason.
    """
    steps = [step for side in runs.values() for run in side for step in run.timed]
    own = runs[OWN][0].timed
    return BenchReport(
        settings=settings,
        machine=machine_facts(),
        flops={name: statistics.mean(getattr(step.flops, name) for step in own) for name in vars(own[0].flops)},
        gemm_rate=statistics.median(step.flops.total / step.limit_seconds for step in steps if step.limit_seconds),
        sides=[_side(name, found) for name, found in runs.items()],
        ratios=[_ratio(name, runs[OWN], found) for name, found in runs.items() if name != OWN],
        failed=failed,
        left_out=left_out,
        rounds=dict(runs),
    )


def _side(name: str, runs: Sequence[SideRun]) -> SideReport:
    def median(figure: Callable[[Step], float]) -> float:
        return statistics.median(figure(step) for run in runs for step in run.timed)

    return SideReport(
        side=name,
        settings=runs[0].settings,
        tokens_per_second=median(lambda step: step.tokens / step.seconds),
        supervised_tokens_per_second=median(lambda step: step.supervised_tokens / step.seconds),
        step_seconds=median(lambda step: step.seconds),
        gemm_share=median(lambda step: step.share or 0.0),
        peak_bytes=statistics.median(run.peak_bytes for run in runs),
        loaded_bytes=statistics.median(run.loaded_bytes for run in runs),
        losses=[step.loss for step in runs[0].steps],
        other_cores=statistics.mean(step.other_cores for run in runs for step in run.timed),
    )


def _ratio(peer: str, own_runs: Sequence[SideRun], peer_runs: Sequence[SideRun]) -> Ratio:
    rounds = list(zip(own_runs, peer_runs, strict=False))  # a peer that failed later has fewer rounds
    pairs = [pair for own, other in rounds for pair in zip(own.timed, other.timed, strict=True)]
    every = [pair for own, other in rounds for pair in zip(own.steps, other.steps, strict=True)]

    def memory(figure: Callable[[SideRun], float]) -> float:
        return statistics.median(figure(own) / max(figure(other), 1.0) for own, other in rounds)

    return Ratio(
        peer=peer,
        speed=statistics.median(other.seconds / own.seconds for own, other in pairs),
        gemm_share=statistics.median((own.share or 0.0) / (other.share or 1.0) for own, other in pairs),
        peak_memory=memory(lambda run: run.peak_bytes),
        training_memory=memory(lambda run: run.peak_bytes - run.loaded_bytes),
        loss_difference=max(abs(own.loss - other.loss) for own, other in every),
    )


def plot(report: BenchReport, path: Path) -> None:
    """Plots speed, share of the machine's limit, memory, and the losses of all sides.

    Args:
        report: The report to plot.
        path: File to write; the suffix selects the format (`.png`, `.svg`, `.pdf`).

    Raises:
        BenchError: matplotlib is not installed.
    """
    figure, axes = new_plot(2, 2, size=(11, 7.5))
    names = [side.side for side in report.sides]
    colors = [f"C{number}" for number in range(len(names))]
    gib = 2.0**30

    def bars(axis: Any, title: str, values: Sequence[float], form: str) -> None:
        drawn = axis.barh(names, values, color=colors)
        axis.bar_label(drawn, [form.format(value) for value in values], padding=3)
        axis.set(title=title, xlim=(0, max(values) * 1.18))
        axis.invert_yaxis()

    bars(axes[0][0], "real tokens per second", [side.tokens_per_second for side in report.sides], "{:,.0f}")
    bars(axes[0][1], "share of the machine's GEMM limit", [side.gemm_share for side in report.sides], "{:.0%}")
    bars(axes[1][0], "peak memory in GiB (hatched: model loaded)", [s.peak_bytes / gib for s in report.sides], "{:.2f}")
    loaded = [side.loaded_bytes / gib for side in report.sides]
    axes[1][0].barh(names, loaded, color="none", edgecolor="black", hatch="///", linewidth=0)
    for side, color in zip(report.sides, colors, strict=True):
        own = side.side == OWN
        steps = range(1, len(side.losses) + 1)
        axes[1][1].plot(
            steps, side.losses, color=color, label=side.side, linewidth=4 if own else 1.5, alpha=0.5 if own else 1
        )
    axes[1][1].set(title="loss of each step, on the same rows", xlabel="step")
    axes[1][1].legend()
    of = report.settings
    figure.suptitle(f"{of['model']}, {of['dtype']}, LoRA r={of['rank']}, {of['tokens_per_step']} tokens a step")
    figure.savefig(path, dpi=120)
