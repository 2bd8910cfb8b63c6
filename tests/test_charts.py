"""Charts and tables: what is drawn, and that odd values do not break them."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from lamina.charts import Chart, Line, Table
from lamina.errors import ConfigError

SVG = "{http://www.w3.org/2000/svg}"


def drawn(chart: Chart) -> ElementTree.Element:
    return ElementTree.fromstring(chart.svg())


@pytest.mark.parametrize(
    "ys",
    [[], [1.0], [2.0, 2.0], [math.nan, 1.0, math.inf], [0.0, -3.0, 1e9], [1e-9, 2e-9], [5e-324, 0.0]],
    ids=["empty", "one", "flat", "not finite", "wide", "narrow", "tiniest"],
)
def test_every_line_can_be_drawn(ys: list[float]) -> None:
    found = drawn(Chart("A & B", "step", "loss", [Line("a <b>", range(len(ys)), ys)]))
    assert "nan" not in ElementTree.tostring(found, encoding="unicode")
    assert found.find(f"{SVG}text") is not None


def test_a_falling_line_falls() -> None:
    path = next(
        each.attrib["d"]
        for each in drawn(Chart("", "", "", [Line("a", [0, 1], [2.0, 1.0])]))
        if each.get("stroke-width") and each.get("fill") == "none"
    )
    (_, top), (_, bottom) = (map(float, point.split()) for point in path.removeprefix("M").split("L"))
    assert top < bottom


def test_long_lines_are_thinned_to_means() -> None:
    points = Line("a", range(10_001), [float(n % 2) for n in range(10_001)]).points()
    assert len(points) <= 500
    assert all(0.3 < y < 0.7 for _, y in points)


def test_files(tmp_path: Path) -> None:
    chart = Chart("t", "x", "y", [Line("a", [0, 1], [2.0, 1.0])])
    assert chart.save(tmp_path / "a.svg").read_text().startswith("<svg")
    assert "<svg" in chart.save(str(tmp_path / "a.html")).read_text()
    with pytest.raises(ConfigError, match=r"\.svg or \.html"):
        chart.save(tmp_path / "a.jpg")


def test_a_table_is_text_html_and_a_frame() -> None:
    table = Table(["name", "value"], [{"name": "<a>", "value": 1.23456789}, {"name": "b"}])
    assert repr(table).splitlines() == ["name  value", "<a>   1.235", "b"]
    assert "&lt;a&gt;" in table._repr_html_()
    assert len(table) == 2 and next(iter(table))["name"] == "<a>"
    pandas = pytest.importorskip("pandas")
    assert isinstance(table.to_pandas(), pandas.DataFrame) and list(table.to_pandas().columns) == ["name", "value"]
