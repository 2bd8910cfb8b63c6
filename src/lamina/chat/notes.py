"""What a user should know about how a chat template is used."""

from __future__ import annotations

from lamina.chat.jinja import FIXED_DATE, mentions_date, needs_date
from lamina.chat.template import BUILTIN_TEMPLATES, ChatTemplate


def notes_of(template: ChatTemplate) -> list[str]:
    """Returns messages to the user about how this template is used."""
    notes = []
    if template.is_bare:
        notes.append("prompts and completions are bare text, without a chat template; the same holds afterwards")
    elif template.name in BUILTIN_TEMPLATES:
        notes.append(f"uses the built-in chat template '{template.name}'")
    elif template.is_file:
        notes.append(f"uses the chat template in {template.name}")
    if template.appends_stop and not template.is_bare:
        notes.append(f"the chat template writes no stop token after an answer, so {template.stop_token} is added")
    if mentions_date(template.source):
        given = f"{FIXED_DATE:%Y-%m-%d}" if needs_date(template.source) else "none, so that it uses its fallback"
        notes.append(f"the chat template asks for today's date and gets {given}: rows must be the same every day")
    return notes


def notes_on(template: ChatTemplate, *, tools: bool, thinking: bool) -> list[str]:
    """Returns messages to the user about data with tools, or with reasoning separate from the answers."""
    notes = []
    if tools and not template.for_tools.support.tools:
        notes.append("the chat template does not support tools: they are written as text, in the Hermes format")
    if thinking and template.thinking != "strip" and not template.support.thinking:
        notes.append("the chat template does not support reasoning: it is written between <think> and </think>")
    return notes
