"""From a body to prompts: turns as the chat template takes them, or texts and token ids."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from lamina.chat.message import Message, ToolCall
from lamina.chat.template import ChatTemplate
from lamina.engine.generator import Request
from lamina.server.errors import bad_request
from lamina.server.schemas.chat import ChatBody, ChatMessage, ChatTemplateKwargs, GivenCall, Tool
from lamina.server.schemas.completions import CompletionBody, TokenizeBody
from lamina.server.settings import LimitSettings


def chat_request(body: ChatBody, template: ChatTemplate, adapter: str | None) -> Request:
    """The request of a conversation, still to be rendered.

    Raises:
        ApiError: A turn cannot be asked.
    """
    tools = () if body.tool_choice == "none" else tuple(map(_tool, body.tools or ()))
    if body.tool_choice == "auto" and not body.tools:
        raise bad_request("tool_choice", "needs tools")
    turns = [_message(message, f"messages.{place}") for place, message in enumerate(body.messages)]
    kwargs = _kwargs(body.chat_template_kwargs, template)
    return Request(messages=turns, adapter=adapter, tools=tools, template_kwargs=kwargs)


def completion_requests(
    body: CompletionBody, template: ChatTemplate, adapter: str | None, limits: LimitSettings
) -> list[Request]:
    """A request for each prompt.

    Raises:
        ApiError: There are too many.
    """
    prompts = prompts_of(body)
    if len(prompts) > limits.prompts:
        raise bad_request("prompt", f"holds {len(prompts)} prompts; at most {limits.prompts} are allowed")
    begins = begin_of(template, body.add_special_tokens)
    return [
        Request(prompt=_begun(prompt, begins), adapter=adapter)
        if isinstance(prompt, str)
        else Request(token_ids=prompt, adapter=adapter)
        for prompt in prompts
    ]


def prompts_of(body: CompletionBody) -> list[str | list[int]]:
    """The prompts of a completion: texts or token ids."""
    prompt = body.prompt
    if isinstance(prompt, str) or isinstance(prompt[0], int):
        return [prompt]  # pyright: ignore[reportReturnType] - a list of ids, by its first
    return list(prompt)  # pyright: ignore[reportReturnType]


def tokenize_request(body: TokenizeBody, template: ChatTemplate, adapter: str | None) -> Request:
    """The request whose tokens are asked for.

    Raises:
        ApiError: Not exactly one of prompt and messages is given.
    """
    if (body.prompt is None) == (body.messages is None):
        raise bad_request("prompt", "give one of prompt and messages")
    if body.messages is None:
        for name in ("tools", "chat_template_kwargs"):
            if getattr(body, name) is not None:
                raise bad_request(name, "is for messages. Leave it out")
        return Request(prompt=_begun(body.prompt or "", begin_of(template, body.add_special_tokens)), adapter=adapter)
    if body.add_special_tokens:
        raise bad_request("add_special_tokens", "is for prompt: the chat template writes its own. Leave it out")
    turns = [_message(message, f"messages.{place}") for place, message in enumerate(body.messages)]
    kwargs = _kwargs(body.chat_template_kwargs, template)
    return Request(messages=turns, adapter=adapter, tools=tuple(map(_tool, body.tools or ())), template_kwargs=kwargs)


def begin_of(template: ChatTemplate, wanted: bool | None) -> str:
    """What a text begins with: the BOS token, where the tokenizer adds it to plain text."""
    return str(template.tokenizer.bos_token) if wanted is not False and template.adds_bos else ""


def _begun(text: str, begins: str) -> str:
    return text if text.startswith(begins) else begins + text


def _message(message: ChatMessage, place: str) -> Message:
    role = "system" if message.role == "developer" else message.role
    content = message.content
    if not isinstance(content, str):
        content = "".join(part.text for part in content or ())
    for name, of in (("tool_calls", "assistant"), ("reasoning_content", "assistant"), ("name", "tool")):
        if getattr(message, name) and role != of:
            raise bad_request(f"{place}.{name}", f"is for turns of {of}. Leave it out")
    if message.tool_call_id and role != "tool":
        raise bad_request(f"{place}.tool_call_id", "is for turns of tool. Leave it out")
    if message.content is None and not message.tool_calls:
        raise bad_request(f"{place}.content", "is required")
    calls = [_call(call, f"{place}.tool_calls.{number}") for number, call in enumerate(message.tool_calls or ())]
    return Message(
        role,
        content,
        tuple(calls),
        thinking=message.reasoning_content or "",
        name=message.name or "",
        tool_call_id=message.tool_call_id or "",
    )


def _call(call: GivenCall, place: str) -> ToolCall:
    try:
        arguments = json.loads(call.function.arguments or "{}")
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        raise bad_request(f"{place}.function.arguments", "must be a JSON object, as text")
    return ToolCall(call.function.name, arguments, call.id)


def _tool(tool: Tool) -> dict[str, Any]:
    return tool.model_dump(exclude_none=True)


def _kwargs(given: ChatTemplateKwargs | None, template: ChatTemplate) -> dict[str, Any] | None:
    found = {} if given is None else given.model_dump(exclude_none=True)
    for name in found:
        if name != template.switch:
            known = f"it reads {template.switch!r}" if template.switch else "it reads none"
            raise bad_request(f"chat_template_kwargs.{name}", f"the chat template does not read it; {known}")
    return found or None


def check_room(ids: Sequence[int], max_tokens: int, given: bool, room: int | None, param: str) -> int:
    """How long an answer may be.

    Args:
        ids: The prompt.
        max_tokens: The longest answer.
        given: Whether the request asked for that.
        room: Tokens that both may have together; None for no limit.
        param: The field of the prompt.

    Raises:
        ApiError: There is no room.
    """
    if room is None:
        return max_tokens
    left = room - len(ids)
    if left < 1:
        message = f"has {len(ids)} tokens, and there is room for {room}, the answer's included. Shorten it"
        raise bad_request(param, message, "context_length_exceeded")
    if given and max_tokens > left:
        message = f"{max_tokens} and the prompt's {len(ids)} tokens are more than there is room for, {room}"
        raise bad_request("max_tokens", message, "context_length_exceeded")
    return min(max_tokens, left)
