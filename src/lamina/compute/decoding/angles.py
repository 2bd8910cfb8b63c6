"""The rotary angles of a model's layers by position, read from the model's own forward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, PreTrainedModel

from lamina.compute.ops.attention import packed_attention_forward
from lamina.structure.layers import text_decoder

_NAME = "lamina_angles"

# Positions that are asked for first, and at once later.
_FIRST, _AT_ONCE = 512, 2048

Pair = tuple[torch.Tensor, torch.Tensor]


class Angles:
    """Tables of cosines and sines that grow with the positions that are needed.

    Attributes:
        kind_of: For each layer, which of the tables is its own.
        rotated: Elements of a head that are rotated.
    """

    def __init__(self, model: PreTrainedModel, layers: Sequence[nn.Module]) -> None:
        self._model, self._layers = model, list(layers)
        found = self._ask(torch.arange(_FIRST))
        self._tables = _distinct(found)
        kinds = {id(pair): number for number, pair in enumerate(self._tables)}
        self.kind_of = [kinds[id(pair)] for pair in found]
        self.rotated = int(found[0][0].shape[-1])

    @property
    def kinds(self) -> int:
        """How many different tables there are."""
        return len(self._tables)

    @property
    def positions(self) -> int:
        """Positions that the tables hold."""
        return int(self._tables[0][0].shape[0])

    def tables(self, positions: int) -> list[Pair]:
        """Cosines and sines (positions or more, rotated) of each kind; the tables grow where they are too short."""
        while self.positions < positions:
            begin = self.positions
            more = _distinct(self._ask(torch.arange(begin, min(2 * begin, begin + _AT_ONCE))))
            self._tables = [
                (torch.cat([cosine, added[0]]), torch.cat([sine, added[1]]))
                for (cosine, sine), added in zip(self._tables, more, strict=True)
            ]
        return self._tables

    def depend_on_length(self, positions: int) -> bool:
        """Whether the angles of the first positions are others in a sequence of that length."""
        longer = self._ask(torch.cat([torch.arange(8), torch.tensor([positions - 1])]))
        return any(
            not torch.equal(cosine[:8], self._tables[kind][0][:8])
            or not torch.equal(sine[:8], self._tables[kind][1][:8])
            for (cosine, sine), kind in zip(longer, self.kind_of, strict=True)
        )

    @torch.no_grad()
    def _ask(self, positions: torch.Tensor) -> list[Pair]:
        """Runs the model's decoder with layers that only look at the angles they are given, one pair a layer."""
        found: list[Pair] = []
        same: dict[int, Pair] = {}

        def look(hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            cosine, sine = kwargs["position_embeddings"]
            if id(cosine) not in same:
                same[id(cosine)] = (cosine[0].contiguous(), sine[0].contiguous())
                kept.append(cosine)
            found.append(same[id(cosine)])
            return hidden_states

        kept: list[torch.Tensor] = []  # so that no address is used twice
        own = self._model.config._attn_implementation
        AttentionInterface.register(_NAME, packed_attention_forward)
        before = [layer.__dict__.get("forward") for layer in self._layers]
        try:
            self._model.set_attn_implementation(_NAME)
            for layer in self._layers:
                layer.forward = look
            ids = torch.zeros(1, len(positions), dtype=torch.long)
            text_decoder(self._model)(
                input_ids=ids, position_ids=positions[None], document_lengths=[len(positions)], use_cache=False
            )
        finally:
            for layer, forward in zip(self._layers, before, strict=True):
                if forward is None:
                    layer.__dict__.pop("forward", None)
                else:
                    layer.forward = forward
            self._model.set_attn_implementation(own or "eager")
        return found


def _distinct(pairs: Sequence[Pair]) -> list[Pair]:
    """The different ones among pairs that layers share, in order."""
    return list({id(pair): pair for pair in pairs}.values())
