"""Shows a verification: each check as it finishes, then all of them with their tolerances."""

from __future__ import annotations

import math

from rich.markup import escape
from rich.table import Table

from lamina.api.terminal import duration
from lamina.cli.output import err, notify, out
from lamina.runs.events import Event, Note
from lamina.verification.report import Verification, VerifyCheck

_COLORS = {True: "green", False: "bold red", None: "yellow"}
_WORDS = {True: "passed", False: "failed", None: "skipped"}
_VERDICTS = {True: "pass", False: "FAIL", None: "skipped"}


def print_event(event: Event) -> None:
    """Prints progress and each finished check to stderr."""
    if isinstance(event, Note):
        notify(event.message)
    elif isinstance(event, VerifyCheck):
        check = event.check
        figures = "" if check.tolerance is None else f"  {_figure(check.difference)} of {_figure(check.tolerance)}"
        err.print(f"  {_verdict(check.passed)}  {escape(check.name)}[dim]{figures}[/dim]")


def print_verification(result: Verification) -> None:
    """Prints the checks as a table."""
    table = Table("", "check", "worst", "allowed", "compared, and why this much is allowed", box=None, padding=(0, 1))
    for check in result.checks:
        why = [escape(check.compared), f"[dim]{escape(check.why)}[/dim]"]
        if check.worst:
            why.insert(1, f"[dim]worst: {escape(check.worst)}[/dim]")
        allowed = "" if check.tolerance is None else _figure(check.tolerance)
        worst = "" if check.tolerance is None else _figure(check.difference)
        table.add_row(_verdict(check.passed), escape(check.name), worst, allowed, "\n".join(why))
    out.print(table, soft_wrap=False)
    counts = {passed: sum(check.passed is passed for check in result.checks) for passed in (True, False, None)}
    summary = ", ".join(f"{count} {word}" for passed, word in _WORDS.items() if (count := counts[passed]))
    out.print(
        f"{escape(result.model)} with {result.method} in {result.dtype}: {summary}; on {result.documents} documents of "
        f"{result.tokens} tokens, in {duration(result.seconds)}"
    )


def _verdict(passed: bool | None) -> str:
    return f"[{_COLORS[passed]}]{_VERDICTS[passed]}[/]"


def _figure(difference: float | None) -> str:
    if difference is None or not math.isfinite(difference):
        return "not finite"
    return f"{difference:.1e}" if difference else "0"
