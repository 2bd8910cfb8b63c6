"""Finds the assistant's turns in a rendered conversation.

Answers are found by the template's text around them, if it is the same as in other chats with the same roles
(`scaffold`). Otherwise, they are found by marks around the answers' text, with two renderings in all. An answer with
tool calls or reasoning has parts that no mark can enclose: it starts where the prompt before it ends, and extends to
its stop token. That token is always the template's own, because rows with one of the template's special tokens have
been refused earlier.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from lamina.chat.bounds import TemplateFailure
from lamina.chat.message import Message
from lamina.chat.scaffold import Scaffolds
from lamina.chat.spans import Marks, Places, Span, shared_length
from lamina.chat.support import Render
from lamina.chat.turns import THINK, as_turn
from lamina.errors import DataError

THINK_END = re.compile(r"\s*</think>\s*")


@dataclass(frozen=True, slots=True)
class Conversation:
    """A conversation and its text.

    Attributes:
        messages: The turns as rendered.
        turns: The same turns as dicts.
        schemas: Schemas of the tools; None without tools.
        text: The rendered text.
    """

    messages: Sequence[Message]
    turns: list[dict[str, Any]]
    schemas: list[dict[str, Any]] | None
    text: str


@dataclass(frozen=True, slots=True)
class Found:
    """What the assistant wrote: answers in order (with their stop tokens), marked parts, and reasoning."""

    answers: list[Span]
    parts: list[Span]
    thinking: list[Span]


class AnswerFinder:
    """Finds the answers in the renderings of one template.

    Args:
        name: The template's name, for messages.
        render: Renders turns with the template.
        stop: The token that ends an answer.
        call_stop: The token that ends a turn of tool calls.
    """

    def __init__(self, name: str, render: Render, stop: str, call_stop: str) -> None:
        self._name = name
        self._render = render
        self._stop = stop
        self._call_stop = call_stop
        self._gap_and_stop = re.compile(r"\s*" + re.escape(stop))
        self._scaffolds = Scaffolds(render, self._gap_and_stop)

    def find(self, conversation: Conversation) -> Found:
        """Finds the spans of the answers.

        Raises:
            DataError: The template changes, drops or repeats an answer, so that it cannot be found.
        """
        messages, text = conversation.messages, conversation.text
        if _is_plain(conversation) and (plain := self._scaffolds.find(messages, text)) is not None:
            return Found(plain, [], [])
        places = find_places(self._render, conversation)
        marked = iter(places.answers if places else ())
        answers: list[Span] = []
        for index, message in enumerate(messages):
            if message.role != "assistant":
                continue
            words = next(marked) if places and _has_marks(message) else None
            if words is None or _is_structured(message):
                earliest = answers[-1].end if answers else 0
                answers.append(self._whole_answer(conversation, index, earliest, words, places))
            else:
                answers.append(Span(words.start, self._past_stop(text, words.end)))
        if places is None:
            return Found(answers, [], [])
        parts = [self._with_stop(text, part, answers) for part in places.parts] if places.parts else []
        return Found(answers, parts, self._thinking(conversation, places, answers))

    def _past_stop(self, text: str, end: int) -> int:
        match = self._gap_and_stop.match(text, end)
        return match.end() if match else end

    def _with_stop(self, text: str, part: Span, answers: Sequence[Span]) -> Span:
        end = self._past_stop(text, part.end)
        is_last_of_answer = any(answer.end == end and answer.start <= part.start for answer in answers)
        return Span(part.start, end) if is_last_of_answer else part

    def _whole_answer(
        self, conversation: Conversation, index: int, earliest: int, words: Span | None, places: Places | None
    ) -> Span:
        """Returns the span from the end of the prompt to the end of the stop token."""
        message, text = conversation.messages[index], conversation.text
        if _is_structured(message) and places is None:
            raise self._lost()
        latest = words.start if words else len(text)
        start = next(
            (len(h) for h in self._prompts(conversation, index) if earliest <= len(h) <= latest and text.startswith(h)),
            None,
        )
        if start is None:
            raise self._lost()
        if words and not message.tool_calls:
            return Span(start, self._past_stop(text, words.end))
        stop = self._call_stop if message.tool_calls else self._stop
        end = text.find(stop, words.end if words else start)
        is_last = index == len(conversation.messages) - 1
        if end < 0 and is_last:
            end, stop = len(text.rstrip()), ""
        said = text[start:end]
        if end < 0 or not self._ends_before_next(conversation, index, end):
            raise self._lost()
        if message.tool_calls:
            if not all(call.name in said for call in message.tool_calls):
                raise self._lost()
        else:
            if said.strip() != message.content.strip():
                raise self._lost()
            place = said.find(message.content)
            start += place if place >= 0 else len(said) - len(said.lstrip())
        return Span(start, end + len(stop))

    def _ends_before_next(self, conversation: Conversation, index: int, end: int) -> bool:
        following = conversation.messages[index + 1 : index + 2]
        return all(m.role != "user" or conversation.text.find(m.content.strip(), end) >= 0 for m in following)

    def _prompts(self, conversation: Conversation, index: int) -> Iterator[str]:
        """Yields candidates for the text before a turn: the generation prompt, then the text before another answer.

        The second kind is for templates that look ahead, for example to put the tools before the last question. The
        prefix that both texts share is for templates that write nothing in place of missing reasoning.
        """
        turns, schemas = conversation.turns, conversation.schemas
        with contextlib.suppress(TemplateFailure):
            yield self._render(turns[:index], schemas, True)
        later = (i for i in range(index + 1, len(turns)) if turns[i]["role"] == "user")
        rest = turns[next(later, len(turns)) :]
        mark = Marks.unlike(conversation.text).characters[0]
        try:
            other = self._render([*turns[:index], as_turn(Message("assistant", mark)), *rest], schemas)
        except TemplateFailure:
            return
        prompt = other.partition(mark)[0]
        yield prompt
        yield prompt.rstrip()
        yield prompt[: shared_length(prompt, conversation.text)]

    def _thinking(self, conversation: Conversation, places: Places, answers: Sequence[Span]) -> list[Span]:
        thinking: list[Span] = []
        if not (places.thinking or any(message.thinking for message in conversation.messages)):
            return thinking
        last = len(conversation.messages) - 1
        spoken = [item for item in enumerate(conversation.messages) if item[1].role == "assistant"]
        for (index, message), answer in zip(spoken, answers, strict=True):
            inside = [place for place in places.thinking if answer.start <= place.start and place.end <= answer.end]
            if message.thinking and inside:
                match = THINK_END.match(conversation.text, inside[-1].end)
                thinking.append(Span(answer.start, match.end() if match else inside[-1].end))
            elif message.thinking and index == last:
                raise DataError(
                    f"the {self._name} chat template drops the reasoning of the last answer. Fix: set data.thinking "
                    "to strip, or data.chat_template to a template that supports reasoning."
                )
            else:
                thinking += inside
        return thinking

    def _lost(self) -> DataError:
        return DataError(
            f"the {self._name} chat template changes or drops an assistant turn, so lamina cannot find its tokens. "
            "Fix: set data.chat_template to a built-in template; if the answer contains reasoning (<think>), "
            "data.thinking: strip removes it."
        )


def find_places(render: Render, conversation: Conversation) -> Places | None:
    """Returns the places of the marks (around answers, marked parts and reasoning); None if they cannot be found."""
    messages = conversation.messages
    marks = Marks.unlike(conversation.text)
    touched = [message for message in messages if message.role == "assistant" or message.marked]
    has_space = [message for message in touched if message.content != message.content.strip()]
    for trim in (False, True) if has_space else (False,):
        turns = [
            _marked_turn(message, marks, trim) if message.role == "assistant" or message.marked else turn
            for message, turn in zip(messages, conversation.turns, strict=True)
        ]
        try:
            marked = render(turns, conversation.schemas)
        except TemplateFailure:
            return None
        places = marks.read(marked, conversation.text)
        if places is not None and _are_of(places, conversation):
            return places
    return None


def find_stop(render: Render, try_render: Render, special: Iterable[str]) -> str:
    """Returns the special token that a template writes after an answer; empty if it writes none.

    Args:
        render: The template; raises `DataError` if it refuses a conversation.
        try_render: The template; raises `TemplateFailure`.
        special: The tokenizer's special tokens.
    """
    messages = [Message("user", "ping"), Message("assistant", "pong")]
    turns = [as_turn(message) for message in messages]
    conversation = Conversation(messages, turns, None, render(turns, None))
    places = find_places(try_render, conversation)
    ordered = sorted(special, key=len, reverse=True)
    if not (places and ordered):
        return ""
    pattern = re.compile(r"\s*(" + "|".join(map(re.escape, ordered)) + ")")
    match = pattern.match(conversation.text, places.answers[0].end)
    return match.group(1) if match else ""


def _are_of(places: Places, conversation: Conversation) -> bool:
    """Returns whether the spans found are exactly the answers, in order and verbatim."""
    expected = [m.content for m in conversation.messages if m.role == "assistant" and _has_marks(m)]
    return len(expected) == len(places.answers) and all(
        conversation.text[span.start : span.end].strip() == content.strip()
        for content, span in zip(expected, places.answers, strict=True)
    )


def _marked_turn(message: Message, marks: Marks, trim: bool) -> dict[str, Any]:
    turn = as_turn(message)
    if message.role != "assistant" or _has_marks(message):
        reasoning = []
        if message.role == "assistant" and "<think>" in message.content:
            reasoning = [match.span() for match in THINK.finditer(message.content)]
        turn["content"] = marks.in_content(message, trim, reasoning)
    if message.thinking:
        turn["reasoning_content"] = turn["thinking"] = marks.around_thinking(message.thinking)
    return turn


def _is_plain(conversation: Conversation) -> bool:
    """Returns whether the conversation has only roles and contents, and no marked parts or reasoning."""
    if conversation.schemas is not None:
        return False
    for turn, message in zip(conversation.turns, conversation.messages, strict=True):
        if len(turn) > 2 or message.marked or "<think>" in message.content:
            return False
    return bool(conversation.turns)


def _is_structured(message: Message) -> bool:
    return bool(message.tool_calls or message.thinking)


def _has_marks(message: Message) -> bool:
    return bool(message.content.strip()) or not _is_structured(message)
