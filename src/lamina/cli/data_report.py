"""The terminal view of a data check: figures with small plots, then the findings, with the worst last, where users look
first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from lamina.cli.output import out
from lamina.data.report import shown_columns

if TYPE_CHECKING:
    from lamina.checks.findings import CheckedFile, CheckReport, Finding

_COLORS = {"error": "bold red", "warning": "yellow", "info": "cyan"}
_BLOCKS = " ▁▂▃▄▅▆▇█"
_EXAMPLES = 3


def print_report(report: CheckReport) -> None:
    """Prints the report: files, figures, findings with some of their rows, and a summary line."""
    for file in report.files:
        out.print(_file_line(file), markup=False)
        for note in file.notes:
            out.print(f"note: {note}", markup=False)
    _print_facts(report.facts)
    for finding in reversed(report.findings):
        _print_finding(finding)
    counts = {name: sum(finding.severity.value == name for finding in report.findings) for name in _COLORS}
    out.print(", ".join(f"[{_COLORS[name]}]{n} {name}{'' if n == 1 else 's'}[/]" for name, n in counts.items()))


def _file_line(file: CheckedFile) -> str:
    line = f"{file.path}: {file.rows:,} rows ({file.format or 'unknown format'})"
    if file.side == "eval":
        line += ", for evaluation"
    if file.ignored_columns:
        line += f"; columns not used: {shown_columns(file.ignored_columns)}"
    return line


def bars(counts: list[int]) -> str:
    """Returns a histogram as a line of text; a bar that is not empty is always visible.

    >>> bars([0, 1, 4, 8, 100])
    ' ▁▁▁█'
    """
    most = max(counts, default=0) or 1
    return "".join(_BLOCKS[0 if not count else max(1, round(8 * count / most))] for count in counts)


def _print_facts(facts: Mapping[str, Any]) -> None:
    table = Table.grid(padding=(0, 2))
    sides = f"{facts['train_rows']:,} for training"
    if facts["eval_rows"]:
        sides += f", {facts['eval_rows']:,} for evaluation"
    table.add_row("rows", f"{facts['rows']:,}: {sides}")
    for name, title in (
        ("train_tokens", "tokens per training row"),
        ("eval_tokens", "tokens per evaluation row"),
        ("row_characters", "characters per row"),
        ("answer_characters", "characters per answer"),
    ):
        if name in facts:
            table.add_row(title, _spread(facts[name]))
    if not facts["tokens_checked"]:
        table.add_row("tokens", "not counted without a model: give a configuration, or --model")
    if "supervised_share" in facts:
        table.add_row("in the loss", f"{facts['supervised_share']:.1%} of the tokens")
    if "packing_efficiency" in facts:
        table.add_row("packing", f"{facts['micro_batches']:,} micro-batches, {facts['packing_efficiency']:.1%} full")
    if "tokens_per_word" in facts:
        words = f"{facts['tokens_per_word']:.2f} tokens per frequent word"
        table.add_row("vocabulary", f"{words}, {facts['characters_per_token']:.1f} characters per token")
    for name in ("languages", "unpaired_preference", "labels"):
        if name in facts:
            shown = list(facts[name].items())
            rest = f", and {len(shown) - 8} more" if len(shown) > 8 else ""
            table.add_row(name, escape(", ".join(f"{key} {count:,}" for key, count in shown[:8]) + rest))
    out.print(table)


def _spread(spread: Mapping[str, Any]) -> str:
    edges, counts = spread["histogram"]["edges"], spread["histogram"]["counts"]
    return (
        f"{edges[0]:,} {bars(counts)} {edges[-1]:,}   median {spread['median']:,}, 95% below {spread['p95']:,}, "
        f"longest {spread['longest']:,}"
    )


def _print_finding(finding: Finding) -> None:
    severity = finding.severity.value
    rows = ""
    if finding.count:
        share = "" if finding.share is None else f", {finding.share:.1%}"
        rows = f" ({finding.count:,} row{'' if finding.count == 1 else 's'}{share})"
    out.print(f"[{_COLORS[severity]}]{severity}[/] {escape(finding.title)}{rows} [dim]{finding.code}[/dim]")
    out.print(f"  {escape(finding.advice)}")
    for offender in finding.examples[:_EXAMPLES]:
        detail = f"  ({escape(offender.detail)})" if offender.detail else ""
        out.print(f"    [dim]{escape(str(offender.place))}[/dim]  {escape(offender.excerpt[:100])}{detail}")
