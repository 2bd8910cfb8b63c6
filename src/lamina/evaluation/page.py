"""The page of an evaluation: the verdict first, then lost and won rows with both answers, slices, forgetting, cost.

In a pair the second subject is the champion: a lost row is one where it did better than the first.
"""

from __future__ import annotations

import difflib
import html
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lamina import pages
from lamina.config.tasks import GENERAL

Rows = Mapping[str, Sequence[Mapping[str, Any]]]

TITLE = "lamina eval"

# Rows that are shown of each kind; the rest are in the folder's rows.
MOST_SHOWN = 40
# Pairs whose rows are shown.
MOST_PAIRS = 6
# A column breaks the scores down if it has at least two values and at most so many.
MOST_SLICES = 12

_ON_FORGETTING = (
    "Loss and KL(base || adapter) on general text, in nats a token, and the share of unrelated prompts that are "
    "answered word for word as by the base."
)
_STYLE = """
th, td { text-align: left; vertical-align: top } td.number { text-align: right; white-space: nowrap }
.better { color: #1c7a3c; font-weight: 700 } .worse { color: #a31d1d; font-weight: 700 }
.not_enough_rows { color: #96650a; font-weight: 700 } .quiet { color: #5a6375 }
ins { background: #d8f3de; text-decoration: none } del { background: #fadcdc }
details { margin: .6rem 0 } summary { cursor: pointer } td.text { white-space: pre-wrap; overflow-wrap: anywhere }
"""


def evaluation_page(result: Mapping[str, Any], rows: Rows, counted: Rows) -> str:
    """Returns the page of an evaluation.

    Args:
        result: Its content.
        rows: The rows of each task.
        counted: Those that its figures are of.
    """
    parts = [
        f"<h1>{TITLE}</h1>",
        _verdicts(result),
        "<h2>Figures</h2>",
        _figures(result),
        _leakage(result),
        *_differing_rows(result, rows),
        _judged(result),
        _slices(result, counted),
        _forgetting(result, rows),
        "<h2>Cost</h2>",
        _cost(result),
    ]
    return pages.page(TITLE, "".join(parts), _STYLE)


def verdict_line(pair: Mapping[str, Any]) -> str:
    """Says how a pair did on a metric, in a sentence."""
    said = {"better": "is better than", "worse": "is worse than", "not_enough_rows": "is not told apart from"}
    counts = f"{pair['wins']} wins, {pair['losses']} losses, {pair['ties']} ties, p = {pair['p']:.2g}"
    text = f"{pair['a']} {said[pair['verdict']]} {pair['b']} on {pair['task']}, {pair['metric']}: "
    text += f"{_signed(pair['difference'])}{_interval(pair['low'], pair['high'], _signed)}; {counts}"
    if pair["verdict"] != "not_enough_rows":
        return f"{text}."
    if pair["smallest"] is not None:
        text += f". {pair['rows']} rows show a difference of {_number(pair['smallest'])} or more"
    if pair["rows_needed"] is not None:
        text += f"; this one takes some {pair['rows_needed']:,} rows"
    return f"{text}."


def judged_line(judged: Mapping[str, Any]) -> str:
    """Says what a judge made of a subject, or of two, in a sentence."""
    who = f"{judged['task']}: {judged['judge']}"
    if "subject" in judged:
        return f"{who} gives {judged['subject']} {_estimate(judged['mean']) or 'no grade'}"
    text = f"{who} prefers {judged['a']} to {judged['b']} in {_estimate(judged['win_rate'])} of rows, ties as halves"
    return text + "".join(f"; {note}" for note in judged["notes"])


def word_diff(old: str, new: str) -> str:
    """Returns as HTML what became of `old`: words that only it has, struck out, and words that only `new` has.

    >>> word_diff("a red car", "a blue car")
    'a <del>red</del> <ins>blue</ins> car'
    """
    left, right = _words(old), _words(new)
    parts: list[str] = []
    for kind, a, b, c, d in difflib.SequenceMatcher(None, left, right, autojunk=False).get_opcodes():
        gone, come = html.escape("".join(left[a:b])), html.escape("".join(right[c:d]))
        if kind == "equal":
            parts.append(come)
            continue
        both = gone.strip() and come.strip()
        parts += [f"<del>{gone}</del>" if gone else "", " " if both else "", f"<ins>{come}</ins>" if come else ""]
    return "".join(parts)


