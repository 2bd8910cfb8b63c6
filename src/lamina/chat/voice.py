"""Parses a model's output into the answer and the text that the template writes around it.

A model writes what it was trained on; for some templates, that starts with an empty reasoning section or a channel
header. These are removed. Reasoning is returned between <think> and </think> in front of the answer, as in rows.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from lamina.chat.message import Message
from lamina.chat.spans import Rendered
from lamina.chat.support import ANSWER, ASK, THINKING
from lamina.errors import DataError


@dataclass(frozen=True)
class Question:
    """A prompt, and the text that the model learns to write after it.

    Attributes:
        prompt: The text before the answer. If reasoning is in the text but not in the loss, the prompt includes the
            row's own.
        written: The text that the model should write, including its stop token.
        voice: Parses the model's output.
    """

    prompt: str
    written: str
    voice: Voice

    @property
    def answer(self) -> str:
        """The answer in `written`."""
        return self.voice.read(self.written)


@dataclass(frozen=True)
class Voice:
    """How a template writes answers.

    Attributes:
        opening: Text in front of an answer without reasoning.
        before: Text in front of reasoning; None if the template does not support it.
        after: Text between reasoning and answer; empty if the template does not support reasoning.
        special: The tokenizer's special tokens.
    """

    opening: str
    before: str | None
    after: str
    special: frozenset[str]

    def read(self, written: str) -> str:
        """Returns the answer in a model's output (special tokens included), with its reasoning."""
        if self.opening and written.startswith(self.opening):
            return self._plain(written.removeprefix(self.opening))
        if self.before is None or not self.after or not written.startswith(self.before):
            return self._plain(written)
        reasoning, closed, answer = written.removeprefix(self.before).partition(self.after)
        if closed:
            return f"<think>\n{self._plain(reasoning)}\n</think>\n\n{self._plain(answer)}"
        # If nothing marks the start of reasoning, only its end shows that it was reasoning.
        is_reasoning = bool(self.before or self.opening) and bool(self._plain(reasoning))
        return f"<think>\n{self._plain(reasoning)}" if is_reasoning else self._plain(written)

    def after_reasoning(self, written: str) -> Voice:
        """Returns the `Voice` for prompts that end with reasoning; `written` is an example of the text that follows."""
        ends = (self.after[start:] for start in range(len(self.after)))
        return replace(self, opening=next(filter(written.startswith, ends), ""), before=None, after="")

    def stream(self, pieces: Iterable[str]) -> Iterator[str]:
        """Parses output as it arrives, and yields each piece of the answer as soon as it is certain."""
        listener = Listener(self)
        for piece in pieces:
            if said := listener.hear(piece):
                yield said
        if said := listener.end():
            yield said

    def _sure(self, written: str) -> int:
        """Returns how many characters can be parsed, no matter what follows."""
        if any(begin and begin.startswith(written) for begin in (self.opening, self.before)):
            return 0
        if self.after and self.after not in written:
            for length in range(min(len(self.after), len(written)), 0, -1):
                if written.endswith(self.after[:length]):
                    return len(written) - length
        return len(written)

    def _plain(self, text: str) -> str:
        """Returns the text without special tokens."""
        return self._special.sub("", text) if self.special else text

    @cached_property
    def _special(self) -> re.Pattern[str]:
        return re.compile("|".join(map(re.escape, sorted(self.special, key=len, reverse=True))))


class Listener:
    """Parses one output as it arrives.

    Once nothing that is yet to come can change what has been said, each piece is read by itself, so that a long answer
    takes no longer for each piece than a short one.
    """

    def __init__(self, voice: Voice) -> None:
        self._voice = voice
        self._written = self._told = ""
        self._is_plain = False

    def hear(self, piece: str) -> str:
        """Takes the next piece of the output, and returns what is new and certain of the answer."""
        voice = self._voice
        if self._is_plain:
            return voice._plain(piece)
        self._written += piece
        self._is_plain = self._is_decided()
        sure = len(self._written) if self._is_plain else voice._sure(self._written)
        return self._new(voice.read(self._written[:sure]))

    def end(self) -> str:
        """Returns the rest of the answer."""
        return "" if self._is_plain else self._new(self._voice.read(self._written))

    def _new(self, said: str) -> str:
        if said.startswith(self._told):
            new, self._told = said[len(self._told) :], said
            return new
        # What had no beginning turns out to have been reasoning.
        _, closed, answer = said.partition("\n</think>")
        return closed + answer

    def _is_decided(self) -> bool:
        voice, written = self._voice, self._written
        if any(begin and begin.startswith(written) for begin in (voice.opening, voice.before)):
            return False
        if voice.opening and written.startswith(voice.opening):
            return True
        return voice.before is None or not voice.after or not written.startswith(voice.before) or voice.after in written


def find_voice(
    render: Callable[[Sequence[Message]], Rendered],
    kept: Callable[[Sequence[Message]], Rendered],
    special: Iterable[str],
) -> Voice:
    """Determines how a template writes answers.

    Args:
        render: Renders a conversation as in the run.
        kept: Renders it with its reasoning kept.
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
