"""The chat template that is saved with a merged model."""

from __future__ import annotations

from lamina.chat.bare import BARE, CHAT
from lamina.chat.template import ChatTemplate
from lamina.chat.template_source import own_templates


def saved_source(template: ChatTemplate) -> str | dict[str, str] | None:
    """Returns the template to save with a merged model; None if it is the model's own.

    It sets `enable_thinking` and `kwargs` itself, to the values used in training, unless the caller sets them. The
    model's own template stays next to the one for bare text, so that the merged model can be trained on conversations.
    """
    if template.name == BARE and (own := own_templates(template.tokenizer)):
        return {"default": template.source, CHAT: own["default"]}
    told = (
        {template.switch: template.enable_thinking} if template.enable_thinking is not None and template.switch else {}
    )
    told |= template.kwargs
    if not told:
        return None if template.name == "model" else template.source
    head = "".join(f"{{%- set {name} = {name} if {name} is defined else {value!r} %}}" for name, value in told.items())
    # Otherwise, the newline after the block would be trimmed.
    source, tool_source = (f"{head}{{{{ '' }}}}{text}" for text in (template.source, template.tool_source))
    return {"default": source, "tool_use": tool_source} if template.tool_source else source
