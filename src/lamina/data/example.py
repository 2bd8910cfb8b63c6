"""The nouns of the data side: a `Message`, an `Example` (one row), and an `EncodedExample` (its tokens)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import Any

import numpy as np

from lamina.chat.message import Message


class Kind(StrEnum):
    """What a row is for, and so what may be trained on it."""

    CONVERSATION = "conversation"
    TEXT = "text"
    PREFERENCE = "preference"
    UNPAIRED_PREFERENCE = "unpaired_preference"


@dataclass(frozen=True)
class Example:
    """One row of a data file, whatever its format was.

    Attributes:
        messages: The conversation; of a preference the prompt and the chosen answer. Empty for plain text.
        row: Its number in the file, counted from 1.
        kind: What the row is for.
        tools: Functions that the assistant may call, as JSON schemas.
        text: The document, where the row is plain text.
        rejected: Of a preference: the turns that stand in place of the chosen answer.
        label: Of an unpaired preference: whether the answer is wanted.
        margin: Of a preference: by how much the chosen answer is better, where the data says so.
        template_kwargs: What the row gives the chat template beside its turns (`chat_template_kwargs`), as plain JSON.
    """

    messages: tuple[Message, ...]
    row: int
    kind: Kind = Kind.CONVERSATION
    tools: tuple[dict[str, Any], ...] = ()
    text: str = ""
    rejected: tuple[Message, ...] = ()
    label: bool | None = None
    margin: float | None = None
    template_kwargs: dict[str, Any] = field(default_factory=dict)

    @property
    def prompt(self) -> tuple[Message, ...]:
        """Everything before the final answer."""
        return self.messages[:-1]

    @property
    def answer(self) -> str:
        """The text of the final assistant turn."""
        return self.messages[-1].content

    @cached_property
    def alternatives(self) -> tuple[tuple[Message, ...], ...]:
        """Every conversation that the row holds: one, or the chosen and the rejected one."""
        if self.kind is Kind.PREFERENCE:
            return self.messages, (*self.prompt, *self.rejected)
        return (self.messages,)

    @property
    def has_tools(self) -> bool:
        """Whether there are functions to call, calls, or results of calls."""
        return bool(self.tools) or any(message.tool_calls or message.role == "tool" for message in self.messages)

    def prompt_key(self) -> tuple[tuple[str, str], ...]:
        """What makes two prompts equal: roles and words, white space apart. Of plain text, the text."""
        if self.kind is Kind.TEXT:
            return (("text", " ".join(self.text.split())),)
        return tuple((message.role, " ".join(message.words().split())) for message in self.prompt)

    def words(self) -> str:
        """All of the row's text, turn by turn."""
        return self.text or "\n".join(message.words() for message in (*self.messages, *self.rejected))


@dataclass(frozen=True, slots=True)
class Remarks:
    """What a user should know about how an example was rendered.

    Attributes:
        opening: What the template writes between the prompt of use and a last answer without reasoning, white space
            aside; it is learned with the answer.
        reasoning_given: Whether an answer is learned after reasoning that is not.
        not_asked: Numbers of answers, counted from 1, that are left out of the loss because the conversation shows them
            otherwise than the prompt of use asks for them.
        cut_token: Whether a token reaches from the prompt into the answer, and could not be cut there.
        unread_kwargs: Names in `chat_template_kwargs` that the template does not read.
    """

    opening: str = ""
    reasoning_given: bool = False
    not_asked: tuple[int, ...] = ()
    cut_token: bool = False
    unread_kwargs: tuple[str, ...] = ()


NO_REMARKS = Remarks()


@dataclass(frozen=True)
class EncodedExample:
    """An example as the model sees it: one sequence, or several that belong together, end to end.

    Attributes:
        input_ids: int32, shape (tokens,).
        supervised: bool, shape (tokens,): whether the token is in the loss, predicted from the ones before it in its
            sequence.
        row: Its number in the file, counted from 1.
        source: Which of the data's files, counted from 0.
        remarks: On its rendering, where it was just made.
        several: Tokens of each sequence, where there are several; they sum to all tokens.
        values: Numbers that the loss takes along with the row, by name.
    """

    input_ids: np.ndarray
    supervised: np.ndarray
    row: int
    source: int = 0
    remarks: Remarks = NO_REMARKS
    several: tuple[int, ...] = ()
    values: Mapping[str, float] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each of its sequences."""
        return self.several or (len(self.input_ids),)

    @property
    def longest(self) -> int:
        """Tokens of its longest sequence."""
        return max(self.lengths)

    @property
    def supervised_tokens(self) -> int:
        """How many tokens count in the loss."""
        return int(self.supervised.sum())
