"""`fast_path`: how training and evaluation run a model.

`fused_layers`, which it uses, replaces the forwards of the decoder layers by fused ones and restores them afterwards.
The outputs of the fast model are compared with its original outputs (`exactness.py`, `limits.py`). If the fastest
strategy does not reproduce them, the next one is tried; the last is the model's own code with one document at a time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from lamina.compute.fusion.exactness import INFLUENCE, Numbers, Reference
from lamina.compute.fusion.layer import LayerContext, Recompute, run_layer
from lamina.compute.fusion.limits import find_limits
from lamina.compute.fusion.recognize import (
    Observed,
    Reason,
    first_line,
    observe,
    recognize,
    release,
    replace_parts,
    restore,
)
from lamina.compute.fusion.spec import LayerSpec
from lamina.compute.kernels import checkpoint_contexts, use_backend
from lamina.compute.ops.adapter import AdapterModule
from lamina.compute.ops.attention import Unsupported, packed_attention
from lamina.compute.ops.pool import Pool, Scratch
from lamina.compute.weights.sharded import whole
from lamina.data.batch import PACKED, Layout
from lamina.errors import ModelError
from lamina.structure.layers import decoder_layers
from lamina.structure.positions import declared_positions


@dataclass(frozen=True)
class Strategy:
    """A way of running a model.

    Attributes:
        layout: How documents are batched.
        fused: Whether layers are replaced by fused ones.
    """

    layout: Layout
    fused: bool


# Fastest first. The last one is the model's own code, which the others are compared with.
STRATEGIES = (
    Strategy(PACKED, fused=True),
    Strategy(PACKED, fused=False),
    Strategy(Layout(together=False, own_attention=False), fused=True),
    Strategy(Layout(together=False, own_attention=False), fused=False),
    Strategy(Layout(together=True, own_attention=True), fused=False),
    Strategy(Layout(together=False, own_attention=True, padded=True), fused=False),
    Strategy(Layout(together=False, own_attention=True), fused=False),
)


@dataclass(frozen=True)
class FusionReport:
    """Reports what was fused.

    Attributes:
        fused: Number of fused decoder layers.
        layers: Number of decoder layers.
        reasons: Why the other layers are not fused, each reason once.
        in_parts: Number of layers that are not fused, but whose norms, rotary positions or gated MLP are.
        recompute: Whether the backward recomputes most of each layer, to save memory; `selective` if it recomputes gate
            and up alone (and all of the layers that are not fused).
        layout: How documents are batched.
        fallback: Why this is not the fastest strategy, and what it costs; None if it is.
        keeps_all: Why layers keep their activations although recomputing was asked for.
    """

    fused: int
    layers: int
    reasons: list[str]
    in_parts: int = 0
    recompute: Recompute = False
    layout: Layout = PACKED
    fallback: str | None = None
    keeps_all: str | None = None

    @property
    def complete(self) -> bool:
        """Whether every layer is fused."""
        return 0 < self.layers == self.fused

    @property
    def notes(self) -> list[str]:
        """Notes for the user; empty if all layers are fused and documents are packed."""
        notes = [note for note in (self.fallback, self.keeps_all) if note is not None]
        if self.reasons:
            parts = f" as a whole ({self.in_parts} part by part)" if self.in_parts else ""
            reasons = "; others: ".join(self.reasons)
            notes.append(
                f"{self.layers - self.fused} of {self.layers} decoder layers are not fused{parts}, which is slower: "
                f"{reasons}."
            )
        return notes


# Tokens of the longest document, assumed for a model that does not say how many positions it has.
UNKNOWN_LENGTH = 8192

# A decision, or a function that decides from the report of what is fused.
Decision = Recompute | Callable[[FusionReport], Recompute]


@contextlib.contextmanager
def fast_path(
    model: PreTrainedModel,
    recompute: Decision = False,
    kernels: str = "auto",
    longest: int | None = None,
    fuse: bool = True,
) -> Iterator[FusionReport]:
    """Runs a model inside the block by the fastest strategy that reproduces its own outputs.

    This is packed attention and fused layers where they reproduce them, and gradient checkpointing of the layers that
    are not fused. Batches must be built for the report's layout (`data.batch.build_batches`).

    Args:
        model: The model with its adapter, in training or evaluation mode as it will be used.
        recompute: Whether the backward recomputes most of each layer, or gate and up alone (`selective`), to save
            memory.
        kernels: See `kernels.use_backend`.
        longest: Tokens of the longest document; by default the model's number of positions.
        fuse: Whether layers may be fused; parts of documents go through layers that are not.

    Yields:
        What was fused, and the layout to batch documents in.
    """
    with use_backend(kernels):
        selection = _Selection(model, longest or declared_positions(model) or UNKNOWN_LENGTH)
        for strategy in STRATEGIES if fuse else [each for each in STRATEGIES if not each.fused]:
            with ExitStack() as stack:
                report = selection.enter(stack, strategy, _Deciding(recompute))
                if report is not None:
                    yield report
                    return


class _Deciding:
    """Decides on recomputing, and remembers the error if it cannot: that another process is lost, for example.

    Attributes:
        error: What was raised.
    """

    def __init__(self, recompute: Decision) -> None:
        self._recompute: Decision = recompute
        self.error: Exception | None = None

    def __call__(self, report: FusionReport) -> Recompute:
        try:
            return self._recompute(report) if callable(self._recompute) else self._recompute
        except Exception as error:
            self.error = error
            raise


class _Selection:
    """Tries the strategies in turn, and remembers why each was refused."""

    def __init__(self, model: PreTrainedModel, longest: int) -> None:
        self._model = model
        self._reference: Reference | None = None
        self._refused: list[str] = []
        self._no_lamina_attention: str | None = None
        self._no_sharing: str | None = None
        self._no_padding: str | None = None
        self._packed_seconds: float | None = None
        self._references: dict[str, Reference] = {}  # by what is said before what differs
        rows = [m for m in model.modules() if isinstance(m, AdapterModule) and m.virtual_tokens]
        try:
            self._reference = self._references[""] = Reference(model)
            if any(adapter.enabled for adapter in rows):
                self._references["with virtual tokens, "] = Reference(model, virtual_tokens=True)
        except Exception as error:  # then nothing can be compared, and the model runs as it is
            self._no_lamina_attention = self._no_sharing = f"its numbers cannot be compared ({first_line(error)})"
        else:
            limits = find_limits(model, longest + sum(adapter.virtual_tokens for adapter in rows))
            self._no_lamina_attention, self._no_sharing = limits.attention, limits.together
            self._no_padding = limits.padded

    def enter(self, stack: ExitStack, strategy: Strategy, recompute: _Deciding) -> FusionReport | None:
        """Switches the model to a strategy until the stack is closed; returns None if its outputs would change."""
        if strategy == STRATEGIES[-1] or self._reference is None:
            return (
                None
                if strategy != STRATEGIES[-1]
                else self._taken(stack.enter_context(_switched(self._model, strategy, recompute)), strategy)
            )
        reason = None if strategy.layout.own_attention else self._no_lamina_attention
        known = self._no_sharing if strategy.layout.together else self._no_padding if strategy.layout.padded else None
        if reason is None and (known is None or strategy == STRATEGIES[0]):  # the first also shows what the others cost
            try:
                report = stack.enter_context(_switched(self._model, strategy, recompute))
                numbers = {what: reference.run(strategy.layout) for what, reference in self._references.items()}
                found = self._difference(numbers)
                if known is None and found is None:
                    return self._taken(report, strategy)
                if strategy == STRATEGIES[0]:
                    self._packed_seconds = self._reference.seconds(strategy.layout)
                if known is None and found != INFLUENCE:
                    stack.close()  # rounding is measured in the model's own way
                    while found is not None and self._measure_more():
                        found = self._difference(numbers)
                    if found is None:
                        return self._taken(stack.enter_context(_switched(self._model, strategy, recompute)), strategy)
                if found == INFLUENCE:
                    self._no_sharing = self._no_sharing or found
                reason = known or found
            except Exception as error:  # of any kind: a strategy that fails is refused
                if error is recompute.error:  # not the strategy has failed
                    raise
                reason = f"it fails ({first_line(error)})"
                if isinstance(error, ModelError | Unsupported):
                    reason = self._no_lamina_attention = str(error)
        self._refused.append(reason or known or "")
        return None

    def _difference(self, numbers: Mapping[str, Numbers]) -> str | None:
        """How the numbers of a way differ from the model's own, as far as rounding was measured."""
        for what, reference in self._references.items():
            if (found := reference.difference(numbers[what])) is not None:
                return what + found
        return None

    def _measure_more(self) -> bool:
        """Measures rounding once more, and says whether there was a draw left."""
        draws = [reference.measure_more() for reference in self._references.values()]
        return all(draws)

    def _taken(self, report: FusionReport, strategy: Strategy) -> FusionReport:
        if strategy.layout == PACKED:
            return (
                report if strategy.fused else replace(report, reasons=[f"fused, {reason}" for reason in self._refused])
            )
        how = "together in one sequence" if strategy.layout.together else "one at a time"
        how = "as rows of padded batches" if strategy.layout.padded else how
        where = "its own attention" if strategy.layout.own_attention else "lamina's attention"
        reason = self._refused[0] if self._refused else self._no_sharing
        note = f"Documents go through {type(self._model).__name__} {how}, in {where}, because packed, {reason}."
        if self._packed_seconds and self._reference is not None:
            ratio = self._reference.seconds(strategy.layout) / self._packed_seconds
            note += f" On two short documents that takes {ratio:.1f} times as long."
        return replace(report, layout=strategy.layout, fallback=note)


