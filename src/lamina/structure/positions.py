"""How many positions a model was made for, and whether more are an error or only a risk."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

# OPT's table begins with two rows that stand for no position.
_MORE_ROWS = (0, 2)


def declared_positions(model: PreTrainedModel) -> int | None:
    """`max_position_embeddings` of the model's configuration; None if it names no number."""
    declared = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return declared if isinstance(declared, int) and declared > 0 else None


def has_position_table(model: PreTrainedModel) -> bool:
    """Whether positions are rows of a table, as GPT-2's are, so that there are none beyond the last one.

    Rotary and ALiBi positions are computed and go on for ever, if not well.
    """
    declared = declared_positions(model)
    if declared is None:
        return False
    tokens = model.get_input_embeddings()
    return any(
        isinstance(module, nn.Embedding) and module is not tokens and module.num_embeddings - declared in _MORE_ROWS
        for module in model.modules()
    )
