"""Describes what happened to rows in the chat template."""

from __future__ import annotations

from collections.abc import Sequence

from lamina.chat.message import Message
from lamina.chat.support import ANSWER, ASK
from lamina.chat.template import ChatTemplate
from lamina.data.example import Remarks
from lamina.data.store import Facts
from lamina.errors import DataError

# Maximum number of openings to list, most frequent first.
_NAMED = 3


_CUT_TOKEN = "the first token of an answer overlaps its prompt, so generation starts with another token"


def row_notes(remarks: Remarks) -> list[str]:
    """Returns notes about one row."""
    notes = []
    if remarks.opening:
        notes.append(
            f"{remarks.opening!r} before the last answer is not part of its generation prompt, so it is in the loss"
        )
    if remarks.reasoning_given:
        notes.append("reasoning is not in the loss; in generation, the model writes its own")
    if remarks.not_asked:
        which = ", ".join(map(str, remarks.not_asked))
        notes.append(
            f"not in the loss: answer {which}, which the chat template shows in another form (without its "
            "reasoning, or after another text) than after its generation prompt"
        )
    if remarks.cut_token:
        notes.append(_CUT_TOKEN)
    notes += [f"the chat template does not read {name!r} of chat_template_kwargs" for name in remarks.unread_kwargs]
    return notes


def file_notes(template: ChatTemplate, facts: Sequence[Facts]) -> list[str]:
    """Returns notes about the rows of all files."""
    notes = []
    rendered = sum(f.rendered for f in facts)
    if rendered and template.answer_marks is not None:
        notes.append(
            f"{rendered} texts are conversations that were rendered before: they are taken as they are, and each "
            f"answer starts after {template.answer_marks.opening!r}"
        )
    notes += [
        f"{count} texts look like conversations of another chat template (they contain {marker!r}), and are learned "
        "whole, as plain text: give the conversations as `messages`, or name the template in data.chat_template"
        for marker, count in _sum([f.foreign for f in facts])[:_NAMED]
    ]
    for opening, count in _sum([f.openings for f in facts])[:_NAMED]:
        way = " (data.enable_thinking: false puts it into the prompt)" if _is_switched_off(template) else ""
        notes.append(
            f"{opening!r} before {count} answers is not part of the generation prompt: it is in the loss with them{way}"
        )
    if given := sum(f.reasoning_given for f in facts):
        notes.append(
            f"{given} rows have answers after their own reasoning, which is not in the loss: in generation, the "
            "model writes its own reasoning, and exact match gives it the row's"
        )
    if cut := sum(f.cut_tokens for f in facts):
        notes.append(f"{cut} rows: {_CUT_TOKEN}")
    notes += [
        f"chat_template_kwargs of {count} rows set {name!r}, which the chat template does not read"
        for name, count in _sum([f.unread_kwargs for f in facts])[:_NAMED]
    ]
    return notes


def _is_switched_off(template: ChatTemplate) -> bool:
    """Returns whether `data.enable_thinking: false` would move the opening into the generation prompt."""
    if not template.switch or template.enable_thinking is not None:
        return False
    try:
        turns = [Message("user", ASK), Message("assistant", ANSWER)]
        return not template.with_enable_thinking(enable_thinking=False).render_spans(turns).opening.strip()
    except DataError:
        return False


def _sum(counts: Sequence[dict[str, int]]) -> list[tuple[str, int]]:
    """Returns the sum of all counts, largest first."""
    total: dict[str, int] = {}
    for part in counts:
        for name, count in part.items():
            total[name] = total.get(name, 0) + count
    return sorted(total.items(), key=lambda item: -item[1])