@contextlib.contextmanager
def _switched(model: PreTrainedModel, strategy: Strategy, recompute: Decision) -> Iterator[FusionReport]:
    with ExitStack() as stack:
        if not strategy.layout.own_attention:
            stack.enter_context(packed_attention(model))
        report = stack.enter_context(fused_layers(model, recompute) if strategy.fused else _unfused(model, recompute))
        if (report.recompute and report.fused < report.layers) or (report.recompute and not report.layers):
            if model.supports_gradient_checkpointing:
                model.activation_checkpointing_enable({"use_reentrant": False, "context_fn": checkpoint_contexts})
                # Enabling checkpointing makes the embeddings require a gradient, which only reentrant checkpointing
                # needs. It would add work below the lowest adapter, and products of other shapes, whose sums may differ
                # in the last bit.
                model.disable_input_require_grads()
                stack.callback(model.activation_checkpointing_disable)
            else:
                name = type(model).__name__
                report = replace(
                    report,
                    recompute=report.recompute if report.fused else False,
                    keeps_all=f"{name} cannot recompute its layers in the backward (it has no gradient checkpointing), "
                    "so they keep their activations.",
                )
        yield report


@contextlib.contextmanager
def _unfused(model: PreTrainedModel, recompute: Decision) -> Iterator[FusionReport]:
    """Reports on a model whose layers all run their own code."""
    report = FusionReport(0, len(decoder_layers(model)), [])
    yield replace(report, recompute=recompute(report) if callable(recompute) else recompute)


