"""Turns whose keys and roles have names of their own: a Jinja template over the row that writes them with usual ones.

LLaMA-Factory's `tags` name them: `{role_tag: speaker, content_tag: text, user_tag: customer, assistant_tag: agent}`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

# The roles of turns, and other names that lamina reads as them: those of `chat/message.py`, which a translation does
# without.
ROLES = ("system", "user", "assistant", "tool")
ROLE_ALIASES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "developer": "system",
    "function": "tool",
    "ipython": "tool",
    "observation": "tool",
    "tool_response": "tool",
}

# LLaMA-Factory's tags of roles, and the role that each stands for. A call is a turn of its own there.
_ROLE_TAGS = {
    "user_tag": "user",
    "assistant_tag": "assistant",
    "system_tag": "system",
    "observation_tag": "tool",
    "function_tag": "function_call",
}
_CALLS = ("function_call", "tool_call")


def role_of(name: str) -> str:
    """Returns the role that lamina reads a name as; empty if it is none.

    >>> role_of("gpt"), role_of("customer")
    ('assistant', '')
    """
    role = ROLE_ALIASES.get(name, name)
    return role if role in ROLES else "function_call" if name in _CALLS else ""


def turns_template(column: str, tags: Mapping[str, Any]) -> str:
    """Returns a template for `data.columns.messages`; empty if all names are those that lamina reads anyway.

    Args:
        column: The column with the turns.
        tags: LLaMA-Factory's tags.

    Raises:
        ValueError: A template is needed, and cannot name the column.
    """
    renamed = {str(tags[tag]): role for tag, role in _ROLE_TAGS.items() if tags.get(tag)}
    keys = {"role": tags.get("role_tag") or "from", "content": tags.get("content_tag") or "value"}
    usual = keys["role"] in ("role", "from") and keys["content"] in ("content", "value")
    if usual and all(role_of(name) == role for name, role in renamed.items()):
        return ""
    if not column.isidentifier():
        message = "a template that renames its turns cannot name the column; give the column a name of letters and '_'"
        raise ValueError(f"{column!r}: {message}")
    role, content = (_key(given, other) for given, other in zip(keys.values(), ("role", "content"), strict=True))
    names = json.dumps(renamed, ensure_ascii=False)
    return (
        f"{{% set roles = {names} %}}[{{% for turn in {column} %}}"
        f"{{{{ {{'role': roles[{role}] | default({role}), 'content': {content}}} | tojson }}}}"
        "{{ '' if loop.last else ',' }}{% endfor %}]"
    )


def _key(given: str, other: str) -> str:
    """Returns an expression for a turn's value; a key that was not named may have OpenAI's name."""
    key = f"turn[{json.dumps(given, ensure_ascii=False)}]"
    return f"({key} | default(turn['{other}']))" if given in ("from", "value") else key
