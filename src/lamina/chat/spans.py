"""Finds places in a rendered conversation by invisible marks: rendered with them, taken out again, places remembered.

If the rendering without its marks is the rendering of the conversation, then the places of the marks are the places of
what stood between them, whatever the template does. No token id is ever searched for.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass

from lamina.chat.message import Message

# Marks are characters of a private-use plane: hardly any text has them, and no `strip` or `trim` touches them.
_FIRST_MARK = 0xF1E00
_BLOCKS = 1000


@dataclass(frozen=True, slots=True)
class Span:
    """Characters `start` to `end` (exclusive) of a rendered text."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Rendered:
    """A conversation as text, with what the assistant wrote in it.

    Attributes:
        text: What is tokenized, without any further special tokens.
        answers: One span for each assistant turn, in order: from the end of the prompt of use to past the stop token.
        marked: What `Message.marked` asks for; a range that ends where an answer ends has the stop token in it.
        thinking: Reasoning that stays out of the loss; empty unless that is wanted.
        not_asked: Which answers (places in `answers`) stand after another text than the prompt of use.
        opening: What the template writes between the prompt of use and a last answer without reasoning.
    """

    text: str
    answers: tuple[Span, ...]
    marked: tuple[Span, ...] = ()
    thinking: tuple[Span, ...] = ()
    not_asked: tuple[int, ...] = ()
    opening: str = ""


@dataclass(frozen=True, slots=True)
class Places:
    """Where the marks of each kind were found, in the order of the text."""

    answers: list[Span]
    parts: list[Span]
    thinking: list[Span]


class Marks:
    """Six characters that some text does not have: what opens and what closes an answer, a part, a piece of reasoning.

    Args:
        block: Which six.
    """

    def __init__(self, block: int) -> None:
        first = _FIRST_MARK + 6 * block
        self.characters = [chr(first + place) for place in range(6)]
        self._answer, self._part, self._thinking = (tuple(self.characters[i : i + 2]) for i in (0, 2, 4))
        self._kinds = {mark: kind for kind in (self._answer, self._part, self._thinking) for mark in kind}
        # Of marks at one place, those that close come first, but for the answer's own, which stay outermost.
        order = (self._answer[0], self._part[1], self._thinking[1], self._thinking[0], self._part[0], self._answer[1])
        self._rank = {mark: rank for rank, mark in enumerate(order)}
        self._any = re.compile(f"([{self.characters[0]}-{self.characters[5]}])")

    @staticmethod
    def unlike(text: str) -> Marks:
        """Marks that the text does not have."""
        if text.isascii():
            return _marks(0)
        return next(marks for marks in map(_marks, range(_BLOCKS)) if not marks._any.search(text))

    def around_thinking(self, text: str) -> str:
        """The text between two marks, white space at its ends outside of them."""
        lead, core, tail = split_space(text)
        return f"{lead}{self._thinking[0]}{core}{self._thinking[1]}{tail}"

    def in_content(self, message: Message, trim: bool, thinking: Sequence[tuple[int, int]] = ()) -> str:
        """The content of a turn with marks: around all of an answer, the ranges that the data marks, and reasoning.

        Args:
            message: The turn.
            trim: Whether the marks stay inside the white space at the ends, for a template that removes it.
            thinking: Ranges of the content that are reasoning.
        """
        content = message.content
        is_answer = message.role == "assistant"
        if not (trim or message.marked or thinking):
            return f"{self._answer[0]}{content}{self._answer[1]}" if is_answer else content
        lead, core, _ = split_space(content) if trim else ("", content, "")
        first, last = len(lead), len(lead) + len(core)
        ranges = [(self._part, start, end) for start, end in message.marked]
        ranges += [(self._thinking, start, end) for start, end in thinking]
        clipped = [(kind, max(first, min(start, last)), max(first, min(end, last))) for kind, start, end in ranges]
        kept = [item for item in clipped if item[1] < item[2]]
        if is_answer:
            kept.append((self._answer, first, last))
        marks = [(start, kind[0]) for kind, start, _ in kept] + [(end, kind[1]) for kind, _, end in kept]
        pieces, done = [], 0
        for place, mark in sorted(marks, key=lambda item: (item[0], self._rank[item[1]])):
            pieces += [content[done:place], mark]
            done = place
        return "".join([*pieces, content[done:]])

    def read(self, marked: str, text: str) -> Places | None:
        """The places of the marks in the text without them, or None if the marks changed the text."""
        pieces = self._any.split(marked)
        if "".join(pieces[::2]) != text:
            return None
        found: dict[tuple[str, ...], list[Span]] = {self._answer: [], self._part: [], self._thinking: []}
        opened: dict[tuple[str, ...], int] = {}
        place = 0
        for piece, mark in zip(pieces[::2], pieces[1::2], strict=False):
            place += len(piece)
            kind = self._kinds[mark]
            if (mark == kind[0]) == (kind in opened):
                return None  # the template took it apart
            if mark == kind[0]:
                opened[kind] = place
            else:
                found[kind].append(Span(opened.pop(kind), place))
        return None if opened else Places(found[self._answer], found[self._part], found[self._thinking])


def split_space(text: str) -> tuple[str, str, str]:
    """White space at the front, the rest, white space at the end."""
    rest = text.lstrip()
    core = rest.rstrip()
    return text[: len(text) - len(rest)], core, rest[len(core) :]


def shared_length(one: str, other: str) -> int:
    """How many characters two texts have in common at the front."""
    low, high = 0, min(len(one), len(other))
    while low < high:  # by halves, for the texts are long and their comparison is quick
        middle = (low + high + 1) // 2
        low, high = (middle, high) if one[:middle] == other[:middle] else (low, middle - 1)
    return low


@functools.cache
def _marks(block: int) -> Marks:
    return Marks(block)