@contextlib.contextmanager
def fused_layers(model: PreTrainedModel, recompute: Decision = False) -> Iterator[FusionReport]:
    """Fuses, inside the block, the decoder layers of `model` that are recognized and whose outputs stay the same.

    Fused layers handle packed sequences (see `ops.attention.packed_attention`). A layer that is called with anything
    else, such as a cache or a mask, runs its own forward.

    Args:
        model: The model with its adapter, in training or evaluation mode as it will be used.
        recompute: See `fast_path`.

    Yields:
        What was fused.
    """
    layers = decoder_layers(model)
    specs: dict[nn.Module, LayerSpec] = {}
    parts: list[nn.Module] = []
    in_parts = 0
    scratch = Scratch()
    reasons: list[str] = [] if layers else [f"{type(model).__name__} keeps its decoder layers in no known place"]
    try:
        for layer, observed in _observed(model, layers).items():
            if isinstance(observed, str):
                reasons.append(observed)
                continue
            with whole(layer):
                spec = recognize(layer, observed, scratch)
            if not isinstance(spec, str):
                specs[layer] = spec
                continue
            reasons.append(spec)
            replaced = replace_parts(layer, observed)
            parts += replaced
            in_parts += bool(replaced)
        report = FusionReport(len(specs), len(layers), sorted(set(reasons)), in_parts)
        again = recompute(report) if callable(recompute) else recompute
        pool = Pool()
        for layer, spec in specs.items():
            layer.forward = _forward(layer, spec, again, pool)
        yield replace(report, recompute=again)
    finally:
        restore([*specs, *parts])
        for spec in specs.values():
            release(spec)


def _observed(model: PreTrainedModel, layers: list[nn.Module]) -> dict[nn.Module, Observed | Reason]:
    """Runs each layer's own forward on the trial input: layer -> what was observed, or why it could not be."""
    if not layers:
        return {}
    try:
        seen = observe(model, layers)
    except Exception as error:  # if the model cannot run packed, comparing its outputs will say so
        return dict.fromkeys(layers, f"its forward could not be observed ({first_line(error)})")
    return {layer: seen.get(layer, "it did not run on a text") for layer in layers}


def _forward(layer: nn.Module, spec: LayerSpec, recompute: Recompute, pool: Pool) -> Callable[..., torch.Tensor]:
    own = layer.forward

    def forward(hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        lengths = kwargs.get("document_lengths")
        special = (kwargs.get(name) is not None for name in ("attention_mask", "past_key_values", "attention_prefix"))
        if args or lengths is None or hidden_states.shape[0] != 1 or any(special):
            return own(hidden_states, *args, **kwargs)
        cosine, sine = kwargs["position_embeddings"]
        again = recompute if torch.is_grad_enabled() else False
        context = LayerContext(cosine[0].contiguous(), sine[0].contiguous(), lengths, again, pool)
        return run_layer(spec, hidden_states[0], context)[None]

    return forward
