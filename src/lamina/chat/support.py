"""Finds out what a chat template supports, by rendering small conversations of words found nowhere else."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from lamina.chat.bounds import TemplateFailure
from lamina.chat.message import Message, ToolCall
from lamina.chat.turns import as_turn, with_short_ids

ASK, ANSWER = "lamina-ping", "lamina-pong"
_ASK, _ANSWER, _OTHER = Message("user", ASK), Message("assistant", ANSWER), Message("assistant", "lamina-pang")
_SYSTEM, THINKING, _RESULT = "lamina-system", "lamina-thinking", "lamina-result"
_ARGUMENT, _TEXT = "lamina-argument", "lamina-text"
_TOOL = {
    "type": "function",
    "function": {
        "name": "lamina_probe",
        "description": "Does nothing.",
        "parameters": {
            "type": "object",
            "properties": {"word": {"type": "string", "description": "Any."}},
            "required": ["word"],
        },
    },
}


class Render(Protocol):
    """Renders turns given as dicts. Raises `TemplateFailure`."""

    def __call__(
        self, turns: list[dict[str, Any]], schemas: list[dict[str, Any]] | None, add_generation_prompt: bool = False
    ) -> str: ...


@dataclass(frozen=True)
class TemplateSupport:
    """What a template supports.

    Attributes:
        system: Whether the text includes a system turn.
        drops_system: Whether a system turn is dropped without an error.
        thinking: Whether the template renders an answer's reasoning.
        drops_thinking: Whether reasoning in the content of an earlier answer is dropped.
        tools: Whether the template renders tools, calls and results, with a token after each turn of calls.
        text_with_calls: Whether the text of a turn with calls is kept.
        short_ids: Whether call ids must have nine letters and digits.
        call_stop: The token that ends a turn of calls.
        adds_call_stop: Whether that token opens the result's turn, so that calls in the last turn have no stop token.
        text: All renderings, concatenated.
    """

    system: bool
    drops_system: bool
    thinking: bool
    drops_thinking: bool
    tools: bool
    text_with_calls: bool
    short_ids: bool
    call_stop: str
    adds_call_stop: bool
    text: str

    def repeats(self, bos: str) -> bool:
        """Returns whether BOS occurs twice before the first words. A token that opens every turn may."""
        for text in self.text.split("\0"):
            before, asked, after = text.partition(ASK)
            opens_turns = bos in after.partition(ANSWER)[0]
            if 2 * bos in text or (asked and before.count(bos) > 1 and not opens_turns):
                return True
        return False


def find_support(render: Render, special: Iterable[str]) -> TemplateSupport:
    """Renders sample conversations to find out what the template supports.

    Args:
        render: The template.
        special: The tokenizer's special tokens.
    """

    def attempt(*messages: Message, tools: list[dict[str, Any]] | None = None) -> str:
        try:
            return render([as_turn(message) for message in messages], tools)
        except TemplateFailure:
            return ""

    system = attempt(Message("system", _SYSTEM), _ASK, _ANSWER)
    thinking = attempt(_ASK, Message("assistant", ANSWER, thinking=THINKING))
    earlier = attempt(_ASK, Message("assistant", f"<think>\n{THINKING}\n</think>\n\n{ANSWER}"), _ASK, _OTHER)
    tools, call_stop, added, short_ids = "", "", False, False
    for short_ids in (False, True):
        tools, call_stop, added = _try_tools(attempt, tuple(special), short_ids)
        if call_stop:
            break
    return TemplateSupport(
        system=_SYSTEM in system,
        drops_system=bool(system) and _SYSTEM not in system,
        thinking=THINKING in thinking,
        drops_thinking=THINKING not in earlier and ANSWER in earlier,
        tools=bool(call_stop),
        text_with_calls=_TEXT in tools,
        short_ids=bool(call_stop) and short_ids,
        call_stop=call_stop,
        adds_call_stop=added,
        text="\0".join([system, thinking, tools, attempt(_ASK, _ANSWER, _ASK)]),
    )


def _try_tools(attempt: Any, special: Sequence[str], short_ids: bool) -> tuple[str, str, bool]:
    """Returns a rendering with tools, the token after a call, and whether that token belongs to the result's turn.

    The token is empty if the template does not support tools.
    """
    text = call_stop = with_text = ""
    is_results = False
    token = "(" + "|".join(map(re.escape, sorted(special, key=len, reverse=True))) + ")"
    for number in ("", "call_lamina_probe"):  # without and with ids, as in rows
        call = Message("assistant", "", (ToolCall("lamina_probe", {"word": _ARGUMENT}, number),))
        result = Message("tool", _RESULT, name="lamina_probe", tool_call_id=number)
        messages = (_ASK, call, result, _ANSWER)
        if short_ids:
            messages = with_short_ids(messages)
        ended = attempt(*messages[:2], tools=[_TOOL])
        with_text = attempt(_ASK, replace(messages[1], content=_TEXT), tools=[_TOOL])
        text = attempt(*messages, tools=[_TOOL])
        match = re.search(token + r"\s*\Z", ended)
        is_results = match is None
        if is_results and text.startswith(ended.rstrip()):
            match = re.compile(r"\s*" + token).match(text, len(ended.rstrip()))
        listed, _, rest = attempt(_ASK, tools=[_TOOL]).partition("lamina_probe")
        called, _, answered = text.partition(_ARGUMENT)
        if not (match and listed and rest and called.count("lamina_probe") > 1 and _RESULT in answered):
            return text, "", False
        call_stop = match.group(1)
        if call_stop not in answered.partition(_RESULT)[0]:
            return text, "", False
    return f"{text}\0{with_text}", call_stop, is_results
