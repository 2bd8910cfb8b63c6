"""One adapter's evaluation as an HTML page: figures, what they mean, and the answers beside those of the base."""

from __future__ import annotations

import html

from lamina import pages
from lamina.evaluation.evaluated import Evaluation

_STYLE = """
td.text { white-space: pre-wrap; vertical-align: top; width: 33% } .prompt { background: #f4f6f9; font-weight: 600 }
.note { color: #556 }
"""


def answers_page(found: Evaluation, title: str) -> str:
    """Returns the page.

    Args:
        found: What `evaluate` gave.
        title: What was evaluated.
    """
    figures = [pages.row((name, base, adapter)) for name, base, adapter in figures_of(found)]
    said = "".join(f"<p>{html.escape(line)}</p>" for line in found.judgement)
    notes = "".join(f"<p class=note>{html.escape(note)}</p>" for note in found.notes)
    rows = []
    for each in found.predictions:
        rows.append(f"<tr><td colspan=3 class='text prompt'>{html.escape(each.prompt)}</td></tr>")
        texts = (each.expected, each.base, each.adapter)
        rows.append(f"<tr>{''.join(f'<td class=text>{html.escape(text)}</td>' for text in texts)}</tr>")
    answers = pages.table(("expected", "base model", "adapter"), rows) if rows else ""
    body = (
        f"<h1>{html.escape(title)}</h1>{said}{pages.table(('', 'base model', 'adapter'), figures)}"
        f"<p class=note>{found.rows} rows</p>{notes}<h2>Answers</h2>{answers}"
    )
    return pages.page(title, body, _STYLE)


def figures_of(found: Evaluation) -> list[tuple[str, str, str]]:
    """Returns the table of an evaluation: the name of a figure, the base's, and the adapter's."""
    rows = [("loss", f"{found.base_loss:.4f}", f"{found.loss:.4f}")]
    rows += [(f"loss on {name}", f"{each.base_loss:.4f}", f"{each.loss:.4f}") for name, each in found.sets.items()]
    if found.perplexity is not None:
        rows.append(("perplexity", f"{found.base_perplexity:.2f}", f"{found.perplexity:.2f}"))
    if found.classification is None:  # whose figures have a table of their own
        rows += [(name, f"{found.base_metrics[name]:.4f}", f"{value:.4f}") for name, value in found.metrics.items()]
    for name, scores in found.scores.items():
        title = name.replace("_", " ") + (f" ({len(found.predictions)} rows)" if found.sampled else "")
        form = "{:.1f}" if max(scores.base, scores.adapter) > 1 else "{:.1%}"  # chrF is a number up to 100
        rows.append((title, form.format(scores.base), form.format(scores.adapter)))
    if found.general_loss is not None:
        rows.append(("general text loss", f"{found.base_general_loss:.4f}", f"{found.general_loss:.4f}"))
    return rows
