"""What a template writes around the turns of a chat, learnt once for each order of roles.

Rendering a chat a second time, with marks in it (`spans`), would take a third of all that is done with a row in Python.
Most rows do not need it: if the template put the same words around the same roles before, and these words with this
row's contents between them are this row's rendering, letter by letter, then the contents lie where they were put. Where
they are not (a template that trims, or looks at what is said), the marks tell.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from lamina.chat.bounds import TemplateFailure
from lamina.chat.message import Message
from lamina.chat.probe import Render
from lamina.chat.spans import Span

# Orders of roles that are remembered; conversations of many turns may have any number of them.
MOST = 1024

# Stand for the contents, as letters that no template writes; from a private-use plane, past the marks of `spans`.
_FIRST = 0xF8000
_LONGEST = 4096


@dataclass(frozen=True, slots=True)
class Scaffold:
    """The words around the contents of the turns, for one order of roles.

    Attributes:
        words: One more than there are turns.
        answers: Of each assistant turn its number, and how far past its content the stop token ends.
    """

    words: tuple[str, ...]
    answers: tuple[tuple[int, int], ...]

    def find(self, messages: Sequence[Message], text: str) -> list[Span] | None:
        """Each answer with its stop token; None if the text is not made in this way."""
        pieces = [self.words[0]]
        for message, after in zip(messages, self.words[1:], strict=True):
            pieces += (message.content, after)
        if "".join(pieces) != text:
            return None
        spans, place, done = [], 0, 0
        for turn, past in self.answers:
            first = 2 * turn + 1  # of its content among the pieces
            place += sum(map(len, pieces[done:first]))
            end = place + len(pieces[first])
            spans.append(Span(place, end + past))
            place, done = end, first + 1
        return spans


class Scaffolds:
    """Those of one template.

    Args:
        render: The template.
        stop: Matches what may stand between an answer and its stop token, and the token.
    """

    def __init__(self, render: Render, stop: re.Pattern[str]) -> None:
        self._render = render
        self._stop = stop
        self._known: dict[tuple[str, ...], Scaffold | None] = {}

    def find(self, messages: Sequence[Message], text: str) -> list[Span] | None:
        """Each answer's place in the rendering of a chat of nothing but roles and contents; None if the marks must."""
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
            return None  # a content is missing, is there twice, or stands elsewhere
        past = [match.end() if (match := self._stop.match(after)) else 0 for after in words[1:]]
        answers = tuple((number, past[number]) for number, role in enumerate(roles) if role == "assistant")
        return Scaffold(tuple(words), answers)
