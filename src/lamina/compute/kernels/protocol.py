"""What a set of kernels has: the functions that `native` (C++), `compiled` (torch.compile) and `plain` (torch) define.

`plain` says what each computes, and is what the others are tested against. A fourth set is one more module with these
functions, and a line in `kernels_for`.
"""

from __future__ import annotations

from typing import Protocol

import torch


class Kernels(Protocol):
    """The work between matrix products. A name that ends in an underscore writes into its arguments."""

    def rms_norm(
        self, x: torch.Tensor, weight: torch.Tensor, eps: float, offset: float, out: torch.Tensor
    ) -> torch.Tensor: ...

    def rms_norm_backward(
        self,
        grad: torch.Tensor,
        x: torch.Tensor,
        weight: torch.Tensor,
        scale: torch.Tensor,
        offset: float,
        residual: torch.Tensor | None,
        out: torch.Tensor,
    ) -> None: ...

    def gated(self, gate: torch.Tensor, up: torch.Tensor, activation: int, out: torch.Tensor) -> None: ...

    def gated_backward_(self, gate: torch.Tensor, up: torch.Tensor, activation: int, grad: torch.Tensor) -> None: ...

    def rotary_(self, x: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor, inverse: bool) -> None: ...

    def scale_columns_(self, y: torch.Tensor, scale: torch.Tensor) -> None: ...

    def scale_columns_backward(
        self, grad: torch.Tensor, y: torch.Tensor, scale: torch.Tensor, out: torch.Tensor
    ) -> torch.Tensor: ...

    def dropped(self, x: torch.Tensor, key: int, threshold: int, factor: float, out: torch.Tensor) -> None: ...

    def add_dropped_(self, total: torch.Tensor, x: torch.Tensor, key: int, threshold: int, factor: float) -> None: ...

    def narrow_product(self, narrow: torch.Tensor, wide: torch.Tensor, out: torch.Tensor, factor: float) -> None: ...

    def cross_entropy_(
        self, logits: torch.Tensor, targets: torch.Tensor, multiplier: float, softcap: float | None, wants_grad: bool
    ) -> torch.Tensor: ...
