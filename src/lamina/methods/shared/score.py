"""The head of a reward model: one score for a hidden state, as in transformers' models for sequence classification.

It is a part of the adapter, under the names that peft gives it (`modules_to_save: [score]` with the task SEQ_CLS), so
that it is saved, digested and loaded with the adapter's other tensors, and never lost.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import torch
from torch import nn
from transformers import PreTrainedModel

from lamina.compute.ops.adapter import AdapterModule
from lamina.compute.ops.row_forms import RowForm
from lamina.errors import ConfigError, Problem
from lamina.methods.shared.base import Injection, Saved, find_method, tensor_name

SCORE = "score"
SCORE_TENSOR = tensor_name(SCORE, "weight")

# Standard deviation of transformers' initial weights.
_SPREAD = 0.02


class ScoreHead(AdapterModule):
    """Computes s = h w^T in float32.

    Attributes:
        weight: w, (1, hidden size), float32.
    """

    merges = False

    def __init__(self, width: int, device: torch.device) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, width, device=device))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden: (..., width) -> scores (...), float32; 0 with the adapter off."""
        scores = hidden.float() @ self.weight[0].float()
        return scores if self.enabled else torch.zeros_like(scores)

    def adapter_tensors(self) -> dict[str, nn.Parameter]:
        return {"weight": self.weight}

    def row_forms(self) -> tuple[RowForm, ...]:
        return ()  # logits do not depend on it

    def fold_in(self, model: PreTrainedModel, name: str) -> None:
        message = (
            "the adapter is a reward model: its score is no part of a language model that it could be merged into."
        )
        raise ConfigError(Problem("adapter", message, "use it as an adapter"))


def attach_score(injection: Injection, seed: int) -> Injection:
    """Adds a head, drawn from `seed`, to an adapter.

    Raises:
        ConfigError: The model already has a module of that name.
    """
    model = injection.model
    if SCORE in injection.layers:
        return injection
    if hasattr(model, SCORE):
        message = f"{type(model).__name__} already has a module {SCORE!r}, the name of a reward model's head."
        raise ConfigError(Problem("loss.type", message, "use another model"))
    head = ScoreHead(int(model.config.get_text_config().hidden_size), model.device)
    with torch.no_grad():
        drawn = torch.randn(head.weight.shape, generator=torch.Generator().manual_seed(seed))
        head.weight.copy_(_SPREAD * drawn)
    model.add_module(SCORE, head)
    return replace(injection, layers={**injection.layers, SCORE: head})


def with_saved_score(injection: Injection, names: Collection[str]) -> Injection:
    """Adds the head to an adapter whose saved tensors have one."""
    return attach_score(injection, 0) if SCORE_TENSOR in names else injection


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
