"""The nouns of the data side: a `Message`, an `Example` (one row), and an `EncodedExample` (its tokens)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True)
class Example:
    """One row of a data file, whatever its format was.

    Attributes:
        messages: The conversation; the last turn is the assistant's.
        row: Its number in the file, counted from 1.
    """

    messages: tuple[Message, ...]
    row: int

    @property
    def prompt(self) -> tuple[Message, ...]:
        """Everything before the final answer."""
        return self.messages[:-1]

    @property
    def answer(self) -> str:
        """The text of the final assistant turn."""
        return self.messages[-1].content

    def prompt_key(self) -> tuple[tuple[str, str], ...]:
        """What makes two prompts equal: roles and words, white space apart."""
        return tuple((message.role, " ".join(message.content.split())) for message in self.prompt)


@dataclass(frozen=True)
class EncodedExample:
    """An example as the model sees it.

    Attributes:
        input_ids: int32, shape (tokens,).
        supervised: bool, shape (tokens,): whether the token is in the loss, predicted from the ones before it.
        row: Its number in the file, counted from 1.
    """

    input_ids: np.ndarray
    supervised: np.ndarray
    row: int

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def supervised_tokens(self) -> int:
        """How many tokens count in the loss."""
        return int(self.supervised.sum())
