"""`fast_path`: how training and evaluation run a model.

Its part `fused_layers` puts fused layers in the place of the model's own forwards, and takes them out again. What the
model then gives is compared with what it gives by itself (`exactness.py`, `reach.py`); where the fastest way is not the
model's own, the next one is tried, down to the model's own code with one document at a time.
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
from lamina.compute.fusion.layer import Recompute, Surroundings, run_layer
from lamina.compute.fusion.plan import LayerPlan
from lamina.compute.fusion.reach import find_reach
from lamina.compute.fusion.recognise import (
    Observed,
    Reason,
    first_line,
    observe,
    release,
    replace_parts,
    restore,
    take_apart,
)
from lamina.compute.kernels import checkpoint_contexts, use_backend
from lamina.compute.ops.adapter import AdapterModule
from lamina.compute.ops.attention import Unsupported, packed_attention
from lamina.compute.ops.pool import Pool, Scratch
from lamina.data.batch import PACKED, Layout
from lamina.errors import ModelError
from lamina.structure.layers import decoder_layers
from lamina.structure.positions import declared_positions


@dataclass(frozen=True)
class Way:
    """A way of running a model.

    Attributes:
        layout: How documents go through it.
        fused: Whether layers are replaced by fused ones.
    """

    layout: Layout
    fused: bool


# The fastest first. The last one is the model's own way, which the others are compared with.
WAYS = (
    Way(PACKED, fused=True),
    Way(PACKED, fused=False),
    Way(Layout(together=False, own_attention=False), fused=True),
    Way(Layout(together=False, own_attention=False), fused=False),
    Way(Layout(together=True, own_attention=True), fused=False),
    Way(Layout(together=False, own_attention=True), fused=False),
)


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
        layout: How documents go through the model.
        fallback: Why that is not the fastest way, and what it costs; None if it is.
        keeps_all: Why layers keep their activations although they were to be recomputed.
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
        """What a user should know: nothing if all layers are fused and documents packed."""
        notes = [note for note in (self.fallback, self.keeps_all) if note is not None]
        if self.reasons:
            parts = f" as a whole ({self.in_parts} part by part)" if self.in_parts else ""
            reasons = "; others: ".join(self.reasons)
            notes.append(
                f"{self.layers - self.fused} of {self.layers} decoder layers are not fused{parts}, which is slower: "
                f"{reasons}."
            )
        return notes


# Of a document, for a model that does not say how many positions it has.
UNKNOWN_LENGTH = 8192

# Decided, or a function that decides once it is known what is fused.
Decision = Recompute | Callable[[FusionReport], Recompute]


@contextlib.contextmanager
def fast_path(
    model: PreTrainedModel, recompute: Decision = False, kernels: str = "auto", longest: int | None = None
) -> Iterator[FusionReport]:
    """The fastest way of running a model that gives the model's own numbers.

    Packed attention and fused layers where they do, and gradient checkpointing of the layers that are not fused.
    Batches must be built for the report's layout (`data.batch.build_batches`).

    Args:
        model: With its adapter, in the mode that it will be used in.
        recompute: Whether most of each layer runs again in the backward, or gate and up alone (`selective`), so that
            less is kept for it.
        kernels: See `kernels.use_backend`.
        longest: Tokens of the longest document that will go through it; by default as many as the model has positions.
    """
    with use_backend(kernels):
        trial = _Trial(model, longest or declared_positions(model) or UNKNOWN_LENGTH)
        for way in WAYS:
            with ExitStack() as stack:
                report = trial.enter(stack, way, recompute)
                if report is not None:
                    yield report
                    return


class _Trial:
    """Tries ways of running a model, and remembers why they were not taken."""

    def __init__(self, model: PreTrainedModel, longest: int) -> None:
        self._model = model
        self._reference: Reference | None = None
        self._refused: list[str] = []
        self._no_lamina_attention: str | None = None
        self._apart: str | None = None
        self._packed_seconds: float | None = None
        self._references: dict[str, Reference] = {}  # by what is said before what differs
        rows = [m for m in model.modules() if isinstance(m, AdapterModule) and m.virtual_tokens]
        try:
            self._reference = self._references[""] = Reference(model)
            if any(adapter.enabled for adapter in rows):
                self._references["with virtual tokens, "] = Reference(model, virtual_tokens=True)
        except Exception as error:  # then nothing can be compared, and the model runs as it is
            self._no_lamina_attention = self._apart = f"its numbers cannot be compared ({first_line(error)})"
        else:
            reach = find_reach(model, longest + sum(adapter.virtual_tokens for adapter in rows))
            self._no_lamina_attention, self._apart = reach.attention, reach.together

    def enter(self, stack: ExitStack, way: Way, recompute: Decision) -> FusionReport | None:
        """Switches the model until the stack is closed, if that gives the model's own numbers."""
        if way == WAYS[-1] or self._reference is None:
            return (
                None
                if way != WAYS[-1]
                else self._taken(stack.enter_context(_switched(self._model, way, recompute)), way)
            )
        reason = None if way.layout.own_attention else self._no_lamina_attention
        known = self._apart if way.layout.together else None
        if reason is None and (known is None or way == WAYS[0]):  # the first also shows what the others cost
            try:
                report = stack.enter_context(_switched(self._model, way, recompute))
                numbers = {what: reference.run(way.layout) for what, reference in self._references.items()}
                found = self._difference(numbers)
                if known is None and found is None:
                    return self._taken(report, way)
                if way == WAYS[0]:
                    self._packed_seconds = self._reference.seconds(way.layout)
                if known is None and found != INFLUENCE:
                    stack.close()  # rounding is measured in the model's own way
                    while found is not None and self._measure_more():
                        found = self._difference(numbers)
                    if found is None:
                        return self._taken(stack.enter_context(_switched(self._model, way, recompute)), way)
                if found == INFLUENCE:
                    self._apart = self._apart or found
                reason = known or found
            except (ModelError, Unsupported) as error:
                reason = self._no_lamina_attention = str(error)
            except Exception as error:  # a trial is there to find out
                reason = f"it fails ({first_line(error)})"
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

    def _taken(self, report: FusionReport, way: Way) -> FusionReport:
        if way.layout == PACKED:
            return report if way.fused else replace(report, reasons=[f"fused, {reason}" for reason in self._refused])
        how = "together in one sequence" if way.layout.together else "one at a time"
        where = "its own attention" if way.layout.own_attention else "lamina's attention"
        reason = self._refused[0] if self._refused else self._apart
        note = f"Documents go through {type(self._model).__name__} {how}, in {where}, because packed, {reason}."
        if self._packed_seconds and self._reference is not None:
            ratio = self._reference.seconds(way.layout) / self._packed_seconds
            note += f" On two short documents that takes {ratio:.1f} times as long."
        return replace(report, layout=way.layout, fallback=note)


