"""Recognizes what a row of text or tokens is, with the run's chat template and tokenizer.

Text that has the template's tokens is a conversation that was rendered before. Tokens with labels are an answer to what
precedes it. Both are trained on as they are; the turns that are read from them serve the split, the checks, and
evaluation.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import takewhile

from lamina.chat.message import Message
from lamina.chat.template import ChatTemplate
from lamina.chat.voice import Question
from lamina.data.example import Example, Kind, TokenRow
from lamina.data.source import ReadRow

# What well-known chat templates write in front of answers.
_MARKERS = (
    "<|im_start|>assistant",
    "<|start_header_id|>assistant",
    "[/INST]",
    "<start_of_turn>model",
    "<|assistant|>",
    "<｜Assistant｜>",
    "<|start_of_role|>assistant",
)


def recognized_rows(rows: Iterable[ReadRow], template: ChatTemplate) -> Iterator[ReadRow]:
    """Yields the rows with their examples recognized."""
    for row in rows:
        example = row.example
        if example is None or example.kind is not Kind.TEXT or row.drop_reason:
            yield row
        else:
            yield replace(row, example=recognized(example, template))


def recognized(example: Example, template: ChatTemplate) -> Example:
    """Returns the example as a conversation if its text was rendered by the template, or its tokens have labels."""
    if example.tokens is not None:
        return _with_words(example, example.tokens, template)
    marks = template.answer_marks
    if example.kind is not Kind.TEXT or marks is None or not marks.are_in(example.text):
        return example
    if not template.control_tokens.first_in(example.text):
        return example
    text = marks.completed(example.text)
    return replace(example, kind=Kind.CONVERSATION, text=text, messages=marks.turns(text))


def foreign_marker(example: Example) -> str:
    """Returns a marker of a well-known chat template in plain text, which is then learned whole; empty if none."""
    if example.kind is not Kind.TEXT or example.tokens is not None:
        return ""
    return next((marker for marker in _MARKERS if marker in example.text), "")


def question_of(example: Example, template: ChatTemplate) -> Question:
    """Returns the prompt for a conversation's last answer, and the text that the model learns to write.

    Raises:
        DataError: As for `ChatTemplate.question`.
    """
    if not example.is_rendered or template.answer_marks is None:
        return template.question(example.messages, example.tools, example.template_kwargs)
    last = template.answer_marks.spans(example.text)[-1]
    return Question(example.text[: last.start], example.text[last.start : last.end], template.voice)


def _with_words(example: Example, tokens: TokenRow, template: ChatTemplate) -> Example:
    decode = template.tokenizer.decode
    text = str(decode(list(tokens.ids), clean_up_tokenization_spaces=False))
    if all(tokens.in_loss):
        return replace(example, text=text)
    given = sum(1 for _ in takewhile(lambda learned: not learned, tokens.in_loss))
    parts = [
        str(decode(list(ids), clean_up_tokenization_spaces=False)) for ids in (tokens.ids[:given], tokens.ids[given:])
    ]
    messages = (Message("user", parts[0]), Message("assistant", parts[1]))
    return replace(example, kind=Kind.CONVERSATION, messages=messages, text=text)
