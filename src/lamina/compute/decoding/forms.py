"""An adapter as the kernels read it: its row forms, rounded to the base's dtype and laid out for one pass.

Nothing here knows a method. What a form asks for that the kernels do not do is refused with a reason, and then the
adapter runs through transformers instead.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from lamina.compute.decoding import layouts
from lamina.compute.decoding.layouts import GATE, OUTPUTS, PANEL, UP, K, Q, V, address
from lamina.compute.ops import row_forms
from lamina.compute.ops.row_forms import (
    Bias,
    Delta,
    LowRank,
    NotMixable,
    Parameters,
    Prefix,
    RowForm,
    Scales,
    SoftPrompt,
)

_ACTIVATIONS: dict[row_forms.Activation, int] = {"silu": 0, "gelu": 1, "relu": 2, "tanh": 3}


class NotMixed(Exception):
    """An adapter that a batch of mixed rows cannot hold; the message says why."""


@dataclass(frozen=True)
class Places:
    """Where the modules of a bare model are, by name.

    Attributes:
        linears: Module name -> (layer, place).
        norms: Alike.
        sublayers: Names of the sublayers: (layer, 0) for attention, (layer, 1) for the MLP.
        shapes: (O, I) of the linear modules; of the head too.
        head, embedding, final_norm: Names of the modules outside of the layers.
        layers: How many decoder layers there are.
        width: Of the residual stream.
        dtype: What the base computes in.
    """

    linears: Mapping[str, tuple[int, int]]
    norms: Mapping[str, tuple[int, int]]
    sublayers: Mapping[str, tuple[int, int]]
    shapes: Mapping[str, tuple[int, int]]
    head: str
    embedding: str
    final_norm: str
    layers: int
    width: int
    dtype: torch.dtype


@dataclass
class AdapterForms:
    """An adapter, ready for `Decoder.step`.

    Attributes:
        structure: What the kernels read.
        rank: The largest rank, filled up.
        soft_prompt: Embeddings before every sequence, (n, width), in the base's dtype; None for none.
        prefix: Keys and values before those of every sequence, for each layer (key heads, n, head size); None for none.
        embedding: The whole embedding in place of the base's, (V, width); None for the base's.
        nbytes: Memory of all of it.
    """

    structure: layouts.Adapter
    rank: int = 0
    soft_prompt: torch.Tensor | None = None
    prefix: list[tuple[torch.Tensor, torch.Tensor]] | None = None
    embedding: torch.Tensor | None = None
    nbytes: int = 0
    _alive: list[object] = field(default_factory=list)

    @property
    def virtual_tokens(self) -> int:
        """Positions before a sequence that the adapter takes."""
        if self.soft_prompt is not None:
            return int(self.soft_prompt.shape[0])
        return 0 if self.prefix is None else int(self.prefix[0][0].shape[1])


def build_forms(forms: Mapping[str, Sequence[RowForm]], places: Places) -> AdapterForms:
    """Lays an adapter out for the kernels.

    Args:
        forms: Row forms by module name, from `Injection.row_forms`; "" for the model as a whole.
        places: Where the modules are.

    Raises:
        NotMixed: A form cannot be mixed.
    """
    return _Builder(places).build(forms)


class _Builder:
    def __init__(self, places: Places) -> None:
        self._places = places
        self._layers = (layouts.AdapterLayer * places.layers)()
        self._head = layouts.Form()
        self._result = AdapterForms(layouts.Adapter(layers=self._layers, head=ctypes.pointer(self._head)))
        self._result._alive += [self._layers, self._head]

    def build(self, forms: Mapping[str, Sequence[RowForm]]) -> AdapterForms:
        for name, each in forms.items():
            for form in each:
                if isinstance(form, NotMixable):
                    raise NotMixed(f"{name}: {form.reason}" if name else form.reason)
            if name == "":
                self._whole(each)
            else:
                for form in each:
                    self._one(name, form)
        for layer in self._layers:
            for together in ((Q, K, V), (GATE, UP)):
                if sum(layer.linears[place].inputs is not None for place in together) > 1:
                    raise NotMixed("two layers that read the same input scale it")
        return self._result

    def _whole(self, forms: Sequence[RowForm]) -> None:
        for form in forms:
            if isinstance(form, SoftPrompt):
                self._result.soft_prompt = self._kept(form.rows, self._places.dtype)
            elif isinstance(form, Prefix):
                self._result.prefix = [
                    (self._kept(keys, self._places.dtype), self._kept(values, self._places.dtype))
                    for keys, values in form.keys_and_values
                ]
            else:
                raise NotMixed(f"{type(form).__name__} acts on the model as a whole")

    def _one(self, name: str, form: RowForm) -> None:
        places = self._places
        if isinstance(form, Parameters):
            for key, value in form.values.items():
                self._parameter(f"{name}.{key}", value)
            return
        if isinstance(form, row_forms.Bottleneck):
            if name not in places.sublayers:
                raise NotMixed(f"{name} has a network of its own, and is no sublayer")
            layer, which = places.sublayers[name]
            self._layers[layer].networks[which] = self._network(form)
            return
        target = self._head if name == places.head else None
        if name in places.linears:
            layer, place = places.linears[name]
            target = self._layers[layer].linears[place]
        if target is None:
            raise NotMixed(f"{name} is no linear layer of the decoder")
        self._linear(name, form, target)

    def _linear(self, name: str, form: RowForm, target: layouts.Form) -> None:
        rows, _ = self._places.shapes[name]
        if isinstance(form, LowRank):
            if target.rank or target.columns:
                raise NotMixed(f"{name} has two low-rank paths")
            A, B = self._low_rank(form)
            target.A, target.B, target.rank = address(A), address(B), A.shape[0]
            self._result.rank = max(self._result.rank, int(A.shape[0]))
            if form.columns is not None:
                target.columns = address(self._kept(form.columns, torch.float32))
        elif isinstance(form, Scales):
            if target.inputs or target.outputs or target.rank:
                raise NotMixed(f"{name} is scaled twice, or after a low-rank path")
            target.inputs = self._floats(form.inputs)
            target.outputs = self._floats(form.outputs)
        elif isinstance(form, Delta):
            if target.delta:
                raise NotMixed(f"{name} has two matrices beside it")
            target.delta = address(self._kept(form.weight, self._places.dtype))
        elif isinstance(form, Bias):
            if target.added:
                raise NotMixed(f"{name} has two biases beside its own")
            target.added = self._floats(form.added.expand(rows))
        else:
            raise NotMixed(f"{name}: {type(form).__name__} is not mixed")

    def _parameter(self, full_name: str, value: torch.Tensor) -> None:
        """A trained copy of a parameter of the base."""
        places = self._places
        module, _, key = full_name.rpartition(".")
        dtype = places.dtype
        if module == places.embedding and key == "weight":
            # A head that shares the base's weight keeps it, unless the adapter has a copy for the head too.
            self._result.embedding = self._kept(value, dtype)
            return
        if module == places.final_norm and key == "weight":
            self._result.structure.final_norm = address(self._kept(value, dtype))
            return
        if module in places.norms and key == "weight":
            layer, place = places.norms[module]
            self._layers[layer].norms[place] = address(self._kept(value, dtype))
            return
        target = self._head if module == places.head else None
        if module in places.linears:
            layer, place = places.linears[module]
            target = self._layers[layer].linears[place]
        if target is None or key not in ("weight", "bias"):
            raise NotMixed(f"{full_name} is trained, and is no parameter that rows can have of their own")
        setattr(target, key, address(self._kept(value, dtype)))

    def _low_rank(self, form: LowRank) -> tuple[torch.Tensor, torch.Tensor]:
        """A (rank, I) with the rank filled up, and s B as (panels, rank, PANEL)."""
        dtype = self._places.dtype
        rank, width = form.A.shape
        padded = -(-rank // OUTPUTS) * OUTPUTS
        A = torch.zeros(padded, width, dtype=dtype)
        A[:rank] = form.A.detach()
        outputs = form.B.shape[0]
        panels = -(-outputs // PANEL)
        B = torch.zeros(panels * PANEL, padded, dtype=dtype)
        B[:outputs, :rank] = form.B.detach() * form.scaling
        return self._kept(A, dtype), self._kept(B.view(panels, PANEL, padded).transpose(1, 2), dtype)

    def _network(self, form: row_forms.Bottleneck) -> layouts.Bottleneck:
        if form.down_weight.shape[1] != self._places.width:
            raise NotMixed(f"a network reads {form.down_weight.shape[1]} elements, not the residual stream's")
        parts = (form.down_weight, form.down_bias, form.up_weight, form.up_bias)
        down, down_bias, up, up_bias = (self._floats(part) for part in parts)
        return layouts.Bottleneck(
            down=down,
            down_bias=down_bias,
            up=up,
            up_bias=up_bias,
            width=form.down_weight.shape[0],
            scaling=form.scaling,
            activation=_ACTIVATIONS[form.activation],
            parallel=int(form.parallel),
        )

    def _floats(self, tensor: torch.Tensor | None) -> int | None:
        return None if tensor is None else address(self._kept(tensor, torch.float32))

    def _kept(self, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """A copy that lives as long as the adapter does."""
        kept = tensor.detach().to("cpu", dtype, copy=True).contiguous()
        self._result.nbytes += kept.nbytes
        self._result._alive.append(kept)
        return kept
