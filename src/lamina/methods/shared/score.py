"""The head of a reward model or a classifier: scores of a hidden state, as in transformers' models for sequence
classification.

It is a part of the adapter, under the names that peft gives it (`modules_to_save: [score]` with the task SEQ_CLS), so
that it is saved, digested and loaded with the adapter's other tensors, and never lost.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from lamina.compute.fusion import model_inputs, token_rows
from lamina.compute.ops.adapter import AdapterModule
from lamina.compute.ops.row_forms import RowForm
from lamina.data.batch import Batch
from lamina.errors import ConfigError, Problem
from lamina.methods.shared.base import Injection, Saved, find_method, tensor_name
from lamina.structure.head import Head
from lamina.structure.layers import text_decoder

SCORE = "score"
SCORE_TENSOR = tensor_name(SCORE, "weight")

# Standard deviation of transformers' initial weights.
_SPREAD = 0.02


class ScoreHead(AdapterModule):
    """Computes s = h W^T in float32.

    Attributes:
        weight: W, (scores, hidden size), float32: one score of a reward model, or one for each class.
        classes: The classes' names, in the order of their scores; empty for a reward model.
    """

    merges = False

    def __init__(self, scores: int, width: int, device: torch.device, classes: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(scores, width, device=device))
        self.classes = classes

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden: (..., width) -> (..., scores), float32; 0 with the adapter off."""
        scores = hidden.float() @ self.weight.T
        return scores if self.enabled else torch.zeros_like(scores)

    def adapter_tensors(self) -> dict[str, nn.Parameter]:
        return {"weight": self.weight}

    def row_forms(self) -> tuple[RowForm, ...]:
        return ()  # logits do not depend on it

    def fold_in(self, model: PreTrainedModel, name: str) -> None:
        raise ConfigError(Problem("adapter", f"the adapter is {self.kind}.", "use it as an adapter"))

    @property
    def kind(self) -> str:
        """What it makes of the adapter, in words."""
        if self.classes or len(self.weight) > 1:
            return "a classifier, whose head is no part of a language model that it could be merged into"
        return "a reward model, whose score is no part of a language model that it could be merged into"


def attach_score(injection: Injection, seed: int, scores: int = 1, classes: tuple[str, ...] = ()) -> Injection:
    """Adds a head, drawn from `seed`, to an adapter that has none.

    Args:
        injection: The adapter.
        seed: Seed of the head's weights.
        scores: Number of scores: 1 for a reward model.
        classes: The classes' names, for a classifier.

    Raises:
        ConfigError: The model already has a module of that name, or the adapter has a head with other scores.
    """
    model = injection.model
    there = injection.layers.get(SCORE)
    if isinstance(there, ScoreHead):
        if len(there.weight) != scores or (there.classes and classes and there.classes != classes):
            message = (
                f"needs {scores} scores ({', '.join(classes) or 'of a reward model'}), and the adapter has a head with "
                f"{len(there.weight)} ({', '.join(there.classes) or 'without names'})."
            )
            raise ConfigError(Problem("loss.type", message, "start a new adapter, or use the same classes"))
        there.classes = classes or there.classes
        return injection
    if hasattr(model, SCORE):
        message = f"{type(model).__name__} already has a module {SCORE!r}, the name of the head."
        raise ConfigError(Problem("loss.type", message, "use another model"))
    head = ScoreHead(scores, int(model.config.get_text_config().hidden_size), model.device, classes)
    with torch.no_grad():
        drawn = torch.randn(head.weight.shape, generator=torch.Generator().manual_seed(seed))
        head.weight.copy_(_SPREAD * drawn)
    model.add_module(SCORE, head)
    return replace(injection, layers={**injection.layers, SCORE: head})


def with_saved_score(
    injection: Injection, shapes: Mapping[str, tuple[int, ...]], classes: tuple[str, ...] = ()
) -> Injection:
    """Adds the head to an adapter whose saved tensors, of which the shapes are given, have one."""
    if SCORE_TENSOR not in shapes:
        return injection
    return attach_score(injection, 0, shapes[SCORE_TENSOR][0], classes)


def saved_form(injection: Injection) -> Saved:
    """Returns an adapter in the form in which it is saved, with a reward model's head whatever its method saves."""
    saved = find_method(injection.config.type).saved(injection)
    head = injection.layers.get(SCORE)
    if not isinstance(head, ScoreHead):
        return saved
    return replace(saved, tensors={**saved.tensors, SCORE_TENSOR: head.weight.detach()})


def score_head(model: nn.Module) -> ScoreHead | None:
    """Returns the head of a model; None if it has none."""
    head = getattr(model, SCORE, None)
    return head if isinstance(head, ScoreHead) else None


def scored(model: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
    """Computes the scores of hidden states (..., width) by the model's head: (..., scores), float32.

    The loss has attached the head, or the adapter was loaded with it.
    """
    head = score_head(model)
    assert head is not None
    return head(hidden)


def last_states(head: Head, batch: Batch) -> torch.Tensor:
    """Computes the hidden states of the last token of each document of a batch, (documents, width)."""
    hidden_TD = token_rows(batch, head.decoder(**model_inputs(batch)).last_hidden_state)
    ends = torch.from_numpy(np.cumsum(batch.document_lengths) - 1)
    return hidden_TD.index_select(0, ends.to(hidden_TD.device))


def text_states(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    """Computes the hidden states of token ids (1, T) by the model's own code, (T, width)."""
    # Not `output_hidden_states`, for which transformers leaves hooks on the layers.
    return text_decoder(model)(input_ids=ids, use_cache=False).last_hidden_state[0]
