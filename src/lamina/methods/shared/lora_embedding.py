"""LoRA on an embedding: E' = E + s A^T B^T, with A (r, vocabulary) zero at the start and B (width, r) random.

The names and shapes are those of HF peft (`lora_embedding_A`, `lora_embedding_B`). With `ensure_weight_tying`, a head
that is tied to the embedding gets the same update: x E'^T, which is a low-rank path with A_head = B^T and B_head = A^T.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel

from lamina.compute.ops.adapter import AdapterModule, AdapterWrapper, set_module
from lamina.compute.ops.row_forms import Parameters, RowForm
from lamina.compute.weights import FrozenLinear
from lamina.config.methods.lora import LoraConfig
from lamina.errors import ConfigError, Problem
from lamina.methods.shared.low_rank import LowRankLinear
from lamina.methods.shared.token_rows import embedding_factor
from lamina.methods.shared.trained_copy import TrainedCopy

_PLAIN_INITS = (True, False, "gaussian", "loftq")


class LoraEmbedding(AdapterWrapper):
    """A frozen embedding with a LoRA adapter. As in HF peft, nothing is dropped.

    Attributes:
        lora_embedding_A: A, (r, vocabulary), float32.
        lora_embedding_B: B, (width, r), float32.
        scaling: s.
    """

    def __init__(self, base: nn.Embedding, config: LoraConfig, name: str, generator: torch.Generator) -> None:
        """Initializes the adapter of the module `name`; with `init_lora_weights: false`, A is random too."""
        super().__init__(base)
        rank, (vocabulary, width), device = config.rank_of(name), base.weight.shape, base.weight.device
        self.scaling = config.scaling_of(name)
        A = torch.zeros(rank, vocabulary)
        if config.init_lora_weights is False:
            A.normal_(generator=generator)
        self.lora_embedding_A = nn.Parameter(A.to(device))
        self.lora_embedding_B = nn.Parameter(torch.randn(width, rank, generator=generator).to(device))

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """x: token ids (...) -> (..., width)."""
        y = self.base(x, *args, **kwargs)
        if not self.enabled:
            return y
        # As in the base, the padding token gets no gradient.
        padding: Any = self.base.padding_idx
        of_tokens = F.embedding(x, self.lora_embedding_A.T, padding_idx=padding)
        added = self.scaling * (of_tokens @ self.lora_embedding_B.T)
        factor = embedding_factor(self.base)
        assert factor is not None, "checked when it was attached"
        return (y.float() + (added * factor if isinstance(factor, torch.Tensor) or factor != 1.0 else added)).to(
            y.dtype
        )

    def adapter_tensors(self) -> dict[str, nn.Parameter]:
        return {"lora_embedding_A": self.lora_embedding_A, "lora_embedding_B": self.lora_embedding_B}

    def fast_tensors(self) -> list[str]:
        return ["lora_embedding_B"]

    def delta_weight(self) -> torch.Tensor:
        """Computes what merging adds to E: (vocabulary, width), float32."""
        return self.scaling * (self.lora_embedding_B @ self.lora_embedding_A).T

    def row_forms(self) -> tuple[RowForm, ...]:
        weight: Any = self.base.weight
        return (Parameters({"weight": weight.float() + self.delta_weight()}),)

    @torch.no_grad()
    def fold_in(self, model: PreTrainedModel, name: str) -> None:
        weight: Any = self.base.weight
        # A new tensor rather than a copy into the old one, whose memory another module may share.
        merged = (weight.float() + self.delta_weight()).to(weight.dtype)
        self.base.weight = nn.Parameter(merged, requires_grad=False)
        set_module(model, name, self.base)


class TiedLoraHead(LowRankLinear):
    """The head that is tied to an embedding with LoRA, with the embedding's own factors.

    They are trained once, and their gradient is the sum of both uses. HF peft keeps two parameters over one memory.
    """

    def __init__(self, frozen: FrozenLinear, embedding: LoraEmbedding) -> None:
        super().__init__(frozen, embedding.scaling, 0.0)
        self._embedding = [embedding]  # in a list, so that it is not a submodule of two modules

    def factors(self) -> tuple[torch.Tensor, torch.Tensor]:
        (embedding,) = self._embedding
        return embedding.lora_embedding_B.T, embedding.lora_embedding_A.T

    def adapter_tensors(self) -> dict[str, nn.Parameter]:
        return {}

    def fixed_tensors(self) -> dict[str, torch.Tensor]:
        """The factors under the names that peft reads; they share the embedding's memory."""
        A, B = self.factors()
        return {"lora_A.weight": A.detach(), "lora_B.weight": B.detach()}


@dataclass(frozen=True)
class TiedEnds:
    """The names of an embedding and of the head that shares its weight."""

    embedding: str
    head: str


def tied_ends(model: PreTrainedModel) -> TiedEnds | None:
    """Finds a model's embedding and the head that is tied to it; None if it has no such head."""
    embedding: Any = model.get_input_embeddings()
    head: Any = model.get_output_embeddings()
    if head is None or head is embedding or getattr(head, "weight", None) is not getattr(embedding, "weight", None):
        return None
    names = {module: name for name, module in model.named_modules()}
    return TiedEnds(names[embedding], names[head])


def with_tied(names: Sequence[str], tie: TiedEnds | None) -> list[str]:
    """Completes module names by the other one of two that are tied, if one of them is named."""
    ends = [] if tie is None else [tie.embedding, tie.head]
    missing = [name for name in ends if name not in names] if set(names) & set(ends) else []
    return [*names, *missing]


class TiedCopy(TrainedCopy):
    """The trained copy of a head that shares the copy of its embedding, which trains it."""

    def adapter_tensors(self) -> dict[str, nn.Parameter]:
        return {}

    def fixed_tensors(self) -> dict[str, torch.Tensor]:
        """The same memory by the head's name, without which HF peft does not load the adapter."""
        return {name: copy.detach() for name, copy in super().adapter_tensors().items()}


def trained_whole(module: nn.Module, tied_to: AdapterModule | None) -> TrainedCopy:
    """Builds the trained copy of a module; that of `tied_to`, if the two share their weight."""
    own = dict(module.named_parameters())
    if isinstance(tied_to, TrainedCopy) and tied_to.replaced[0] is own.get("weight") and len(own) == 1:
        return TiedCopy(module, list(own), dict(zip(tied_to.replaced, tied_to.copies, strict=True)))
    return TrainedCopy(module, list(own))


def check_embedding(config: LoraConfig, name: str, embedding: nn.Embedding) -> None:
    """Checks that an embedding can have LoRA with these settings.

    Raises:
        ConfigError: It cannot.
    """
    what = f"selects {name}, an embedding"
    if config.use_dora:
        message, fix = f"{what}, but DoRA scales the outputs of linear layers", "leave it out, or set use_dora to false"
    elif config.init_lora_weights not in _PLAIN_INITS:
        message = f"{what}, but init_lora_weights: {config.init_lora_weights} is for linear layers"
        fix = "leave it out, or set init_lora_weights to true"
    elif config.lora_fa:
        message, fix = f"{what}, whose A starts at zero, but lora_fa freezes A", "leave it out, or set lora_fa to false"
    elif embedding_factor(embedding) is None:
        message, fix = f"{what} of the class {type(embedding).__name__}, which lamina does not know", "leave it out"
    else:
        return
    raise ConfigError(Problem("method.target_modules", f"{message}.", fix))
