"""Writes the report as one self-contained HTML page."""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lamina import files, pages
from lamina.checks.findings import CheckedFile, CheckReport, Finding, Severity
from lamina.pages import table

_WIDTH, _HEIGHT, _MARGIN = 520, 240, 44
_STYLE = """
th, td { text-align: left; vertical-align: top }
td.number { text-align: right; white-space: nowrap } code { font-size: 13px } .advice { color: #5a6375 }
.error { color: #a31d1d; font-weight: 700 } .warning { color: #96650a; font-weight: 700 } .info { color: #2f6fd6 }
details { margin: .6rem 0 } summary { cursor: pointer } td.place { white-space: nowrap }
"""

# Facts that are plotted, or described by a finding.
_DRAWN = ("train_tokens", "eval_tokens", "row_characters", "answer_characters", "languages", "labels", "private")

_TITLE = "lamina data check"
_BEGINNING = pages.beginning(_TITLE)


def is_page(path: Path) -> bool:
    """Returns whether a file was written by `write_html`, so that a new page may replace it."""
    with path.open("rb") as file:
        return file.read(len(_BEGINNING)) == _BEGINNING.encode()


def write_html(report: CheckReport, path: Path) -> None:
    """Writes the files, the findings with example rows, the figures and the plots as one page."""
    counts = ", ".join(f"{report.count(severity)} {severity.value}s" for severity in Severity)
    body = (
        f"<h1>{_TITLE}</h1><p>{counts}.</p>{_files(report)}"
        f"<h2>Findings</h2>{_findings(report)}{''.join(_details(finding) for finding in report.findings)}"
        f"<h2>Figures</h2>{_facts(report)}<div class=plots>{''.join(_plots(report.facts))}</div>"
    )
    files.write_text(path, pages.page(_TITLE, body, _STYLE))


def _files(report: CheckReport) -> str:
    if not report.files:
        return ""
    head = tuple(field.name.replace("_", " ") for field in dataclasses.fields(CheckedFile))
    rows = [
        "<tr>" + "".join(f"<td>{html.escape(_text(value))}</td>" for value in vars(file).values()) + "</tr>"
        for file in report.files
    ]
    return table(head, rows)


def _findings(report: CheckReport) -> str:
    if not report.findings:
        return "<p>No findings.</p>"
    rows = []
    for finding in report.findings:
        share = "" if finding.share is None else f"{finding.share:.1%}"
        rows.append(
            f"<tr><td class={finding.severity.value}>{finding.severity.value}</td><td>{html.escape(finding.title)}"
            f"<br><span class=advice>{html.escape(finding.advice)}</span></td><td><code>{finding.code}</code></td>"
            f"<td class=number>{finding.count or ''}</td><td class=number>{share}</td></tr>"
        )
    return table(("", "finding", "code", "rows", "share"), rows)


def _details(finding: Finding) -> str:
    if not finding.examples:
        return ""
    rows = [
        f"<tr><td class=place>{html.escape(str(offender.place))}</td><td>{html.escape(offender.excerpt)}</td>"
        f"<td>{html.escape(offender.detail)}</td></tr>"
        for offender in finding.examples
    ]
    shown = f"{len(rows)} of {finding.count}" if finding.count > len(rows) else f"{len(rows)}"
    title = f"<span class={finding.severity.value}>{html.escape(finding.title)}</span>: {shown} shown"
    return f"<details><summary>{title}</summary>{table(('where', 'text', ''), rows)}</details>"


def _facts(report: CheckReport) -> str:
    rows = []
    for name, value in report.facts.items():
        if name not in _DRAWN:
            rows.append(f"<tr><td><code>{html.escape(name)}</code></td><td>{html.escape(_text(value))}</td></tr>")
    return table(("figure", ""), rows)


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_text(item)}" for key, item in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(map(_text, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _plots(facts: Mapping[str, Any]) -> list[str]:
    plots = [
        _histogram(title, facts[name])
        for name, title in (
            ("train_tokens", "tokens per training row"),
            ("eval_tokens", "tokens per evaluation row"),
            ("row_characters", "characters per row"),
            ("answer_characters", "characters per answer"),
        )
        if name in facts
    ]
    if "supervised_share" in facts:
        share = facts["supervised_share"]
        plots.append(_bars("tokens", {"in the loss": share, "context only": 1 - share}, "{:.1%}"))
    for name in ("languages", "labels", "private"):
        if name in facts:
            plots.append(_bars({"private": "rows with private data"}.get(name, name), facts[name], "{:,}"))
    return plots


def _histogram(title: str, spread: Mapping[str, Any]) -> str:
    edges, counts = spread["histogram"]["edges"], spread["histogram"]["counts"]
    wide, tall = (_WIDTH - 2 * _MARGIN) / len(counts), _HEIGHT - 2 * _MARGIN
    most = max(counts) or 1
    parts = []
    for place, count in enumerate(counts):
        height = tall * count / most
        left, top = _MARGIN + place * wide, _HEIGHT - _MARGIN - height
        tip = f"{edges[place]:,} to {edges[place + 1]:,}: {count:,}"
        parts.append(
            f'<rect x="{left:.1f}" y="{top:.1f}" width="{max(1, wide - 1):.1f}" height="{height:.1f}" fill="#2f6fd6">'
            f"<title>{tip}</title></rect>"
        )
    last = f"{edges[-1]:,}" + ("+" if spread["longest"] > edges[-1] else "")
    parts.append(
        f'<text x="{_MARGIN}" y="{_HEIGHT - 24}">{edges[0]:,}</text>'
        f'<text x="{_WIDTH - _MARGIN}" y="{_HEIGHT - 24}" text-anchor="end">{last}</text>'
        f'<text x="{_MARGIN}" y="{_HEIGHT - 6}">median {spread["median"]:,}, 95% below {spread["p95"]:,}, '
        f"longest {spread['longest']:,}</text>"
    )
    return _svg(title, _HEIGHT, parts)


def _bars(title: str, values: Mapping[str, float], form: str, most: int = 12) -> str:
    shown = sorted(values.items(), key=lambda item: -item[1])[:most]
    top = max((value for _, value in shown), default=0) or 1
    parts = []
    for place, (name, value) in enumerate(shown):
        y = 30 + 22 * place
        parts.append(
            f'<text x="0" y="{y + 12}">{html.escape(str(name)[:24])}</text>'
            f'<rect x="170" y="{y}" width="{250 * value / top:.1f}" height="16" fill="#2f6fd6"/>'
            f'<text x="{176 + 250 * value / top:.1f}" y="{y + 12}">{form.format(value)}</text>'
        )
    return _svg(title, 40 + 22 * len(shown), parts)


def _svg(title: str, height: int, parts: list[str]) -> str:
    head = f'<text x="0" y="16" font-weight="700">{html.escape(title)}</text>'
    return f'<svg width="{_WIDTH}" height="{height}" role="img">{head}{"".join(parts)}</svg>'
