"""How a row's adapter acts on the bare base: a small closed set of forms, as data.

One batch may hold rows with different adapters over one base. Whoever computes it asks each adapter's modules for
their forms (`AdapterModule.row_forms`), and needs to know these classes and no method. A module may have several
forms, which act in turn. All tensors are float32, and forms describe evaluation: nothing is dropped.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch

Activation = Literal["relu", "gelu", "silu", "tanh"]


@dataclass(frozen=True)
class LowRank:
    """A low-rank path beside a linear layer: y = c (x W^T + s (drop(x) A^T) B^T) + b.

    Attributes:
        A: (r, in); trained, or computed from what is.
        B: (out, r); alike.
        scaling: s.
        dropout: Probability of dropping an element of the path's input, now; 0 at evaluation.
        columns: c, (out,): factors of the outputs, the base's included and the bias not (DoRA); None for 1.
    """

    A: torch.Tensor
    B: torch.Tensor
    scaling: float
    dropout: float = 0.0
    columns: torch.Tensor | None = None

    def tensors(self) -> list[torch.Tensor]:
        """Those that get gradients, in the order of `LinearGroup.backward_paths`."""
        return [self.A, self.B] if self.columns is None else [self.A, self.B, self.columns]


@dataclass(frozen=True)
class Scales:
    """Factors of a linear layer's inputs or outputs: y = o (W (i x) + b).

    Attributes:
        inputs: i, (in,); None for 1.
        outputs: o, (out,), of the bias too; None for 1.
    """

    inputs: torch.Tensor | None = None
    outputs: torch.Tensor | None = None


@dataclass(frozen=True)
class Delta:
    """A whole matrix beside a linear layer: y = x (W + D)^T + b.

    Attributes:
        weight: D, (out, in).
    """

    weight: torch.Tensor


@dataclass(frozen=True)
class Bias:
    """Something added to a linear layer's output: y + d.

    Attributes:
        added: d, (out,).
    """

    added: torch.Tensor


@dataclass(frozen=True)
class Parameters:
    """Trained copies in place of a module's own parameters: of a norm, a bias, an embedding, or a whole module.

    Attributes:
        values: By the parameters' names in the module; each is rounded to the dtype of the one that it stands for.
    """

    values: Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Bottleneck:
    """A small network on a part of a decoder layer: h + s (U f(D z + d) + u), with z = h, or the part's own input.

    Attributes:
        down_weight: D, (bottleneck, width).
        down_bias: d, (bottleneck,).
        up_weight: U, (width, bottleneck).
        up_bias: u, (width,).
        scaling: s.
        activation: f.
        parallel: Whether z is the part's input, rather than its output h.
    """

    down_weight: torch.Tensor
    down_bias: torch.Tensor
    up_weight: torch.Tensor
    up_bias: torch.Tensor
    scaling: float
    activation: Activation
    parallel: bool


@dataclass(frozen=True)
class SoftPrompt:
    """Embeddings before every sequence, at its first n positions.

    Attributes:
        rows: (n, width), as the decoder takes them: not scaled as some models scale their own embeddings.
    """

    rows: torch.Tensor


@dataclass(frozen=True)
class Prefix:
    """Keys and values before those of every sequence, at its first n positions; the keys are not rotated.

    Attributes:
        keys_and_values: For each decoder layer, two of (key heads, n, head size).
    """

    keys_and_values: tuple[tuple[torch.Tensor, torch.Tensor], ...]


@dataclass(frozen=True)
class NotMixable:
    """An adapter that can only be used by a batch of its own.

    Attributes:
        reason: Why, as a sentence.
    """

    reason: str


RowForm = LowRank | Scales | Delta | Bias | Parameters | Bottleneck | SoftPrompt | Prefix | NotMixable
