"""Prefix tuning: in every attention layer, n trained keys and values precede those of the sequence.

    attention(q, [P_k; k], [P_v; v])

Li & Liang 2021, "Prefix-Tuning: Optimizing Continuous Prompts for Generation", arXiv:2101.00190. With
`prefix_projection`, P = W_2 tanh(W_1 E + b_1) + b_2 is trained through E, W and b; only P is saved. The prefix takes
the first n positions of every sequence; its keys are not rotated.

Packed attention inserts the prefix before every document (`compute/ops/attention.py`). Otherwise n empty rows are
inserted before each sequence (`methods/shared/virtual_tokens.py`), and the prefix replaces their keys and values when
these enter the cache; so masks, windows and padding are the model's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer
from transformers.utils.generic import ModelOutput

from lamina.compute.ops import row_forms
from lamina.config.methods.prefix_tuning import PrefixTuningConfig
from lamina.errors import ConfigError, ModelError, Problem
from lamina.machine.seeding import seeded
from lamina.methods.shared.base import Injection, Method, Saved
from lamina.methods.shared.soft_prompt import prompt_config, read_count, refuse_unknown
from lamina.methods.shared.virtual_tokens import (
    SAVED_NAME,
    Finish,
    VirtualTokens,
    embed,
    find_decoder,
    insert_rows,
    packed_positions,
)


@dataclass(frozen=True)
class CacheShape:
    """The shape of a model's cache: L layers of J key heads of D elements per token."""

    layers: int
    heads: int
    head_size: int

    @property
    def width(self) -> int:
        """Elements of a token's keys in one layer, J D."""
        return self.heads * self.head_size


