"""Trains each answer after the prompt that the model gets in generation, character for character.

In generation, the model gets the turns so far, rendered with `add_generation_prompt`, and continues from there: the
generation prompt. Therefore:

* Text that a template writes between that prompt and an answer (an empty reasoning section, a channel header, a space)
  is for the model to write. It is in the loss with the answer.
* If a rendered conversation does not continue from the generation prompt, its last answer is appended to the prompt
  itself. If the prompt opens a reasoning section, the answer closes it: after its reasoning, or at once.
* An earlier answer that the conversation shows after a text other than its generation prompt, or without its reasoning,
  stays in the context but out of the loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from lamina.chat.answers import THINK_END, AnswerFinder, Conversation, Found
from lamina.chat.bounds import TemplateFailure
from lamina.chat.message import Message
from lamina.chat.spans import Span, shared_length
from lamina.chat.support import ANSWER, ASK, THINKING, Render, TemplateSupport
from lamina.chat.turns import as_turn, separate_thinking
from lamina.errors import DataError

_OPENED = "<think>"
_CLOSED = "</think>"


@dataclass(frozen=True, slots=True)
class Asked:
    """A conversation's text, with each answer after its generation prompt.

    Attributes:
        text: The text of the conversation.
        found: Its answers, each starting at the end of its generation prompt.
        not_asked: Which answers (indices into `found.answers`) follow a text other than their generation prompt.
        opening: What the template writes between the last generation prompt and the content of an answer without
            reasoning.
    """

    text: str
    found: Found
    not_asked: frozenset[int]
    opening: str = ""


class Prompts:
    """The generation prompts in the conversations of one template.

    Args:
        name: The template's name, for errors.
        render: The template; raises `DataError` if it refuses a conversation.
        try_render: The template; raises `TemplateFailure`.
        finder: Finds the answers in its renderings.
        support: What the template supports.
        added_stop: The stop token to append to a last answer; empty if the template writes it.
        fix: The fix to suggest if a row has reasoning and the generation prompt does not allow it.
    """

    def __init__(
        self,
        name: str,
        render: Render,
        try_render: Render,
        finder: AnswerFinder,
        support: TemplateSupport,
        added_stop: str,
        fix: str,
    ) -> None:
        self._name = name
        self._render = render
        self._try_render = try_render
        self._finder = finder
        self._support = support
        self._added_stop = added_stop
        self._fix = fix

    def ask(self, conversation: Conversation) -> Asked:
        """Returns the conversation with each answer starting at the end of its generation prompt.

        Raises:
            DataError: An answer cannot be found, the template cannot render the last generation prompt, or that prompt
                leaves no place for the reasoning.
        """
        earlier = self._earlier(conversation)
        if conversation.messages[-1].role != "assistant":
            return _begin_where_asked(conversation, self._finder.find(conversation), earlier)
        prompt = self._render(conversation.turns[:-1], conversation.schemas, True)
        return self._ask_for_last(conversation, [*earlier, prompt], prompt)

    def _earlier(self, conversation: Conversation) -> list[str | None]:
        """Returns the generation prompts of all answers except the last; None where the template refuses one."""
        prompts: list[str | None] = []
        for index, message in enumerate(conversation.messages[:-1]):
            if message.role == "assistant":
                try:
                    prompts.append(self._try_render(conversation.turns[:index], conversation.schemas, True))
                except TemplateFailure:
                    prompts.append(None)
        return prompts

    def _ask_for_last(self, conversation: Conversation, prompts: Sequence[str | None], prompt: str) -> Asked:
        last, style = conversation.messages[-1], self._style
        opened = style.is_opened_by(prompt, conversation.text)
        separate = last if self._support.thinking else separate_thinking(last)
        if separate.thinking and not opened and self._support.drops_thinking and not self._support.thinking:
            raise self._rules_out_reasoning(prompt)
        if opened and not self._support.thinking:
            conversation = self._with_last(conversation, replace(separate, thinking=""))
        found, conversation = self._find(conversation)
        asked = _begin_where_asked(conversation, found, prompts)
        is_there = len(prompts) - 1 not in asked.not_asked
        own = found.answers[-1].start
        if is_there and (self._support.thinking or not (opened and separate.thinking)):
            return replace(asked, opening=conversation.text[asked.found.answers[-1].start : own])
        head = ""
        if separate.thinking:
            head = self._head_of_reasoning(prompt, opened)
            found, conversation = self._find(self._with_last(conversation, replace(separate, thinking="")))
            own = found.answers[-1].start
        begun = self._asked_before(conversation, prompts[:-1], prompt)
        between = style.after if separate.thinking or opened else ""
        return _put_behind_prompt(begun, conversation, found, own, (head, separate.thinking.strip("\n"), between))

    def _asked_before(self, conversation: Conversation, prompts: Sequence[str | None], prompt: str) -> Asked:
        """Returns the generation prompt of the last answer, with the answers before it."""
        if not prompts:
            return Asked(prompt, Found([], [], []), frozenset())
        turns, schemas = conversation.turns[:-1], conversation.schemas
        before = Conversation(conversation.messages[:-1], turns, schemas, self._render(turns, schemas))
        asked = _begin_where_asked(before, self._finder.find(before), prompts)
        shared, found, nowhere = shared_length(before.text, prompt), asked.found, Span(len(prompt), len(prompt))
        return Asked(
            prompt,
            Found(
                [span if span.end <= shared else nowhere for span in found.answers],
                [span for span in found.parts if span.end <= shared],
                [span for span in found.thinking if span.end <= shared],
            ),
            asked.not_asked | {number for number, span in enumerate(found.answers) if span.end > shared},
        )

    def _head_of_reasoning(self, prompt: str, opened: bool) -> str:
        """Returns what the model writes between the generation prompt and its reasoning.

        Raises:
            DataError: The generation prompt does not allow reasoning.
        """
        style = self._style
        if style.before is not None and prompt.endswith(style.generation_prompt):
            return style.before
        if not opened:
            raise self._rules_out_reasoning(prompt)
        return ""

    def _rules_out_reasoning(self, prompt: str) -> DataError:
        return DataError(
            f"the answer has reasoning, but the generation prompt of the {self._name} chat template ends with "
            f"{prompt[-40:]!r}, which does not start any, so the model would be trained on output that it is never "
            f"asked for. Fix: {self._fix}."
        )

    def _with_last(self, conversation: Conversation, last: Message) -> Conversation:
        """Returns the conversation with another last turn."""
        turns = [*conversation.turns[:-1], as_turn(last)]
        text = self._render(turns, conversation.schemas)
        return Conversation([*conversation.messages[:-1], last], turns, conversation.schemas, text)

    def _find(self, conversation: Conversation) -> tuple[Found, Conversation]:
        """Returns the answers of a conversation that ends with one, and appends the stop token if it is missing."""
        found, support = self._finder.find(conversation), self._support
        added = self._added_stop
        if conversation.messages[-1].tool_calls:
            added = support.call_stop if support.adds_call_stop else ""
        if not added:
            return found, conversation
        start, end = found.answers[-1].start, found.answers[-1].end
        text = conversation.text[:end] + added
        parts = [Span(part.start, len(text)) if part.end == end else part for part in found.parts]
        found = replace(found, answers=[*found.answers[:-1], Span(start, len(text))], parts=parts)
        return found, replace(conversation, text=text)

    @cached_property
    def _style(self) -> _Style:
        return _find_style(self._try_render, self._support)


@dataclass(frozen=True)
class _Style:
    """How a template writes a last answer's reasoning.

    Attributes:
        prompt: The generation prompt of the sample conversation.
        generation_prompt: The part of it that `add_generation_prompt` adds.
        before: The text between the generation prompt and the reasoning; None if the rendered text does not start with
            the prompt.
        after: The text between the reasoning and the answer.
    """

    prompt: str
    generation_prompt: str
    before: str | None
    after: str

    def is_opened_by(self, prompt: str, text: str) -> bool:
        """Returns whether a generation prompt ends inside a reasoning section; `text` is the whole conversation."""
        if prompt.rstrip().endswith(_OPENED):
            return True
        if self.before is None or self.before.strip() or text.startswith(prompt):
            return False
        return self.prompt.endswith(prompt[shared_length(prompt, text) :])


def _find_style(render: Render, support: TemplateSupport) -> _Style:
    asked, answer = as_turn(Message("user", ASK)), Message("assistant", ANSWER, thinking=THINKING * support.thinking)
    try:
        question, prompt = render([asked], None), render([asked], None, True)
        text = render([asked, as_turn(answer)], None)
    except TemplateFailure:
        return _Style("", "", None, f"\n{_CLOSED}\n\n")
    added = prompt[shared_length(question, prompt) :]
    if support.thinking:
        head, _, rest = text.partition(THINKING)
        before = head[len(prompt) :] if head.startswith(prompt) else None
        return _Style(prompt, added, before, rest.partition(ANSWER)[0])
    # A template that does not render reasoning may still close the section that its prompt opens.
    between = text[shared_length(prompt, text) :].partition(ANSWER)[0]
    after = between[between.index(_CLOSED) :] if _CLOSED in between else f"\n{_CLOSED}\n\n"
    return _Style(prompt, added, None, after)


def _begin_where_asked(conversation: Conversation, found: Found, prompts: Sequence[str | None]) -> Asked:
    """Moves the start of each answer to the end of its generation prompt, if the prompt precedes it."""
    text, answers, not_asked, earliest = conversation.text, list(found.answers), [], 0
    begins: dict[int, int] = {}
    for number, (answer, prompt) in enumerate(zip(found.answers, prompts, strict=True)):
        if prompt is not None and earliest <= len(prompt) <= answer.start and text.startswith(prompt):
            answers[number] = Span(len(prompt), answer.end)
            begins[answer.start] = len(prompt)
        else:
            not_asked.append(number)
        earliest = answer.end
    thinking = [Span(begins.get(span.start, span.start), span.end) for span in found.thinking]
    return Asked(text, replace(found, answers=answers, thinking=thinking), frozenset(not_asked))


def _put_behind_prompt(
    begun: Asked, conversation: Conversation, found: Found, own: int, reasoning: tuple[str, str, str]
) -> Asked:
    """Appends the last answer to its generation prompt, for a conversation that does not continue from that prompt.

    Args:
        begun: The generation prompt of the last answer.
        conversation: The conversation, with a last answer without reasoning.
        found: Its answers.
        own: Where the last answer's own text starts.
        reasoning: The text before the reasoning, the reasoning, and the text after it.
    """
    begin, last = len(begun.text), found.answers[-1]
    text = begun.text + "".join(reasoning) + conversation.text[own:]
    shift = len(text) - len(conversation.text)
    parts = [Span(part.start + shift, part.end + shift) for part in found.parts if part.start >= own]
    thinking = []
    if reasoning[1]:
        closing = THINK_END.match(reasoning[2])
        thinking = [Span(begin, begin + len(reasoning[0] + reasoning[1]) + (closing.end() if closing else 0))]
    answers = [*begun.found.answers, Span(begin, last.end + shift)]
    joined = Found(answers, [*begun.found.parts, *parts], [*begun.found.thinking, *thinking])
    return Asked(text, joined, begun.not_asked, "" if reasoning[1] else reasoning[2])


def without_reasoning(messages: Sequence[Message], asked: Asked) -> set[int]:
    """Returns the indices of earlier answers that the text shows without the reasoning that the row has."""
    spoken = [message for message in messages if message.role == "assistant"]
    bare = set()
    for number, (message, span) in enumerate(zip(spoken[:-1], asked.found.answers, strict=False)):
        if message.thinking or _OPENED in message.content:
            reasoning = separate_thinking(message).thinking.strip()
            if reasoning and reasoning not in asked.text[span.start : span.end]:
                bare.add(number)
    return bare
