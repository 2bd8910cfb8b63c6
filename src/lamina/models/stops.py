"""The tokens that end an answer: one rule for generation, for evaluation, and for every saved model."""

from __future__ import annotations

from lamina.chat.template import ChatTemplate


def with_stop_ids(own: int | list[int] | None, template: ChatTemplate | None) -> list[int]:
    """Combines the model's own stop tokens with those of the template.

    Args:
        own: The model's own stop tokens: `eos_token_id` of one of its files.
        template: The chat template for training and generation; None for the model's own stop tokens alone.

    Returns:
        Token ids without duplicates: first the model's own, then those that end a turn in the template.
    """
    ids = own if isinstance(own, list) else [] if own is None else [own]
    return list(dict.fromkeys([*ids, *(template.stop_token_ids if template else [])]))
