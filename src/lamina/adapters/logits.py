"""Where the logits of a probe come from: a model in memory, a written folder, a server; the certificate is the same.

`Logits` gives all of them. A server that gives the highest log-probabilities of each position alone (vLLM's
`prompt_logprobs`, `echo` with `logprobs` of OpenAI's completions) is `TopLogprobs`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from transformers import PreTrainedModel

from lamina.methods.shared.base import Injection


class Logits(Protocol):
    """What a model says of the tokens that may follow."""

    def __call__(self, ids: Sequence[int], positions: Sequence[int]) -> torch.Tensor:
        """The logits at `positions` of the sequence `ids`: float32 (positions, vocabulary)."""
        ...


class _Ask(Protocol):
    def __call__(self, ids: Sequence[int], positions: Sequence[int]) -> Sequence[Mapping[int, float]]:
        """At each of `positions` of the sequence `ids`, log-probabilities by token id: the highest, and any others."""
        ...


@dataclass(frozen=True)
class TopLogprobs:
    """What a server says that gives a few log-probabilities at each position, and no logits.

    Attributes:
        ask: Gives, at each of the positions of a sequence, log-probabilities of the tokens that may follow, by id: the
            highest, and any others. Servers often list them with the token that does follow, one place later.
    """

    ask: _Ask


def model_logits(model: PreTrainedModel) -> Logits:
    """The logits of a model in memory, as it is when they are asked for. It must be in evaluation mode."""

    @torch.no_grad()
    def logits(ids: Sequence[int], positions: Sequence[int]) -> torch.Tensor:
        output = model(input_ids=torch.tensor([list(ids)], device=model.device), use_cache=False).logits[0]
        return output[torch.tensor(list(positions), device=model.device)].float()

    return logits


def bare_logits(injection: Injection) -> Logits:
    """The same of the base without its adapter."""
    of_model = model_logits(injection.model)

    def logits(ids: Sequence[int], positions: Sequence[int]) -> torch.Tensor:
        with injection.disabled():
            return of_model(ids, positions)

    return logits
