"""The keyword arguments that a model is called with for a batch, in each layout."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel

from lamina.compute.ops.shapes import repeating_size
from lamina.data.batch import Batch


def model_inputs(batch: Batch) -> dict[str, Any]:
    """Builds the keyword arguments for the model or its decoder.

    On the CPU and with lamina's attention, a filler document at the end rounds the length up to one that repeats (see
    `ops.shapes`). A model that runs its own attention gets as few arguments as possible, since it may accept nothing
    but token ids; it separates the documents of one sequence by their position ids, as transformers does.
    """
    layout = batch.layout
    if layout.padded:
        return {"input_ids": _padded_rows(batch), "use_cache": False}
    if layout.own_attention and not layout.together:
        return {"input_ids": batch.input_ids, "use_cache": False}
    pads = batch.input_ids.device.type == "cpu" and batch.parts == 1
    filler = repeating_size(batch.tokens) - batch.tokens if pads else 0
    positions = torch.arange(filler, device=batch.input_ids.device)[None]
    inputs = {
        "input_ids": F.pad(batch.input_ids, (0, filler)),
        "position_ids": torch.cat([batch.position_ids, positions], dim=1),
        "use_cache": False,
    }
    if not layout.own_attention:
        lengths = batch.document_lengths
        inputs["document_lengths"] = [*lengths, filler] if filler else lengths
    return inputs


def _padded_rows(batch: Batch) -> torch.Tensor:
    """The documents as rows, (documents, longest), each padded on the right with its own last token.

    There is no mask: a causal model makes the same of the tokens before, whatever follows.
    """
    ids = batch.input_ids[0]
    lengths = torch.tensor(batch.document_lengths)
    places = torch.minimum(torch.arange(int(lengths.max()))[None], lengths[:, None] - 1)
    return ids[(places + (lengths.cumsum(0) - lengths)[:, None]).to(ids.device)]


def token_rows(batch: Batch, output: torch.Tensor) -> torch.Tensor:
    """Returns what a model gives for the tokens of a batch, end to end.

    Args:
        batch: What it was called with (`model_inputs`).
        output: (1, T, ...), where tokens of a filler may follow; or (documents, longest, ...) of padded rows.

    Returns:
        (T, ...), or more with a filler.
    """
    if not batch.layout.padded:
        return output[0]
    return torch.cat([row[:length] for row, length in zip(output, batch.document_lengths, strict=True)])


def predicting_states(decoder: nn.Module, batch: Batch) -> torch.Tensor:
    """Computes the hidden states that predict a batch's supervised tokens: (N, D)."""
    hidden_TD = token_rows(batch, decoder(**model_inputs(batch)).last_hidden_state)
    return hidden_TD.index_select(0, batch.predicting)


def predicting_logits(model: PreTrainedModel, batch: Batch) -> torch.Tensor:
    """Computes the logits that predict a batch's supervised tokens by the whole model: (N, vocabulary)."""
    if batch.layout.padded:
        return token_rows(batch, model(**model_inputs(batch)).logits).index_select(0, batch.predicting)
    logits_TV = model(**model_inputs(batch), logits_to_keep=batch.predicting).logits[0]
    ignored = logits_TV.shape[0] != batch.supervised_tokens  # the model ignored `logits_to_keep`
    return logits_TV.index_select(0, batch.predicting) if ignored else logits_TV
