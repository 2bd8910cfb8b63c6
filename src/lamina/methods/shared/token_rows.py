"""Trains the rows of chosen tokens in an embedding or an output head, and nothing else of it.

    E'[t] = R[i] for the i-th chosen token t, and E'[t] = E[t] for all others

R starts as the base's own rows. In HF peft this is `trainable_token_indices`, with the same tensor in the file: the
rows themselves, so that it does not matter how a base's embedding was initialized when it was resized for new tokens.
A head that is tied to the embedding uses the same R.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call
from transformers import PreTrainedModel

from lamina.compute.ops.adapter import AdapterWrapper, set_module
from lamina.compute.ops.row_forms import Parameters, RowForm
from lamina.errors import ConfigError, Problem

FIELD = "method.trainable_token_indices"
TENSOR = "token_adapter.trainable_tokens_delta"


class TokenRows(AdapterWrapper):
    """An embedding or an output head with trained rows.

    Attributes:
        indices: The chosen tokens, (k,), int64.
        rows: R, (k, width), float32; the forward rounds it to the base's dtype.
        tied: Whether R is that of the embedding, so that another module saves and trains it.
    """

    def __init__(self, base: nn.Module, indices: Sequence[int], rows: nn.Parameter | None = None) -> None:
        """
        Args:
            base: An `nn.Embedding` or an `nn.Linear`.
            indices: The chosen tokens, without repeats.
            rows: The embedding's R, for a head that is tied to it.
        """
        super().__init__(base)
        weight: Any = base.weight
        self.indices: torch.Tensor
        self._places: torch.Tensor  # (vocabulary,): the row in R of each token, -1 for none
        chosen = torch.tensor(list(indices), dtype=torch.int64, device=weight.device)
        places = torch.full((weight.shape[0],), -1, dtype=torch.int64, device=weight.device)
        places[chosen] = torch.arange(len(indices), device=weight.device)
        self.register_buffer("indices", chosen, persistent=False)
        self.register_buffer("_places", places, persistent=False)
        padding: Any = getattr(base, "padding_idx", None)
        self._padding = list(indices).index(padding) if padding in indices else None  # no gradient, as in the base
        self.tied = rows is not None
        self.rows = nn.Parameter(weight.detach()[chosen].float().clone()) if rows is None else rows

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """x: token ids, or the hidden states (..., width) that a head multiplies."""
        y = self.base(x, *args, **kwargs)
        if not self.enabled:
            return y
        rows, base, weight = self.rows.to(y.dtype), self.base, cast(torch.Tensor, self.base.weight)
        if isinstance(base, nn.Linear):
            bias = None if base.bias is None else base.bias[self.indices]
            return y.index_copy(-1, self.indices, F.linear(x, rows, bias))
        places = self._places[x]
        factor = embedding_factor(base)
        if factor is None:  # what its class does to a row is not known: it does it itself
            return functional_call(base, {"weight": self._weight(weight.dtype)}, (x, *args), kwargs)
        found = F.embedding(places.clamp_min(0), rows, padding_idx=self._padding)
        return torch.where((places >= 0)[..., None], found * factor if factor != 1.0 else found, y)

    def adapter_tensors(self) -> dict[str, nn.Parameter]:
        return {} if self.tied else {TENSOR: self.rows}

    def embedding_tensors(self) -> list[str]:
        return [] if self.tied else [TENSOR]

    def row_forms(self) -> tuple[RowForm, ...]:
        return (Parameters({"weight": self._weight(torch.float32)}),)

    @torch.no_grad()
    def fold_in(self, model: PreTrainedModel, name: str) -> None:
        weight: Any = self.base.weight
        # A new tensor rather than a copy into the old one, whose memory another module may share.
        self.base.weight = nn.Parameter(self._weight(weight.dtype).detach(), requires_grad=False)
        set_module(model, name, self.base)

    def _weight(self, dtype: torch.dtype) -> torch.Tensor:
        weight: Any = self.base.weight
        return weight.detach().to(dtype).index_copy(0, self.indices, self.rows.to(dtype))


def embedding_factor(embedding: nn.Module) -> torch.Tensor | float | None:
    """Returns the factor of an embedding's rows, such as Gemma's; None if its class computes something unknown."""
    if type(embedding) is nn.Embedding:
        return 1.0
    scale = getattr(embedding, "embed_scale", None)
    return scale if isinstance(scale, torch.Tensor | float) else None


def chosen_rows(
    model: PreTrainedModel, given: Sequence[int] | Mapping[str, Sequence[int]] | None, others: Collection[str]
) -> dict[str, TokenRows]:
    """Wraps the modules whose rows are trained, as HF peft selects them, without putting them into the model.

    Args:
        model: A model without adapters.
        given: Token ids, for the input embedding; or ids by the end of a module's name. A head that is tied to the
            embedding follows it, unless it has other ids of its own.
        others: Modules that are adapted or trained in another way.

    Returns:
        The wrappers by module name, an embedding before a head that is tied to it.

    Raises:
        ConfigError: A name selects no embedding or head, or an id has no row, or a module is adapted as well.
    """
    if not given:
        return {}
    names = {module: name for name, module in model.named_modules()}
    embedding: Any = model.get_input_embeddings()
    head: Any = model.get_output_embeddings()
    wanted: dict[str, list[int]] = {}
    for end, ids in ({names[embedding]: given} if not isinstance(given, Mapping) else given).items():
        ends = [m for m in (embedding, head) if m is not None and f".{names[m]}".endswith(f".{end}")]
        if not ends:
            known = " and ".join(names[module] for module in (embedding, head) if module is not None)
            message = f"{end!r} is neither the embedding nor the head of {type(model).__name__} ({known})."
            raise ConfigError(Problem(FIELD, message, f"write token ids alone, or by {known}"))
        wanted |= {names[module]: list(ids) for module in ends}
    tied = head is not None and head.weight is embedding.weight
    if tied and wanted.get(names[head], wanted.get(names[embedding])) == wanted.get(names[embedding]):
        wanted[names[head]] = wanted[names[embedding]]
    for name, ids in wanted.items():
        _check(model, name, ids, others)
    layers: dict[str, TokenRows] = {}
    for name in sorted(wanted, key=lambda name: name != names[embedding]):
        module = model.get_submodule(name)
        source = layers.get(names[embedding]) if tied and name == names[head] else None
        shared = source.rows if source is not None and wanted[name] == wanted[names[embedding]] else None
        layers[name] = TokenRows(module, wanted[name], shared)
    return layers


def _check(model: PreTrainedModel, name: str, ids: Sequence[int], others: Collection[str]) -> None:
    module = model.get_submodule(name)
    if name in others:
        message = f"trains rows of {name}, which target_modules or modules_to_save select as well."
        raise ConfigError(Problem(FIELD, message, "use one of them for it"))
    if not isinstance(module, nn.Embedding | nn.Linear):
        message = f"trains rows of {name}, a {type(module).__name__}, which has no rows of its own."
        raise ConfigError(Problem(FIELD, message, "leave it unquantized"))
    rows = int(module.weight.shape[0])
    if len(set(ids)) < len(ids):
        raise ConfigError(Problem(FIELD, "names a token more than once.", "name each once"))
    beyond = [token for token in ids if not 0 <= token < rows]
    if beyond:
        message = f"{beyond[0]} has no row in {name}, which has {rows}."
        raise ConfigError(Problem(FIELD, message, "add new tokens with data.add_tokens or data.special_tokens"))
