"""`fast_path`: how training and evaluation run a model.

Its part `fused_layers` puts fused layers in the place of the model's own forwards, and takes them out again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from lamina.fusion.layer import Recompute, Surroundings, run_layer
from lamina.fusion.plan import LayerPlan
from lamina.fusion.recognise import disagreement, observe, recognise, release, replace_parts, restore
from lamina.kernels import checkpoint_contexts, use_backend
from lamina.ops.attention import packed_attention
from lamina.ops.pool import Pool, Scratch


@dataclass(frozen=True)
class FusionReport:
    """What was fused.

    Attributes:
        fused: How many decoder layers.
        layers: Of how many.
        reasons: Why others are not, each reason once.
        in_parts: Those others whose norms, rotary positions or gated unit are replaced one by one.
        recompute: Whether most of each layer runs again in the backward, so that less is kept for it; `selective` if
            that is gate and up alone (and all of the layers that are not fused).
    """

    fused: int
    layers: int
    reasons: list[str]
    in_parts: int = 0
    recompute: Recompute = False

    @property
    def complete(self) -> bool:
        """Whether every layer is fused."""
        return 0 < self.layers == self.fused

    @property
    def notes(self) -> list[str]:
        """What a user should know: nothing if all layers are fused."""
        if not self.reasons:
            return []
        return [
            f"{self.layers - self.fused} of {self.layers} decoder layers are not fused"
            f"{f' as a whole ({self.in_parts} part by part)' if self.in_parts else ''}, which is right but slower: "
            f"{reason}."
            for reason in self.reasons
        ]


# Decided, or a function that decides once it is known what is fused.
Decision = Recompute | Callable[[FusionReport], Recompute]


@contextlib.contextmanager
def fast_path(model: PreTrainedModel, recompute: Decision = False, kernels: str = "auto") -> Iterator[FusionReport]:
    """Packed attention, fused layers, and gradient checkpointing of the layers that are not fused.

    Args:
        model: With its adapter, in the mode that it will be used in.
        recompute: Whether most of each layer runs again in the backward, or gate and up alone (`selective`), so that
            less is kept for it.
        kernels: See `kernels.use_backend`.
    """
    with packed_attention(model), use_backend(kernels), fused_layers(model, recompute) as report:
        if report.recompute:
            model.activation_checkpointing_enable({"use_reentrant": False, "context_fn": checkpoint_contexts})
            # It has the embeddings ask for a gradient, which only reentrant checkpointing needs: work below the lowest
            # adapter, and products of other shapes than without checkpointing, whose sums may differ in the last bit.
            model.disable_input_require_grads()
        try:
            yield report
        finally:
            if report.recompute:
                model.activation_checkpointing_disable()


@contextlib.contextmanager
def fused_layers(model: PreTrainedModel, recompute: Decision = False) -> Iterator[FusionReport]:
    """Runs those of `model`'s decoder layers fused that are recognised and give the same numbers.

    For packed sequences (see `ops.attention.packed_attention`). A layer that is asked for something else, such as a
    cache or a mask, answers with its own forward.

    Args:
        model: With its adapter, in the mode (training or not) that it will be used in.
        recompute: See `fast_path`.
    """
    layers = _decoder_layers(model)
    plans: dict[nn.Module, LayerPlan] = {}
    parts: list[nn.Module] = []
    in_parts = 0
    scratch = Scratch()
    reasons: list[str] = [] if layers else [f"{type(model).__name__} keeps its decoder layers in no known place"]
    try:
        for layer, observed in (observe(model, layers) if layers else {}).items():
            if isinstance(observed, str):
                reasons.append(observed)
                continue
            plan = recognise(layer, observed, scratch)
            if not isinstance(plan, str):
                plans[layer] = plan
                reason = disagreement(plan, observed)
                if reason is None:
                    continue
                release(plans.pop(layer))
            else:
                reason = plan
            reasons.append(reason)
            replaced = replace_parts(layer, observed)
            parts += replaced
            in_parts += bool(replaced)
        report = FusionReport(len(plans), len(layers), sorted(set(reasons)), in_parts)
        again = recompute(report) if callable(recompute) else recompute
        pool = Pool()
        for layer, plan in plans.items():
            layer.forward = _forward(layer, plan, again, pool)
        yield replace(report, recompute=again)
    finally:
        restore([*plans, *parts])
        for plan in plans.values():
            release(plan)


def _decoder_layers(model: PreTrainedModel) -> list[nn.Module]:
    decoder = model.get_decoder()
    layers = getattr(decoder, "layers", None)
    return list(layers) if isinstance(layers, nn.ModuleList) else []


def _forward(layer: nn.Module, plan: LayerPlan, recompute: Recompute, pool: Pool) -> Callable[..., torch.Tensor]:
    own = layer.forward

    def forward(hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        lengths = kwargs.get("document_lengths")
        special = (kwargs.get(name) is not None for name in ("attention_mask", "past_key_values", "attention_prefix"))
        if args or lengths is None or hidden_states.shape[0] != 1 or any(special):
            return own(hidden_states, *args, **kwargs)
        cosine, sine = kwargs["position_embeddings"]
        again = recompute if torch.is_grad_enabled() else False
        around = Surroundings(cosine[0].contiguous(), sine[0].contiguous(), lengths, again, pool)
        return run_layer(plan, hidden_states[0], around)[None]

    return forward
