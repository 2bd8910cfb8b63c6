"""How many positions a model was trained for, and whether more are an error or only a risk."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

# Additional rows of a position table: OPT's begins with two rows that belong to no position.
_MORE_ROWS = (0, 2)


def declared_positions(model: PreTrainedModel) -> int | None:
    """Returns `max_position_embeddings` of the model's configuration; None if it is not set."""
    declared = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return declared if isinstance(declared, int) and declared > 0 else None


def has_position_table(model: PreTrainedModel) -> bool:
    """Whether positions are rows of an embedding table, as in GPT-2, so that longer inputs are an error.

    Rotary and ALiBi positions are computed, so longer inputs run, though quality may suffer.
    """
    declared = declared_positions(model)
    if declared is None:
        return False
    tokens = model.get_input_embeddings()
    return any(
        isinstance(module, nn.Embedding) and module is not tokens and module.num_embeddings - declared in _MORE_ROWS
        for module in model.modules()
    )
