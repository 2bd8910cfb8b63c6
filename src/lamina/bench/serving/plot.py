"""The plot of `lamina bench serve`."""

from __future__ import annotations

from pathlib import Path

from lamina.bench.plot import new_plot
from lamina.bench.serving.report import ServeReport


def plot(report: ServeReport, path: Path) -> None:
    """Draws tokens per second of each side under each load, with the limit of decoding as a line over each.

    Args:
        report: What to draw.
        path: Where to; the suffix decides the format (`.png`, `.svg`, `.pdf`).

    Raises:
        BenchError: matplotlib is not installed.
    """
    loads = list(dict.fromkeys(side.load for side in report.sides))
    names = list(dict.fromkeys(side.side for side in report.sides))
    rows = len(report.sides) + len(loads)
    figure, axis = new_plot(size=(10, 1.5 + 0.35 * rows))
    place, ticks, words = 0, [], []
    for load in loads:
        ticks.append(place)
        words.append(load.line())
        place += 1
        for side in (side for side in report.sides if side.load == load):
            bar = axis.barh(place, side.tokens_per_second, color=f"C{names.index(side.side)}")
            share = "" if side.limit_share is None else f", decoding at {side.limit_share:.0%} of the limit"
            axis.bar_label(bar, [f"{side.tokens_per_second:,.0f}{share}"], padding=3)
            ticks.append(place)
            words.append(side.side)
            place += 1
    axis.set_yticks(ticks, words)
    axis.set(title="tokens per second", xlim=(0, 1.5 * max(side.tokens_per_second for side in report.sides)))
    axis.invert_yaxis()
    of = report.settings
    figure.suptitle(f"{of['model']}, {of['dtype']}, {of['max_new_tokens']} tokens an answer")
    figure.savefig(path, dpi=120)