def _words(text: str) -> list[str]:
    return re.findall(r"\s+|\w+|[^\w\s]", text)


def _verdicts(result: Mapping[str, Any]) -> str:
    lines = [
        f"<li class={pair['verdict']}>{html.escape(verdict_line(pair))}</li>"
        for pair in result["pairs"]
        if pair["task"] != GENERAL
    ]
    if not lines:
        return "<p>One subject: there is nothing to compare it with.</p>"
    return f"<ul>{''.join(lines)}</ul>"


def _figures(result: Mapping[str, Any]) -> str:
    metrics = [(metric["task"], metric["name"]) for metric in result["metrics"] if metric["task"] != GENERAL]
    rows = []
    for subject in result["subjects"]:
        cells = [_estimate(subject["tasks"].get(task, {}).get(name)) for task, name in metrics]
        rows.append(pages.row([subject["subject"], *cells]))
    head = ["subject", *(f"{task}: {name} (95%)" for task, name in metrics)]
    counted = [
        f"{task['name']}: {task['counted']} of {task['rows']} rows count"
        for task in result["tasks"]
        if task["counted"] != task["rows"]
    ]
    return pages.table(head, rows) + "".join(f"<p class=quiet>{html.escape(text)}.</p>" for text in counted)


def _leakage(result: Mapping[str, Any]) -> str:
    lines = []
    for subject, tasks in result["leakage"].items():
        for task, counts in tasks.items():
            if counts["exact"] or counts["near"]:
                counts_text = f"{counts['exact']} rows with the same prompt, {counts['near']} with nearly the same"
                lines.append(f"{task}: the training of {subject} saw {counts_text}")
            if counts["unknown"]:
                lines.append(f"{task}: what {subject} was trained on is not certain: {counts['unknown']}")
    if not lines:
        return ""
    return f"<h2>Leakage</h2><ul>{''.join(f'<li>{html.escape(line)}</li>' for line in lines)}</ul>"


def _differing_rows(result: Mapping[str, Any], rows: Rows) -> Iterator[str]:
    """Lost and won rows of each pair, by the first metric of each task that has a direction."""
    names = list(dict.fromkeys((pair["a"], pair["b"]) for pair in result["pairs"]))
    for a, b in names[:MOST_PAIRS]:
        for task in result["tasks"]:
            own = [metric for metric in result["metrics"] if metric["task"] == task["name"]]
            metric = next((each for each in own if each["larger_is_better"] is not None), None)
            if metric is None:
                continue
            gains = [(row, _gain(row, a, b, metric)) for row in rows[task["name"]]]
            lost = [row for row, gain in gains if gain < 0]
            won = [row for row, gain in gains if gain > 0]
            title = f"{a} beside {b}: {task['name']}, {metric['name']}"
            yield f"<h2>{html.escape(title)}</h2>"
            yield _answers(f"Lost: {len(lost)} rows where {b} did better", lost, a, b, is_open=True)
            yield _answers(f"Won: {len(won)} rows where {a} did better", won, a, b)


def _gain(row: Mapping[str, Any], a: str, b: str, metric: Mapping[str, Any]) -> float:
    ours = row["scores"].get(a, {}).get(metric["name"])
    theirs = row["scores"].get(b, {}).get(metric["name"])
    if ours is None or theirs is None:
        return 0.0
    return ours - theirs if metric["larger_is_better"] else theirs - ours


def _answers(title: str, rows: Sequence[Mapping[str, Any]], a: str, b: str, is_open: bool = False) -> str:
    shown = []
    for row in rows[:MOST_SHOWN]:
        theirs, ours = (row["answers"].get(name, {}).get("text", "") for name in (b, a))
        cells = [html.escape(str(row["row"])), html.escape(row["question"]), html.escape(row["reference"])]
        cells += [html.escape(theirs), word_diff(theirs, ours)]
        leaked = ", ".join(f"{kind} in the training of {name}" for name, kind in row.get("leaked", {}).items())
        cells[0] += f"<br><span class=worse>{html.escape(leaked)}</span>" if leaked else ""
        shown.append("<tr>" + "".join(f"<td class=text>{cell}</td>" for cell in cells) + "</tr>")
    more = f" ({len(shown)} shown)" if len(shown) < len(rows) else ""
    table = pages.table(("row", "asked", "expected", b, f"{a}, as changed from it"), shown) if shown else ""
    return f"<details{' open' if is_open else ''}><summary>{html.escape(title + more)}</summary>{table}</details>"


