"""The central types of the data code: a `Message`, an `Example` (one row), and an `EncodedExample` (its tokens)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property
from typing import Any

import numpy as np

from lamina.chat.message import Message


class Kind(StrEnum):
    """The kind of a row, which determines the losses that can train on it."""

    CONVERSATION = "conversation"
    TEXT = "text"
    PREFERENCE = "preference"
    UNPAIRED_PREFERENCE = "unpaired_preference"
    CLASSIFICATION = "classification"


@dataclass(frozen=True)
class TokenRow:
    """A row that was tokenized before.

    Attributes:
        ids: The token ids.
        in_loss: Whether each is in the loss.
    """

    ids: tuple[int, ...]
    in_loss: tuple[bool, ...]


@dataclass(frozen=True)
class Example:
    """One row of a data file, whatever its format.

    Attributes:
        messages: The conversation; for a preference, the prompt and the chosen answer. Empty for plain text.
        row: Number of the row in the file, from 1.
        kind: The kind of row.
        tools: Functions that the assistant may call, as JSON schemas.
        text: The document, for plain text and for a text with a class; for a conversation that was rendered before, its
            text.
        rejected: For a preference, the turns of the rejected answer.
        label: For an unpaired preference, whether the answer is desirable.
        category: For a text or conversation with a class, the class's name or number as text.
        margin: For a preference, how much better the chosen answer is, if the data says so.
        template_kwargs: The row's variables for the chat template (`chat_template_kwargs`), as plain JSON.
        tokens: The row's tokens, if it was tokenized before.
    """

    messages: tuple[Message, ...]
    row: int
    kind: Kind = Kind.CONVERSATION
    tools: tuple[dict[str, Any], ...] = ()
    text: str = ""
    rejected: tuple[Message, ...] = ()
    label: bool | None = None
    category: str = ""
    margin: float | None = None
    template_kwargs: dict[str, Any] = field(default_factory=dict)
    tokens: TokenRow | None = None

    @property
    def is_rendered(self) -> bool:
        """Whether it is a conversation that was rendered before, and is taken as it is."""
        return self.kind is Kind.CONVERSATION and bool(self.text) and self.tokens is None

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
        """Every conversation in the row: one, or the chosen and the rejected one."""
        if self.kind is Kind.PREFERENCE:
            return self.messages, (*self.prompt, *self.rejected)
        return (self.messages,)

    @property
    def has_tools(self) -> bool:
        """Whether the row has tools, tool calls, or results of calls."""
        return bool(self.tools) or any(message.tool_calls or message.role == "tool" for message in self.messages)

    def prompt_key(self) -> tuple[tuple[str, str], ...]:
        """Returns a key that is equal for equal prompts (for plain text, for equal texts), ignoring white space."""
        if self.text:
            return (("text", " ".join(self.text.split())),)
        turns = self.messages if self.kind is Kind.CLASSIFICATION else self.prompt
        return tuple((message.role, " ".join(message.words().split())) for message in turns)

    def words(self) -> str:
        """Returns all of the row's text, turn by turn."""
        return self.text or "\n".join(message.words() for message in (*self.messages, *self.rejected))


@dataclass(frozen=True, slots=True)
class Remarks:
    """What a user should know about how an example was rendered.

    Attributes:
        opening: What the template writes between the generation prompt and a last answer without reasoning, ignoring
            white space; it is in the loss with the answer.
        reasoning_given: Whether an answer follows reasoning that is not in the loss.
        not_asked: Numbers of answers, from 1, that are excluded from the loss because the conversation shows them in
            another form than after their generation prompt.
        cut_token: Whether a token spans the end of the prompt and the start of the answer, and could not be split.
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
    """An example as the model sees it: one sequence, or several that belong together, concatenated.

    Attributes:
        input_ids: int32, shape (tokens,).
        supervised: bool, shape (tokens,): whether the token is in the loss, predicted from the tokens before it in its
            sequence.
        row: Number of the row in the file, from 1.
        file_index: Index of its file among the data's files.
        remarks: Remarks on its rendering, if it was just encoded.
        several: Tokens per sequence, if there are several; they sum to all tokens.
        values: Numbers of the row that the loss uses, by name.
        companion: What the loss compares the row with and does not learn, in as many sequences.
    """

    input_ids: np.ndarray
    supervised: np.ndarray
    row: int
    file_index: int = 0
    remarks: Remarks = NO_REMARKS
    several: tuple[int, ...] = ()
    values: Mapping[str, float] = field(default_factory=dict)
    companion: EncodedExample | None = None

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens in each of its sequences."""
        return self.several or (len(self.input_ids),)

    @property
    def longest(self) -> int:
        """Tokens in its longest sequence."""
        return max(self.lengths)

    @property
    def supervised_tokens(self) -> int:
        """Number of tokens in the loss."""
        return int(self.supervised.sum())

    def sequence(self, number: int) -> EncodedExample:
        """Returns one of its sequences, from 0, as an example of its own, with the row's values."""
        begin = sum(self.lengths[:number])
        part = slice(begin, begin + self.lengths[number])
        return EncodedExample(
            self.input_ids[part], self.supervised[part], self.row, self.file_index, values=self.values
        )

    def with_values(self, values: Mapping[str, float]) -> EncodedExample:
        """Returns the example with more values."""
        return replace(self, values={**self.values, **values})
