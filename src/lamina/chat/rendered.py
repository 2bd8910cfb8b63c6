"""Conversations that were rendered before: text that already has the tokens of the chat template.

Many scripts store the result of `apply_chat_template` in a `text` column. Such text is taken as it is. Its answers are
found by the template's own markers: an answer starts after the text that the template writes in front of every answer,
and ends with the token that it writes after it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from lamina.chat.bounds import TemplateFailure
from lamina.chat.message import Message
from lamina.chat.spans import Span, shared_length
from lamina.chat.support import ANSWER, ASK, Render
from lamina.chat.turns import as_turn


@dataclass(frozen=True)
class AnswerMarks:
    """The markers of one template.

    Attributes:
        opening: The text in front of every answer.
        stops: The tokens that may end an answer; the first ends one without calls.
        bos: The token that a rendered conversation begins with, if it opens no turn; else empty.
    """

    opening: str
    stops: tuple[str, ...]
    bos: str

    def are_in(self, text: str) -> bool:
        """Returns whether a text has an answer."""
        return self.opening in text

    def completed(self, text: str) -> str:
        """Returns the text with one BOS if the template writes it, and with the last answer's stop token once."""
        if self.bos:
            while text.startswith(2 * self.bos):
                text = text.removeprefix(self.bos)
            text = text if text.startswith(self.bos) else self.bos + text
        stop = self.stops[0]
        twice = re.compile(f"{re.escape(stop)}\\s*{re.escape(stop)}\\s*\\Z")
        while match := twice.search(text):
            text = text[: match.start()] + stop
        last = self.spans(text)[-1:]
        is_open = any(span.end == len(text) and not text.endswith(self.stops) for span in last)
        return text.rstrip() + stop if is_open else text

    def spans(self, text: str) -> list[Span]:
        """Returns the spans of the answers, each with its stop token."""
        found, start = [], text.find(self.opening)
        while start >= 0:
            start += len(self.opening)
            following = text.find(self.opening, start)
            limit = len(text) if following < 0 else following
            ends = [place + len(stop) for stop in self.stops if (place := text.find(stop, start, limit)) >= 0]
            # Without a stop token, only the end of the text is known to be the answer's.
            found.append(Span(start, min(ends, default=limit if following < 0 else start)))
            start = following
        return found

    def turns(self, text: str) -> tuple[Message, ...]:
        """Returns the conversation as it can be read from the text: the answers, and what is in front of each."""
        turns, done = [], 0
        for span in self.spans(text):
            answer = text[span.start : span.end]
            for stop in self.stops:
                answer = answer.removesuffix(stop)
            turns += [Message("user", text[done : span.start]), Message("assistant", answer)]
            done = span.end
        return tuple(turns)


def find_marks(render: Render, stops: Sequence[str], bos: str) -> AnswerMarks | None:
    """Finds the markers of a template; None if it has none.

    Args:
        render: The template; raises `TemplateFailure`.
        stops: The tokens that may end an answer.
        bos: The tokenizer's BOS token; empty if it has none.
    """
    asked, answered = as_turn(Message("user", ASK)), as_turn(Message("assistant", ANSWER))
    try:
        question, prompt = render([asked], None), render([asked], None, True)
        whole = render([asked, answered], None)
    except TemplateFailure:
        return None
    opening = prompt[shared_length(question, prompt) : shared_length(prompt, whole)]
    between = whole.partition(ASK)[2].partition(ANSWER)[0]
    opening = opening if opening.strip() else between.strip()
    if not opening or opening not in whole.partition(ANSWER)[0]:
        return None
    begins = bool(bos) and whole.startswith(bos) and bos not in between
    return AnswerMarks(opening, tuple(dict.fromkeys(filter(None, stops))), bos if begins else "")
