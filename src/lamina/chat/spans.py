"""Finds spans in a rendered conversation with invisible marks: renders with marks, removes them, and remembers their
places.

If the rendering without the marks equals the rendering of the conversation, then the places of the marks are the places
of the text between them, whatever the template does. No token id is ever searched for.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass

from lamina.chat.message import Message

# Marks are characters of a private-use plane: very few texts contain them, and neither `strip` nor `trim` removes them.
_FIRST_MARK = 0xF1E00
_BLOCKS = 1000


@dataclass(frozen=True, slots=True)
class Span:
    """The characters `start` to `end` (exclusive) of a rendered text."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Rendered:
    """A conversation as text, with the spans of what the assistant wrote.

    Attributes:
        text: The text to tokenize, without adding special tokens.
        answers: One span per assistant turn, in order: from the end of the generation prompt to the end of the stop
            token.
        marked: Spans of `Message.marked`; a span that ends where an answer ends includes the stop token.
        thinking: Spans of reasoning that stay out of the loss; empty unless requested.
        not_asked: Which answers (indices into `answers`) follow a text other than their generation prompt.
        opening: What the template writes between the generation prompt and a last answer without reasoning.
    """

    text: str
    answers: tuple[Span, ...]
    marked: tuple[Span, ...] = ()
    thinking: tuple[Span, ...] = ()
    not_asked: tuple[int, ...] = ()
    opening: str = ""


@dataclass(frozen=True, slots=True)
class Places:
    """The places of the marks of each kind, in text order."""

    answers: list[Span]
    parts: list[Span]
    thinking: list[Span]


class Marks:
    """Six characters that a text does not contain: the start and end marks of answers, parts and reasoning.

    Args:
        block: Index of the block of six characters.
    """

    def __init__(self, block: int) -> None:
        first = _FIRST_MARK + 6 * block
        self.characters = [chr(first + place) for place in range(6)]
        self._answer, self._part, self._thinking = (tuple(self.characters[i : i + 2]) for i in (0, 2, 4))
        self._kinds = {mark: kind for kind in (self._answer, self._part, self._thinking) for mark in kind}
        # Among marks at the same place, closing marks come first, except that the answer's own stay outermost.
        order = (self._answer[0], self._part[1], self._thinking[1], self._thinking[0], self._part[0], self._answer[1])
        self._rank = {mark: rank for rank, mark in enumerate(order)}
        self._any = re.compile(f"([{self.characters[0]}-{self.characters[5]}])")

    @staticmethod
    def unlike(text: str) -> Marks:
        """Returns marks that the text does not contain."""
        if text.isascii():
            return _marks(0)
        return next(marks for marks in map(_marks, range(_BLOCKS)) if not marks._any.search(text))

    def around_thinking(self, text: str) -> str:
        """Returns the text between two marks, with white space at its ends outside of them."""
        lead, core, tail = split_space(text)
        return f"{lead}{self._thinking[0]}{core}{self._thinking[1]}{tail}"

    def in_content(self, message: Message, trim: bool, thinking: Sequence[tuple[int, int]] = ()) -> str:
        """Returns the content of a turn with marks around the whole answer, the marked ranges, and the reasoning.

        Args:
            message: The turn.
            trim: Whether to put the marks inside the white space at the ends, for a template that strips it.
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
        """Returns the places of the marks in the text without them, or None if the marks changed the text."""
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
                return None  # the template separated a pair of marks
            if mark == kind[0]:
                opened[kind] = place
            else:
                found[kind].append(Span(opened.pop(kind), place))
        return None if opened else Places(found[self._answer], found[self._part], found[self._thinking])


def split_space(text: str) -> tuple[str, str, str]:
    """Returns the leading white space, the rest, and the trailing white space."""
    rest = text.lstrip()
    core = rest.rstrip()
    return text[: len(text) - len(rest)], core, rest[len(core) :]


def shared_length(one: str, other: str) -> int:
    """Returns the length of the common prefix of two texts."""
    low, high = 0, min(len(one), len(other))
    while low < high:  # binary search, since texts are long and comparing them is fast
        middle = (low + high + 1) // 2
        low, high = (middle, high) if one[:middle] == other[:middle] else (low, middle - 1)
    return low


@functools.cache
def _marks(block: int) -> Marks:
    return Marks(block)