def _judged(result: Mapping[str, Any]) -> str:
    lines = [f"<li>{html.escape(judged_line(each))}</li>" for each in result.get("judged", [])]
    return f"<h2>Judge</h2><ul>{''.join(lines)}</ul>" if lines else ""


def _slices(result: Mapping[str, Any], rows: Rows) -> str:
    parts = []
    names = [subject["subject"] for subject in result["subjects"]]
    for task in result["tasks"]:
        metrics = [metric["name"] for metric in result["metrics"] if metric["task"] == task["name"]]
        for column in _slice_columns(task, rows[task["name"]]) if metrics else []:
            groups: dict[str, list[Mapping[str, Any]]] = {}
            for row in rows[task["name"]]:
                groups.setdefault(str(row["columns"].get(column, "")), []).append(row)
            lines = [
                pages.row([value, len(group), *(_mean(group, name, metrics[0]) for name in names)])
                for value, group in sorted(groups.items(), key=lambda item: -len(item[1]))
            ]
            title = html.escape(f"{task['name']}: {metrics[0]} by {column}")
            parts.append(f"<h3>{title}</h3>{pages.table((column, 'rows', *names), lines)}")
    return f"<h2>Slices</h2>{''.join(parts)}" if parts else ""


def _slice_columns(task: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    named = list(task["settings"].get("slices") or [])
    if named:
        return named
    values: dict[str, Counter[str]] = {}
    for row in rows:
        for column, value in row["columns"].items():
            values.setdefault(column, Counter())[str(value)] += 1
    few = [column for column, counts in values.items() if 2 <= len(counts) <= MOST_SLICES]
    return [column for column in few if 2 * len(values[column]) <= sum(values[column].values())]


def _mean(rows: Sequence[Mapping[str, Any]], subject: str, metric: str) -> str:
    values = [value for row in rows if (value := row["scores"].get(subject, {}).get(metric)) is not None]
    return _number(sum(values) / len(values)) if values else ""


def _forgetting(result: Mapping[str, Any], rows: Rows) -> str:
    metrics = [metric["name"] for metric in result["metrics"] if metric["task"] == GENERAL]
    subjects = [subject for subject in result["subjects"] if subject["tasks"].get(GENERAL)]
    if not subjects:
        return ""
    lines = [
        pages.row([subject["subject"], *(_estimate(subject["tasks"][GENERAL].get(name)) for name in metrics)])
        for subject in subjects
    ]
    said = [pair for pair in result["pairs"] if pair["task"] == GENERAL]
    sentences = "".join(f"<li>{html.escape(verdict_line(pair))}</li>" for pair in said)
    names = [subject["subject"] for subject in subjects]
    asked = [row for row in rows.get(GENERAL, []) if row["answers"]]
    answers = [
        "<tr>"
        + "".join(
            f"<td class=text>{html.escape(text)}</td>"
            for text in (row["question"], *(row["answers"].get(name, {}).get("text", "") for name in names))
        )
        + "</tr>"
        for row in asked
    ]
    table = pages.table(("prompt", *names), answers)
    return (
        f"<h2>Forgetting</h2><p class=quiet>{_ON_FORGETTING}</p>"
        f"{pages.table(('subject', *(f'{name} (95%)' for name in metrics)), lines)}<ul>{sentences}</ul>"
        f"<details><summary>Answers to {len(asked)} unrelated prompts</summary>{table}</details>"
    )


def _cost(result: Mapping[str, Any]) -> str:
    head = ("subject", "answers", "prompt tokens", "answer tokens", "seconds")
    lines = [
        pages.row([subject["subject"], *(f"{subject['cost'][name.replace(' ', '_')]:,}" for name in head[1:])])
        for subject in result["subjects"]
    ]
    return pages.table(head, lines)


def _estimate(found: Mapping[str, Any] | None) -> str:
    if not found:
        return ""
    return f"{_number(found['value'])}{_interval(found['low'], found['high'], _number)}"


def _interval(low: float | None, high: float | None, form: Any) -> str:
    return "" if low is None or high is None else f" ({form(low)} to {form(high)})"


def _number(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 100 else f"{value:.4g}"


def _signed(value: float) -> str:
    return f"{value:+.3f}" if abs(value) < 100 else f"{value:+.4g}"
