"""Self-contained HTML pages: one file without scripts or links, which opens anywhere."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 1120px; padding: 0 1rem; color: #1d2330 }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th, td { padding: .35rem .6rem; border-bottom: 1px solid #dfe3ea }
.plots { display: flex; flex-wrap: wrap; gap: 1rem; margin-top: 1.5rem } svg text { font: 12px system-ui, sans-serif }
"""


def beginning(title: str) -> str:
    """Returns how a page with that title begins; `is_page` of a room knows its own by it."""
    return f"<!doctype html><html lang=en><meta charset=utf-8><title>{html.escape(title)}</title>"


def page(title: str, body: str, style: str = "") -> str:
    """Returns a page.

    Args:
        title: Its title, as text.
        body: What it shows, as HTML.
        style: CSS beside that of every page.
    """
    return f"{beginning(title)}<style>{_STYLE}{style.lstrip()}</style>{body}</html>\n"


def table(head: Iterable[str], rows: Sequence[str]) -> str:
    """Returns a table.

    Args:
        head: The titles of its columns, as text.
        rows: Each row, as HTML with its `<tr>`.
    """
    cells = "".join(f"<th>{html.escape(title)}</th>" for title in head)
    return f"<table><thead><tr>{cells}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def row(cells: Iterable[object], kind: str = "") -> str:
    """Returns a row of a table; each cell is text.

    Args:
        cells: What it shows.
        kind: Its CSS class.
    """
    inner = "".join(f"<td>{html.escape(str(cell))}</td>" for cell in cells)
    return f"<tr{f' class={kind}' if kind else ''}>{inner}</tr>"
