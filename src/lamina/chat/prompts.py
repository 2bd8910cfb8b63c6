"""Holds what is trained to what is asked: before an answer stands the prompt of use, to the letter.

In use a model gets the turns so far, rendered with `add_generation_prompt`, and goes on from there. So

* what a template writes between that prompt and an answer (an empty reasoning section, the header of a channel, a
  space) is left to the model, and is learned with the answer;
* where a conversation does not go on as the prompt ends, its last answer is put behind the prompt itself. If the prompt
  opens a reasoning section, the answer closes it: after its reasoning, or at once;
* an earlier answer that the conversation shows after another text than its prompt, or without its reasoning, is read
  but not learned.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from lamina.chat.answers import THINK_END, AnswerFinder, Conversation, Found
from lamina.chat.bounds import TemplateFailure
from lamina.chat.message import Message
from lamina.chat.probe import ANSWER, ASK, THINKING, Probe, Render
from lamina.chat.spans import Span, shared_length
from lamina.chat.turns import as_turn, thinking_apart
from lamina.errors import DataError

_OPENED = "<think>"
_CLOSED = "</think>"


@dataclass(frozen=True, slots=True)
class Asked:
    """A conversation's text with its answers, as they are asked for.

    Attributes:
        text: The conversation.
        found: Its answers, each from the end of its prompt on.
        not_asked: Which of them (places in `found.answers`) stand after another text than their prompt.
        opening: What the template writes between the last prompt and the words of an answer without reasoning.
    """

    text: str
    found: Found
    not_asked: frozenset[int]
    opening: str = ""


class Prompts:
    """The prompts of use of one template's conversations.

    Args:
        name: Of the template, for errors.
        render: The template, raising `DataError` where it refuses a conversation.
        try_render: The template, raising `TemplateFailure`.
        finder: Finds answers in what it renders.
        probe: What it has a place for.
        added_stop: The stop token that has to be added to a last answer; empty where the template writes it.
        fix: What to do where a row reasons and the prompt does not let it.
    """

    def __init__(
        self,
        name: str,
        render: Render,
        try_render: Render,
        finder: AnswerFinder,
        probe: Probe,
        added_stop: str,
        fix: str,
    ) -> None:
        self._name = name
        self._render = render
        self._try_render = try_render
        self._finder = finder
        self._probe = probe
        self._added_stop = added_stop
        self._fix = fix

    def ask(self, conversation: Conversation) -> Asked:
        """The conversation with each answer beginning where its prompt ends.

        Raises:
            DataError: An answer cannot be found, the template refuses to ask for the last one, or its prompt leaves
                no place for the reasoning.
        """
        earlier = self._earlier(conversation)
        if conversation.messages[-1].role != "assistant":
            return _begin_where_asked(conversation, self._finder.find(conversation), earlier)
        prompt = self._render(conversation.turns[:-1], conversation.schemas, True)
        return self._ask_for_last(conversation, [*earlier, prompt], prompt)

    def _earlier(self, conversation: Conversation) -> list[str | None]:
        """The prompts of all answers but the last; None where the template refuses to ask."""
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
        apart = last if self._probe.thinking else thinking_apart(last)
        if apart.thinking and not opened and self._probe.drops_thinking and not self._probe.thinking:
            raise self._rules_out_reasoning(prompt)
        if opened and not self._probe.thinking:
            conversation = self._with_last(conversation, replace(apart, thinking=""))
        found, conversation = self._find(conversation)
        asked = _begin_where_asked(conversation, found, prompts)
        is_there = len(prompts) - 1 not in asked.not_asked
        own = found.answers[-1].start
        if is_there and (self._probe.thinking or not (opened and apart.thinking)):
            return replace(asked, opening=conversation.text[asked.found.answers[-1].start : own])
        head = ""
        if apart.thinking:
            head = self._head_of_reasoning(prompt, opened)
            found, conversation = self._find(self._with_last(conversation, replace(apart, thinking="")))
            own = found.answers[-1].start
        begun = self._asked_before(conversation, prompts[:-1], prompt)
        between = style.after if apart.thinking or opened else ""
        return _put_behind_prompt(begun, conversation, found, own, (head, apart.thinking.strip("\n"), between))

    def _asked_before(self, conversation: Conversation, prompts: Sequence[str | None], prompt: str) -> Asked:
        """The prompt of the last answer, with the answers before it."""
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
        """What the model writes after a prompt before it reasons.

        Raises:
            DataError: The prompt does not let it reason.
        """
        style = self._style
        if style.before is not None and prompt.endswith(style.generation_prompt):
            return style.before
        if not opened:
            raise self._rules_out_reasoning(prompt)
        return ""

    def _rules_out_reasoning(self, prompt: str) -> DataError:
        return DataError(
            f"the answer has reasoning, but the prompt of the {self._name} chat template ends in {prompt[-40:]!r}, "
            f"where none begins, so it would be trained on what it is never asked. Fix: {self._fix}."
        )

    def _with_last(self, conversation: Conversation, last: Message) -> Conversation:
        """The conversation with another last turn."""
        turns = [*conversation.turns[:-1], as_turn(last)]
        text = self._render(turns, conversation.schemas)
        return Conversation([*conversation.messages[:-1], last], turns, conversation.schemas, text)

    def _find(self, conversation: Conversation) -> tuple[Found, Conversation]:
        """The answers of a conversation that ends in one; where that has no stop token, with one."""
        found, probe = self._finder.find(conversation), self._probe
        added = self._added_stop
        if conversation.messages[-1].tool_calls:
            added = probe.call_stop if probe.adds_call_stop else ""
        if not added:
            return found, conversation
        start, end = found.answers[-1].start, found.answers[-1].end
        text = conversation.text[:end] + added
        parts = [Span(part.start, len(text)) if part.end == end else part for part in found.parts]
        found = replace(found, answers=[*found.answers[:-1], Span(start, len(text))], parts=parts)
        return found, replace(conversation, text=text)

    @cached_property
    def _style(self) -> _Style:
        return _find_style(self._try_render, self._probe)


@dataclass(frozen=True)
class _Style:
    """How a template writes a last answer's reasoning.

    Attributes:
        prompt: The prompt of use of the conversation that it was tried with.
        generation_prompt: What of it is not there without `add_generation_prompt`.
        before: What stands between the prompt and the reasoning; None where the text does not begin with the prompt.
        after: What stands between the reasoning and the answer.
    """

    prompt: str
    generation_prompt: str
    before: str | None
    after: str

    def is_opened_by(self, prompt: str, text: str) -> bool:
        """Whether a prompt of use ends inside a reasoning section; `text` is the conversation that it leads up to."""
        if prompt.rstrip().endswith(_OPENED):
            return True
        if self.before is None or self.before.strip() or text.startswith(prompt):
            return False
        return self.prompt.endswith(prompt[shared_length(prompt, text) :])


def _find_style(render: Render, probe: Probe) -> _Style:
    asked, answer = as_turn(Message("user", ASK)), Message("assistant", ANSWER, thinking=THINKING * probe.thinking)
    try:
        question, prompt = render([asked], None), render([asked], None, True)
        text = render([asked, as_turn(answer)], None)
    except TemplateFailure:
        return _Style("", "", None, f"\n{_CLOSED}\n\n")
    added = prompt[shared_length(question, prompt) :]
    if probe.thinking:
        head, _, rest = text.partition(THINKING)
        before = head[len(prompt) :] if head.startswith(prompt) else None
        return _Style(prompt, added, before, rest.partition(ANSWER)[0])
    # A template without a place for reasoning may still close the section that its prompt opens.
    between = text[shared_length(prompt, text) :].partition(ANSWER)[0]
    after = between[between.index(_CLOSED) :] if _CLOSED in between else f"\n{_CLOSED}\n\n"
    return _Style(prompt, added, None, after)


def _begin_where_asked(conversation: Conversation, found: Found, prompts: Sequence[str | None]) -> Asked:
    """Lets each answer begin where its prompt ends, if it stands after it."""
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
    """Puts the last answer behind its prompt, where the conversation does not go on as the prompt ends.

    Args:
        begun: The prompt of use of the last answer.
        conversation: The conversation, its last answer without reasoning.
        found: Its answers.
        own: Where the last one's own words begin.
        reasoning: What stands before the reasoning, the reasoning, and what stands behind it.
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
    """Which earlier answers (places among the answers) the text shows without the reasoning that the row gives them."""
    spoken = [message for message in messages if message.role == "assistant"]
    bare = set()
    for number, (message, span) in enumerate(zip(spoken[:-1], asked.found.answers, strict=False)):
        if message.thinking or _OPENED in message.content:
            reasoning = thinking_apart(message).thinking.strip()
            if reasoning and reasoning not in asked.text[span.start : span.end]:
                bare.add(number)
    return bare
