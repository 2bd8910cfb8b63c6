"""Counts the floating-point operations that a training step requires (one multiply and one add are two).

They are counted on the model itself, with its adapter but without weights. Its own forward shows which linear layers it
uses, which of them have trained tensors below them and so need the gradient of their input, and how each layer attends.
Unnecessary work is not counted: padding, the gradient of a frozen weight, the input gradient of layers below the lowest
adapter (q, k and v of the first layer), the head on tokens that are not in the loss, attention to masked tokens, and
recomputation. Elementwise operations (norms, activations, softmax) count as zero.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM, PreTrainedModel

from lamina.compute.ops.adapter import AdapterLinear
from lamina.compute.ops.attention import packed_attention_forward
from lamina.compute.weights import freeze_linear
from lamina.config import MethodConfig
from lamina.machine.quiet import quiet_transformers
from lamina.methods.shared.base import inject
from lamina.structure.layers import text_decoder

_COUNTING = "lamina_counting"


@dataclass(frozen=True)
class StepFlops:
    """Floating-point operations of one optimizer step, by purpose.

    Attributes:
        frozen_forward: x W^T of the frozen linear layers.
        frozen_backward: g W, where the input needs a gradient.
        adapter: The rank-sized products of LoRA, forward and backward.
        attention: Scores and weighted values, forward and backward.
        head: The output head on supervised tokens, forward and input gradient.
    """

    frozen_forward: float
    frozen_backward: float
    adapter: float
    attention: float
    head: float

    @property
    def total(self) -> float:
        """The sum."""
        return sum(vars(self).values())


@dataclass(frozen=True)
class LinearUse:
    """A linear layer as a step uses it.

    Attributes:
        in_features: Width of its input.
        out_features: Width of its output.
        adapted: Whether the layer has an adapter.
        input_gradient: Whether the gradient of its input is needed.
    """

    in_features: int
    out_features: int
    adapted: bool
    input_gradient: bool


@dataclass(frozen=True)
class AttentionUse:
    """An attention layer as a step uses it.

    Attributes:
        heads: Query heads.
        head_size: Width of a query and of a key.
        value_size: Width of a value.
        window: How many tokens a token sees, itself included; None for all before it.
        gradient: Whether it has a backward.
    """

    heads: int
    head_size: int
    value_size: int
    window: int | None
    gradient: bool


@dataclass(frozen=True)
class ModelUse:
    """The layers that a step uses, and how often.

    Attributes:
        linears: Kinds of linear layers, with their number.
        attention: Kinds of attention layers, with their number.
        hidden_size: Width of the head's input.
        vocabulary: Width of the head's output.
        rank: LoRA's r.
    """

    linears: Counter[LinearUse]
    attention: Counter[AttentionUse]
    hidden_size: int
    vocabulary: int
    rank: int

    def step(self, lengths: Sequence[int], supervised: int) -> StepFlops:
        """Counts the operations of a step.

        Args:
            lengths: Real tokens of each document; each attends only to itself.
            supervised: Tokens in the loss.
        """
        tokens = sum(lengths)
        forward = backward = adapter = attention = 0
        for use, count in self.linears.items():
            product = 2 * tokens * use.in_features * use.out_features
            forward += count * product
            backward += count * product * use.input_gradient
            if use.adapted:
                # x A^T, h B^T | g B, g^T h, gh^T x, and gh A where the gradient flows on.
                inwards, outwards = (2 * tokens * self.rank * width for width in (use.in_features, use.out_features))
                adapter += count * (2 * inwards + 3 * outwards + inwards * use.input_gradient)
        for use, count in self.attention.items():
            pairs = sum(visible_pairs(length, use.window) for length in lengths)
            # Two products forward; two for each of them backward.
            attention += count * 2 * pairs * use.heads * (use.head_size + use.value_size) * (1 + 2 * use.gradient)
        head = 2 * 2 * supervised * self.hidden_size * self.vocabulary
        return StepFlops(float(forward), float(backward), float(adapter), float(attention), float(head))


def visible_pairs(length: int, window: int | None) -> int:
    """Counts the pairs of a query and a visible key, in causal attention over one document.

    >>> visible_pairs(4, None), visible_pairs(4, 2), visible_pairs(4, 9)
    (10, 7, 10)
    """
    seen = length if window is None else min(window, length)
    return seen * (seen + 1) // 2 + (length - seen) * seen


def model_use(folder: Path | str, method: MethodConfig) -> ModelUse:
    """Finds the layers that a model uses from its config, without reading or creating weights.

    Args:
        folder: The folder of the base.
        method: LoRA on any target modules.
    """
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    with quiet_transformers(), torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    model.requires_grad_(False)
    inject(model, method, seed=0)
    return _measure(model, rank=method.model_dump()["r"])


def _measure(model: PreTrainedModel, rank: int) -> ModelUse:
    linears: Counter[LinearUse] = Counter()
    attention: Counter[AttentionUse] = Counter()
    head = model.get_output_embeddings()

    def note(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        frozen = module.frozen if isinstance(module, AdapterLinear) else freeze_linear(module)
        if frozen is not None:
            adapted = isinstance(module, AdapterLinear)
            use = LinearUse(frozen.in_features, frozen.out_features, adapted, inputs[0].requires_grad)
            linears[use] += 1

    def attend(
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        sliding_window: int | None = None,
        **settings: Any,
    ) -> tuple[torch.Tensor, None]:
        gradient = any(tensor.requires_grad for tensor in (query, key, value))
        sizes = query.shape[1], query.shape[-1], value.shape[-1]
        attention[AttentionUse(*sizes, sliding_window, gradient)] += 1
        return packed_attention_forward(module, query, key, value, attention_mask)

    AttentionInterface.register(_COUNTING, attend)
    model.set_attn_implementation(_COUNTING)
    for module in model.modules():
        if module is not head:
            module.register_forward_pre_hook(note)
    ids = torch.zeros(1, 4, dtype=torch.long, device=model.device)
    text_decoder(model)(input_ids=ids, use_cache=False)
    assert isinstance(head, nn.Linear)
    vocabulary, hidden = head.weight.shape
    return ModelUse(linears, attention, hidden, vocabulary, rank)
