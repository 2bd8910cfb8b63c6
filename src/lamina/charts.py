"""Line charts as SVG and tables as HTML: a notebook shows them, a file keeps them, nothing needs to be installed."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lamina import files, pages
from lamina.errors import ConfigError, Problem

_WIDTH, _HEIGHT = 640, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 150, 34, 44
_COLORS = ("#2f6fd6", "#d6642f", "#2a9d6f", "#8a4fbf", "#b8860b", "#5f6b7a")
# More points than this are drawn as means of neighbors.
_MOST_POINTS = 500


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    Attributes:
        name: Its label.
        xs, ys: Its points, in order; values that are not finite are left out.
        marked: Whether each point is marked.
    """

    name: str
    xs: Sequence[float]
    ys: Sequence[float]
    marked: bool = False

    def points(self) -> list[tuple[float, float]]:
        """Returns the points to draw: at most `_MOST_POINTS`, each the mean of its neighbors if there are more."""
        finite = [(x, y) for x, y in zip(self.xs, self.ys, strict=True) if math.isfinite(x) and math.isfinite(y)]
        size = math.ceil(len(finite) / _MOST_POINTS)
        groups = [finite[first : first + size] for first in range(0, len(finite), max(size, 1))]
        return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]


@dataclass(frozen=True)
class Chart:
    """A line chart. A notebook shows it; `save` writes it.

    Attributes:
        title: Its title.
        x_label, y_label: What the axes show.
        lines: Its lines.
    """

    title: str
    x_label: str
    y_label: str
    lines: Sequence[Line] = field(repr=False)

    def svg(self) -> str:
        """Returns the chart as SVG."""
        drawn = [(line, points) for line in self.lines if (points := line.points())]
        xs = [x for _, points in drawn for x, _ in points] or [0.0, 1.0]
        ys = [y for _, points in drawn for _, y in points] or [0.0, 1.0]
        across, up = _Axis(min(xs), max(xs), _LEFT, _WIDTH - _RIGHT), _Axis(min(ys), max(ys), _HEIGHT - _BOTTOM, _TOP)
        parts = [_text(_LEFT, 18, self.title, weight=700), *self._grid(across, up)]
        for place, (line, points) in enumerate(drawn):
            color = _COLORS[place % len(_COLORS)]
            places = [(across(x), up(y)) for x, y in points]
            if len(places) > 1:
                path = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
                parts.append(f'<path d="M{path}" fill="none" stroke="{color}" stroke-width="1.6"/>')
            if line.marked or len(places) == 1:
                parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.2" fill="{color}"/>' for x, y in places]
            top = _TOP + 10 + 18 * place
            begin = _WIDTH - _RIGHT + 12
            parts.append(f'<path d="M{begin} {top - 4}h16" stroke="{color}" stroke-width="3"/>')
            parts.append(_text(begin + 22, top, line.name))
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{_HEIGHT}" '
            f'viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" font-family="system-ui, sans-serif" font-size="12">'
            f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#fff"/>{"".join(parts)}</svg>'
        )

    def _grid(self, across: _Axis, up: _Axis) -> Iterator[str]:
        for value in up.ticks():
            y = up(value)
            yield f'<path d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}" stroke="#e4e8ee"/>'
            yield _text(_LEFT - 6, y + 4, _number(value), anchor="end")
        for value in across.ticks():
            yield _text(across(value), _HEIGHT - _BOTTOM + 16, _number(value), anchor="middle")
        yield f'<path d="M{_LEFT} {_TOP}V{_HEIGHT - _BOTTOM}H{_WIDTH - _RIGHT}" fill="none" stroke="#9aa3b2"/>'
        yield _text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 8, self.x_label, anchor="middle")
        yield _text(6, _TOP - 4, self.y_label)

    def save(self, path: str | Path) -> Path:
        """Writes the chart to a `.svg` or `.html` file.

        Returns:
            The path.

        Raises:
            ConfigError: The file has another suffix.
            StorageError: It cannot be written.
        """
        path = Path(path)
        if path.suffix not in (".svg", ".html"):
            raise ConfigError(Problem("path", f"{path.name!r} does not end in .svg or .html", "rename it"))
        files.write_text(path, self.svg() if path.suffix == ".svg" else pages.page(self.title, self.svg()))
        return path

    def _repr_html_(self) -> str:
        return self.svg()


@dataclass(frozen=True)
class Table:
    """Rows with the same columns. A notebook shows it as HTML, `print` as text.

    Attributes:
        columns: The names of the columns.
        rows: Each row: column -> value; None is an empty cell.
    """

    columns: Sequence[str]
    rows: Sequence[Mapping[str, Any]]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        return iter(self.rows)

    def to_pandas(self) -> Any:
        """Returns the table as a pandas DataFrame."""
        import pandas  # only who asks for it needs it

        return pandas.DataFrame([dict(row) for row in self.rows], columns=list(self.columns))

    def __repr__(self) -> str:
        cells = [list(self.columns), *([_cell(row.get(name)) for name in self.columns] for row in self.rows)]
        widths = [max(len(row[place]) for row in cells) for place in range(len(self.columns))]
        right = [all(isinstance(row.get(name), int | float | None) for row in self.rows) for name in self.columns]
        return "\n".join("  ".join(_aligned(row, widths, right)).rstrip() for row in cells)

    def _repr_html_(self) -> str:
        rows = [pages.row(_cell(row.get(name)) for name in self.columns) for row in self.rows]
        return pages.table(self.columns, rows)


def _aligned(cells: Sequence[str], widths: Sequence[int], right: Sequence[bool]) -> Iterable[str]:
    for cell, width, is_number in zip(cells, widths, right, strict=True):
        yield cell.rjust(width) if is_number else cell.ljust(width)


def _cell(value: Any) -> str:
    """Formats a value.

    >>> _cell(None), _cell(0.00025), _cell(1234567), _cell(2.34567)
    ('', '0.00025', '1,234,567', '2.346')
    """
    if value is None:
        return ""
    if isinstance(value, bool | str):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if isinstance(value, float) else str(value)


class _Axis:
    """Maps values to places between `start` and `end`."""

    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        is_flat = high - low <= max(1e-9 * max(abs(low), abs(high)), 1e-300)
        pad = 0.5 * max(abs(low), 1e-3) if is_flat else 0.0
        self.low, self.high, self._start, self._end = low - pad, high + pad, start, end

    def __call__(self, value: float) -> float:
        return self._start + (value - self.low) / (self.high - self.low) * (self._end - self._start)

    def ticks(self) -> list[float]:
        """Returns about five round values within the bounds."""
        rough = (self.high - self.low) / 5
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
        first = math.ceil(self.low / step - 1e-9)
        return [n * step for n in range(first, math.floor(self.high / step + 1e-9) + 1)]


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _text(x: float, y: float, text: str, *, anchor: str = "start", weight: int = 400) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}" fill="#1d2330">'
        f"{html.escape(text)}</text>"
    )