@contextlib.contextmanager
def _switched(model: PreTrainedModel, way: Way, recompute: Decision) -> Iterator[FusionReport]:
    with ExitStack() as stack:
        if not way.layout.own_attention:
            stack.enter_context(packed_attention(model))
        report = stack.enter_context(fused_layers(model, recompute) if way.fused else _unfused(model, recompute))
        if (report.recompute and report.fused < report.layers) or (report.recompute and not report.layers):
            if model.supports_gradient_checkpointing:
                model.activation_checkpointing_enable({"use_reentrant": False, "context_fn": checkpoint_contexts})
                # It has the embeddings ask for a gradient, which only reentrant checkpointing needs: work below the
                # lowest adapter, and products of other shapes, whose sums may differ in the last bit.
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
    """The report of a model whose layers all run as they are."""
    report = FusionReport(0, len(decoder_layers(model)), [])
    yield replace(report, recompute=recompute(report) if callable(recompute) else recompute)


@contextlib.contextmanager
def fused_layers(model: PreTrainedModel, recompute: Decision = False) -> Iterator[FusionReport]:
    """Runs those of `model`'s decoder layers fused that are recognised and give the same numbers.

    For packed sequences (see `ops.attention.packed_attention`). A layer that is asked for something else, such as a
    cache or a mask, answers with its own forward.

    Args:
        model: With its adapter, in the mode (training or not) that it will be used in.
        recompute: See `fast_path`.
    """
    layers = decoder_layers(model)
    plans: dict[nn.Module, LayerPlan] = {}
    parts: list[nn.Module] = []
    in_parts = 0
    scratch = Scratch()
    reasons: list[str] = [] if layers else [f"{type(model).__name__} keeps its decoder layers in no known place"]
    try:
        for layer, observed in _observed(model, layers).items():
            if isinstance(observed, str):
                reasons.append(observed)
                continue
            plan = take_apart(layer, observed, scratch)
            if not isinstance(plan, str):
                plans[layer] = plan
                continue
            reasons.append(plan)
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


def _observed(model: PreTrainedModel, layers: list[nn.Module]) -> dict[nn.Module, Observed | Reason]:
    """By layer: its own forward on the probe, or why there is none."""
    if not layers:
        return {}
    try:
        seen = observe(model, layers)
    except Exception as error:  # a model that cannot run packed shows that when its numbers are compared
        return dict.fromkeys(layers, f"it could not be looked at ({first_line(error)})")
    return {layer: seen.get(layer, "it did not run on a text") for layer in layers}


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
