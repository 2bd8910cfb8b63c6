"""Bare text: a prompt and its completion as they are, without a chat template (`data.chat: false`).

The text is BOS if the tokenizer adds it, the prompt, the completion, and EOS, as in TRL's prompt-completion format. It
is also a chat template in Jinja, with one user turn and one assistant turn, so that an adapter's lock, a merged model
and a server refer to it as to any other template.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lamina.chat.message import Message
from lamina.chat.spans import Rendered, Span
from lamina.errors import DataError

BARE = "bare"
"""Its name in locks and reports."""

CHAT = "chat"
"""Name of the model's own chat template in a merged model whose default template is the bare one."""

SOURCE = """\
{%- if messages | length > 2 or messages[0]['role'] != 'user' -%}
    {{- raise_exception('bare text is one prompt and its completion') -}}
{%- endif -%}
{{- messages[0]['content'] -}}
{%- if messages | length == 2 -%}
    {{- messages[1]['content'] -}}
    {{- eos_token -}}
{%- endif -%}"""

BOS = "{{- bos_token -}}\n"
"""What precedes `SOURCE` if the tokenizer adds its BOS."""


def is_bare_source(source: str) -> bool:
    """Returns whether a chat template is the one for bare text."""
    return source in (SOURCE, BOS + SOURCE)


def bare_turns(messages: Sequence[Message], tools: bool, bos: str, eos: str) -> list[Message]:
    """Returns the prompt, and the completion if there is one, without the BOS and EOS that the text gets anyway.

    Args:
        messages: The turns.
        tools: Whether the conversation has tools.
        bos: The token that the text begins with; empty if it gets none.
        eos: The token that it ends with.

    Raises:
        DataError: It is a conversation.
    """
    roles = [message.role for message in messages]
    structured = tools or any(message.tool_calls or message.thinking for message in messages)
    if structured or roles not in (["user"], ["user", "assistant"]):
        what = "with tools or separate reasoning" if structured else f"with the turns {', '.join(roles)}"
        raise DataError(
            f"bare text is one prompt and its completion, and this is a conversation {what}. Fix: use the chat "
            "template (data.chat: true in training, --chat afterwards), or give a prompt and a completion."
        )
    prompt, *answers = messages
    while bos and prompt.content.startswith(bos):
        prompt = replace(prompt, content=prompt.content.removeprefix(bos))
    return [prompt, *(replace(answer, content=without_end(answer.content, eos)) for answer in answers)]


def render_bare(messages: Sequence[Message], text: str, eos: str) -> Rendered:
    """Returns the rendering of a prompt and its completion, which starts where the prompt ends.

    Args:
        messages: The turns.
        text: Their text.
        eos: The token that it ends with.
    """
    begin = len(text) - len(eos) - len(messages[-1].content) if len(messages) == 2 else len(text)
    return Rendered(text, (Span(begin, len(text)),) if begin < len(text) else ())


def without_end(text: str, eos: str) -> str:
    """Returns a text without the EOS tokens at its end, and without the white space between and after them."""
    while eos and text.rstrip().endswith(eos):
        text = text.rstrip().removesuffix(eos)
    return text
