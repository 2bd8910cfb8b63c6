"""The text that a template writes around the turns of a chat, learned once for each sequence of roles.

Rendering every chat a second time, with marks in it (`spans`), would take a third of the Python time per row. Most rows
do not need it. If the template has put the same text around the same roles before, and that text with this row's
contents inserted equals this row's rendering, character for character, then the contents are where they were inserted.
Otherwise (for a template that trims, or depends on the contents), the marks are used.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from lamina.chat.bounds import TemplateFailure
from lamina.chat.message import Message
from lamina.chat.spans import Span
from lamina.chat.support import Render

# Maximum number of role sequences to remember; long conversations can have arbitrarily many.
MOST = 1024

# Placeholders for the contents: characters that no template writes, from a private-use plane, after the marks of
# `spans`.
_FIRST = 0xF8000
_LONGEST = 4096


@dataclass(frozen=True, slots=True)
class Scaffold:
    """The text around the contents of the turns, for one sequence of roles.

    Attributes:
        words: The pieces of text; one more than there are turns.
        answers: For each assistant turn, its index and the distance from the end of its content to the end of the stop
            token.
    """

    words: tuple[str, ...]
    answers: tuple[tuple[int, int], ...]

    def find(self, messages: Sequence[Message], text: str) -> list[Span] | None:
        """Returns each answer with its stop token; None if the text does not have this structure."""
        pieces = [self.words[0]]
        for message, after in zip(messages, self.words[1:], strict=True):
            pieces += (message.content, after)
        if "".join(pieces) != text:
            return None
        spans, place, done = [], 0, 0
        for turn, past in self.answers:
            first = 2 * turn + 1  # index of its content among the pieces
            place += sum(map(len, pieces[done:first]))
            end = place + len(pieces[first])
            spans.append(Span(place, end + past))
            place, done = end, first + 1
        return spans


class Scaffolds:
    """The scaffolds of one template.

    Args:
        render: The template.
        stop: Matches whatever is between an answer and its stop token, and the token.
    """

    def __init__(self, render: Render, stop: re.Pattern[str]) -> None:
        self._render = render
        self._stop = stop
        self._known: dict[tuple[str, ...], Scaffold | None] = {}

    def find(self, messages: Sequence[Message], text: str) -> list[Span] | None:
        """Returns the span of each answer in a chat of only roles and contents; None if marks are needed."""
        roles = tuple([message.role for message in messages])
        if roles not in self._known:
            if len(self._known) == MOST:
                return None
            self._known[roles] = self._learn(roles)
        scaffold = self._known[roles]
        return None if scaffold is None else scaffold.find(messages, text)

    def _learn(self, roles: tuple[str, ...]) -> Scaffold | None:
        if len(roles) > _LONGEST:
            return None
        contents = [chr(_FIRST + number) for number in range(len(roles))]
        turns = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=True)]
        try:
            rendered = self._render(turns, None)
        except TemplateFailure:
            return None
        words = re.split(f"[{contents[0]}-{contents[-1]}]", rendered)
        between = [*contents, ""]
        if len(words) != len(between) or "".join(map("".join, zip(words, between, strict=True))) != rendered:
            return None  # a content is missing, repeated or moved
        past = [match.end() if (match := self._stop.match(after)) else 0 for after in words[1:]]
        answers = tuple((number, past[number]) for number, role in enumerate(roles) if role == "assistant")
        return Scaffold(tuple(words), answers)