class Prefix(VirtualTokens):
    """Keys and values before every sequence.

    Attributes:
        prompt_embeddings: The prefix, (n, L 2 J D), float32: in each row keys and values of each layer in turn. None
            with `prefix_projection`.
        embedding, transform: The network of `prefix_projection`, with peft's names; None without.
    """

    def __init__(self, model: PreTrainedModel, config: PrefixTuningConfig, seed: int) -> None:
        super().__init__(model, config.num_virtual_tokens)
        self._shape = shape = find_cache_shape(model)
        self.prompt_embeddings: nn.Parameter | None = None
        self.embedding: nn.Embedding | None = None
        self.transform: nn.Sequential | None = None
        outputs = shape.layers * 2 * shape.width
        # Drawn on the CPU, so that a seed gives the same adapter for every device.
        with seeded(seed):
            if config.prefix_projection:
                hidden = config.encoder_hidden_size or shape.width
                last = nn.Linear(hidden, outputs)
                self.embedding = nn.Embedding(config.num_virtual_tokens, shape.width)
                self.transform = nn.Sequential(nn.Linear(shape.width, hidden), nn.Tanh(), last)
                start = [last.weight, last.bias]
            else:
                self.prompt_embeddings = nn.Parameter(torch.randn(config.num_virtual_tokens, outputs))
                start = [self.prompt_embeddings]
        if config.init_weights == "zero":
            for tensor in start:
                nn.init.zeros_(tensor)
        self.to(model.device)

    def rows(self) -> torch.Tensor:
        """Computes P, (n, L 2 J D), float32."""
        if self.prompt_embeddings is not None:
            return self.prompt_embeddings
        assert self.embedding is not None and self.transform is not None
        return self.transform(self.embedding.weight)

    def keys_and_values(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Computes each layer's keys and values, (1, J, n, D), float32."""
        shape = self._shape
        parts = self.rows().view(self.count, 2 * shape.layers, shape.heads, shape.head_size)
        both = parts.permute(1, 2, 0, 3)[:, None].unbind(0)
        return list(zip(both[::2], both[1::2], strict=True))

    def row_forms(self) -> tuple[row_forms.RowForm, ...]:
        return (row_forms.Prefix(tuple((keys[0], values[0]) for keys, values in self.keys_and_values())),)

    def adapter_tensors(self) -> dict[str, nn.Parameter]:
        return dict(self.named_parameters())

    def pack(self, decoder: PreTrainedModel, call: dict[str, Any], lengths: list[int]) -> Finish:
        call["position_ids"] = packed_positions(call, lengths, decoder.device) + self.count
        call["document_lengths"] = lengths
        call["attention_prefix"] = self.keys_and_values()
        return lambda output: output

    def begin(self, decoder: PreTrainedModel, call: dict[str, Any]) -> Finish:
        call["inputs_embeds"] = x_BTD = embed(decoder, call)
        order, cut = insert_rows(decoder, call, x_BTD.new_zeros(self.count, x_BTD.shape[2]))
        cache = call.get("past_key_values")
        if cache is None:
            cache = call["past_key_values"] = DynamicCache(config=decoder.config)
        keep_cache = call.get("use_cache") is not False
        prefix, filled = self.keys_and_values(), set[int]()
        columns = torch.arange(order.shape[1], device=order.device)
        source = torch.where(order < self.count, order, columns + self.count)[:, None, :, None]
        own = cache.update

        def placed(rows_1JND: torch.Tensor, own_BJTD: torch.Tensor) -> torch.Tensor:
            rows = rows_1JND.to(own_BJTD.dtype).expand(own_BJTD.shape[0], -1, -1, -1)
            return torch.cat([rows, own_BJTD], 2).take_along_dim(source, 2)

        def update(
            key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
        ) -> tuple[torch.Tensor, torch.Tensor]:
            filled.add(layer_idx)
            keys, values = prefix[layer_idx]
            return own(placed(keys, key_states), placed(values, value_states), layer_idx, *args, **kwargs)

        def finish(output: ModelOutput) -> ModelOutput:
            del cache.update
            if len(filled) != len(prefix):
                raise ModelError(
                    f"the prefix reached {len(filled)} of {len(prefix)} layers: outside of packed attention it is "
                    "inserted through the cache, which gradient checkpointing does not use. Fix: switch gradient "
                    "checkpointing off, or run the model inside lamina.compute.fusion.fast_path."
                )
            if not keep_cache:
                output["past_key_values"] = None
            return cut(output)

        cache.update = update  # on this cache object, until `finish`
        return finish


class PrefixTuning(Method):
    """Trained keys and values before every sequence."""

    starts_as_base: ClassVar[bool] = False

    def attach(self, model: PreTrainedModel, config: PrefixTuningConfig, seed: int) -> Injection:
        prefix = Prefix(model, config, seed)
        prefix.hook_into(model)
        return Injection(model, config, {"": prefix})

    def saved(self, injection: Injection) -> Saved:
        prefix, config = injection.layers[""], injection.config
        assert isinstance(prefix, Prefix)
        with torch.no_grad():
            tensors = {SAVED_NAME: prefix.rows()}
        return Saved(config.model_copy(update={"prefix_projection": False, "encoder_hidden_size": None}), tensors)

    def peft_config(self, config: PrefixTuningConfig, target_modules: list[str], base_ref: str) -> dict[str, Any]:
        return {
            **prompt_config("PREFIX_TUNING", config.num_virtual_tokens, base_ref),
            "prefix_projection": False,
            "encoder_hidden_size": None,
            "init_weights": config.init_weights,
        }

    def reads_peft(self, peft_config: Mapping[str, Any]) -> bool:
        return peft_config.get("peft_type") == "PREFIX_TUNING"

    def from_peft(self, peft_config: Mapping[str, Any]) -> PrefixTuningConfig:
        refuse_unknown(peft_config, {"prefix_projection", "encoder_hidden_size", "init_weights"}, "prefix tuning")
        # peft too saves the prefix and not the network.
        return PrefixTuningConfig(num_virtual_tokens=read_count(peft_config))


METHOD = PrefixTuning()


@torch.no_grad()
def find_cache_shape(model: PreTrainedModel) -> CacheShape:
    """Finds the shape of the model's cache, by filling one.

    Raises:
        ConfigError: The model caches no keys and values, or their shape differs between layers.
    """
    decoder = find_decoder(model)
    ids = torch.zeros(1, 2, dtype=torch.long, device=model.device)
    cache = decoder(input_ids=ids, use_cache=True).get("past_key_values")
    layers = cache.layers if isinstance(cache, DynamicCache) else []
    kept = [(layer.keys, layer.values) for layer in layers if isinstance(layer, DynamicLayer)]
    shapes = {None if tensor is None else tensor.shape for both in kept for tensor in both}
    shape = shapes.pop() if len(shapes) == 1 and len(kept) == len(layers) else None
    if shape is None:
        raise ConfigError(
            Problem(
                "method.type",
                f"{type(model).__name__} does not cache keys and values of the same shape in every layer, so a prefix "
                "cannot be inserted.",
                "use prompt_tuning, or a method that adapts layers, such as lora",
            )
        )
    return CacheShape(len(layers), shape[1], shape[3])
