"""Which tokens end an answer: one rule for generating, for evaluation, and for every folder that is written."""

from __future__ import annotations

from lamina.chat.template import ChatTemplate


def with_stop_ids(own: int | list[int] | None, template: ChatTemplate | None) -> list[int]:
    """The tokens that end an answer.

    Args:
        own: What the model itself ends with: `eos_token_id` of one of its files.
        template: What it was, or will be, trained and asked with; None for the model's own alone.

    Returns:
        Ids, the model's own first and then those that the template ends a turn with, each once.
    """
    ids = own if isinstance(own, list) else [] if own is None else [own]
    return list(dict.fromkeys([*ids, *(template.stop_token_ids if template else [])]))
