"""Reads what a model wrote: which of it is the answer, and which the template's own words around it.

A model writes what it was trained on, which for some templates begins with an empty reasoning section or a channel's
header. These are taken off; reasoning is given between <think> and </think> in front of the answer, as rows have it.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from lamina.chat.message import Message
from lamina.chat.probe import ANSWER, ASK, THINKING
from lamina.chat.spans import Rendered
from lamina.errors import DataError


@dataclass(frozen=True)
class Question:
    """What a model is asked, and what it learns to write.

    Attributes:
        prompt: The text before the answer. Where reasoning is shown but not learned, the row's own is part of it.
        written: What the model is to write, its stop token included.
        voice: Reads what it writes.
    """

    prompt: str
    written: str
    voice: Voice

    @property
    def answer(self) -> str:
        """What it is to say."""
        return self.voice.read(self.written)


@dataclass(frozen=True)
class Voice:
    """How a template writes answers.

    Attributes:
        opening: What stands before an answer without reasoning.
        before: What stands before reasoning; None where it has no place.
        after: What stands between reasoning and answer; empty where it has no place.
        special: The tokenizer's special tokens.
    """

    opening: str
    before: str | None
    after: str
    special: frozenset[str]

    def read(self, written: str) -> str:
        """What was said in a text as the model wrote it, special tokens included."""
        if self.opening and written.startswith(self.opening):
            return self._plain(written.removeprefix(self.opening))
        if self.before is None or not self.after or not written.startswith(self.before):
            return self._plain(written)
        reasoning, closed, answer = written.removeprefix(self.before).partition(self.after)
        if closed:
            return f"<think>\n{self._plain(reasoning)}\n</think>\n\n{self._plain(answer)}"
        # Without a sign that it is reasoning, only its end can tell.
        is_reasoning = bool(self.before or self.opening) and bool(self._plain(reasoning))
        return f"<think>\n{self._plain(reasoning)}" if is_reasoning else self._plain(written)

    def after_reasoning(self, written: str) -> Voice:
        """How it goes on where reasoning is part of the prompt, of which `written` is an example."""
        ends = (self.after[start:] for start in range(len(self.after)))
        return replace(self, opening=next(filter(written.startswith, ends), ""), before=None, after="")

    def stream(self, pieces: Iterable[str]) -> Iterator[str]:
        """The same piece by piece, each as soon as it is sure what it is."""
        written = told = ""
        for piece in pieces:
            written += piece
            said = self.read(written[: self._sure(written)])
            if len(said) > len(told) and said.startswith(told):
                yield said[len(told) :]
                told = said
        said = self.read(written)
        if said.startswith(told) and said != told:
            yield said[len(told) :]

    def _sure(self, written: str) -> int:
        """How much of what was written so far can be read, whatever comes next."""
        if any(begin and begin.startswith(written) for begin in (self.opening, self.before)):
            return 0
        if self.after and self.after not in written:
            for length in range(min(len(self.after), len(written)), 0, -1):
                if written.endswith(self.after[:length]):
                    return len(written) - length
        return len(written)

    def _plain(self, text: str) -> str:
        """The text without special tokens."""
        return self._special.sub("", text) if self.special else text

    @cached_property
    def _special(self) -> re.Pattern[str]:
        return re.compile("|".join(map(re.escape, sorted(self.special, key=len, reverse=True))))


def find_voice(
    render: Callable[[Sequence[Message]], Rendered],
    kept: Callable[[Sequence[Message]], Rendered],
    special: Iterable[str],
) -> Voice:
    """Finds out how a template writes answers.

    Args:
        render: Renders a conversation as the run does.
        kept: Renders it with its reasoning.
        special: The tokenizer's special tokens.
    """
    asked, opening = Message("user", ASK), ""
    before: str | None = None
    after = ""
    with contextlib.suppress(DataError):
        opening = render([asked, Message("assistant", ANSWER)]).opening
    with contextlib.suppress(DataError):
        reasoned = kept([asked, Message("assistant", ANSWER, thinking=THINKING)])
        head, found, rest = reasoned.text[reasoned.answers[-1].start :].partition(THINKING)
        if found:
            before, after = head, rest.partition(ANSWER)[0]
    return Voice(opening, before, after, frozenset(special))
