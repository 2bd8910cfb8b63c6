"""Finds out by trial what a chat template has a place for, with small conversations of words found nowhere else."""

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
_ARGUMENT, _BESIDE = "lamina-argument", "lamina-beside"
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
    """Renders turns as dicts, raising `TemplateFailure`."""

    def __call__(
        self, turns: list[dict[str, Any]], schemas: list[dict[str, Any]] | None, add_generation_prompt: bool = False
    ) -> str: ...


@dataclass(frozen=True)
class Probe:
    """What a template does.

    Attributes:
        system: Whether a system turn is in the text.
        drops_system: Whether a system turn is left out without an error.
        thinking: Whether the reasoning of an answer has a place.
        drops_thinking: Whether reasoning in the text of an earlier answer is left out.
        tools: Whether tools, calls and results have a place, each call turn with a token that ends it or comes next.
        text_beside_calls: Whether the words of a turn with calls are kept.
        short_ids: Whether calls need ids of nine letters and digits.
        call_stop: The token that ends a turn of calls.
        adds_call_stop: Whether it opens the result's turn, so that a last turn of calls has none.
        text: All that was rendered.
    """

    system: bool
    drops_system: bool
    thinking: bool
    drops_thinking: bool
    tools: bool
    text_beside_calls: bool
    short_ids: bool
    call_stop: str
    adds_call_stop: bool
    text: str

    def repeats(self, bos: str) -> bool:
        """Whether BOS stands twice before the first words; a token that opens every turn may."""
        for text in self.text.split("\0"):
            before, asked, after = text.partition(ASK)
            opens_turns = bos in after.partition(ANSWER)[0]
            if 2 * bos in text or (asked and before.count(bos) > 1 and not opens_turns):
                return True
        return False


def probe_template(render: Render, special: Iterable[str]) -> Probe:
    """Tries the template out.

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
    return Probe(
        system=_SYSTEM in system,
        drops_system=bool(system) and _SYSTEM not in system,
        thinking=THINKING in thinking,
        drops_thinking=THINKING not in earlier and ANSWER in earlier,
        tools=bool(call_stop),
        text_beside_calls=_BESIDE in tools,
        short_ids=bool(call_stop) and short_ids,
        call_stop=call_stop,
        adds_call_stop=added,
        text="\0".join([system, thinking, tools, attempt(_ASK, _ANSWER, _ASK)]),
    )


def _try_tools(attempt: Any, special: Sequence[str], short_ids: bool) -> tuple[str, str, bool]:
    """A rendering with tools, the token that ends a call in it, and whether that is the result's.

    The token is empty where the template has no place for tools.
    """
    text = call_stop = beside = ""
    is_results = False
    token = "(" + "|".join(map(re.escape, sorted(special, key=len, reverse=True))) + ")"
    for number in ("", "call_lamina_probe"):  # without and with ids, as rows have them
        call = Message("assistant", "", (ToolCall("lamina_probe", {"word": _ARGUMENT}, number),))
        result = Message("tool", _RESULT, name="lamina_probe", tool_call_id=number)
        messages = (_ASK, call, result, _ANSWER)
        if short_ids:
            messages = with_short_ids(messages)
        ended = attempt(*messages[:2], tools=[_TOOL])
        beside = attempt(_ASK, replace(messages[1], content=_BESIDE), tools=[_TOOL])
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
    return f"{text}\0{beside}", call_stop, is_results
