"""Prints one adapter's evaluation: answers side by side, figures, and what they mean."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from lamina.cli.output import out

if TYPE_CHECKING:
    from lamina.evaluation.classification import ClassificationScores
    from lamina.evaluation.evaluated import Evaluation, Prediction

# Longer texts are cut in the terminal; the page and --predictions have all of them.
_MOST_LETTERS = 300


def print_one(found: Evaluation, answers: int) -> None:
    """Prints an evaluation of one adapter.

    Args:
        found: What was found.
        answers: How many answers to show.
    """
    from lamina.evaluation.answers_page import figures_of

    for each in found.predictions[:answers]:
        _print_answer(each)
    table = Table("", "base model", "adapter")
    for cells in figures_of(found):
        table.add_row(*cells)
    out.print(table)
    if found.classification is not None:
        print_classes(found.classification)
    left_out = "".join(f"; dropped {count}: {reason}" for reason, count in found.dropped.items())
    out.print(f"{found.rows} rows{left_out}")
    for line in found.judgement:
        out.print(line, markup=False)


def print_classes(found: ClassificationScores) -> None:
    """Prints accuracy and macro F1 with their intervals, and a row for each class."""
    table = Table("(95% interval)", "", "always the most frequent class")
    for name, share, plain in (
        ("accuracy", found.accuracy, f"{found.most_frequent:.1%}"),
        ("macro F1", found.macro_f1, ""),
    ):
        table.add_row(name, f"{share.value:.1%} ({share.low:.1%}-{share.high:.1%})", plain)
    out.print(table)
    classes = Table("class", "rows", "precision", "recall", "F1")
    for each in found.classes:
        classes.add_row(
            escape(each.label), str(each.rows), f"{each.precision:.1%}", f"{each.recall:.1%}", f"{each.f1:.1%}"
        )
    out.print(classes)


def _print_answer(each: Prediction) -> None:
    parts = (("prompt", each.prompt), ("expected", each.expected), ("base", each.base), ("adapter", each.adapter))
    for name, text in parts:
        style = "bold" if name == "prompt" else "green" if name == "adapter" else ""
        shown = text if len(text) <= _MOST_LETTERS else f"{text[:_MOST_LETTERS]} ..."
        out.print(Text(f"{name:<9} ", style="dim").append(Text(shown.replace("\n", "\n          "), style=style)))
    out.print()
