"""Frozen linear layers that share an input, with their low-rank paths: one matrix product forward, one backward.

The weights of a group are stacked into one matrix, with the scaled B's appended as columns; the rank-sized products h
are appended to the input as columns. So one product computes everything:

    h = x A^T          [x | h] [W | s B]^T = x W^T + s h B^T          g [W | s B] = [g W | s g B] = [g W | gh]

and the rest of the backward is rank-sized: dA = gh^T x, dB = s g^T h, dx = g W + gh A. The gradient of W is never
formed. The A's of all layers are stacked too, and their B's form a block-diagonal matrix, so the layers share these
products. The zeros between the blocks cost little at a small rank. At a higher rank each layer has its own product,
with its own rank-sized products in the appended columns.

The layers' weights become views into that matrix, so nothing is stored twice. Packed weights, in 4 or 8 bits, are
dequantized for each product into a buffer that all groups share, and weights that are sharded over processes copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from lamina.compute.kernels import kernels_for
from lamina.compute.ops.dropout import Dropout, MaskedDropout, draw_dropout
from lamina.compute.ops.pool import Scratch
from lamina.compute.ops.row_forms import LowRank
from lamina.compute.weights import PackedLinear
from lamina.compute.weights.mapped import drop_pages
from lamina.compute.weights.sharded import is_sharded

# Layers share a product if its zeros are at most this share of the weights. Measured in bfloat16, with 2,048 tokens and
# widths of 576 to 2,048: separate products take 0.99 to 1.05 of the time at a share of 0.03, 0.92 to 1.01 at 0.09, and
# 0.87 to 0.90 at 0.22.
_MOST_ZEROS = 1 / 12


@dataclass
class GroupState:
    """What a forward saves for its backward.

    Attributes:
        h: Rank-sized products of the low-rank paths, (T, R); views into `x_ext` if the layers share a product.
        dropouts: For each layer, the dropout of its path's input, or None.
        scaled: Outputs without bias and residual, (T, out), if columns are scaled; else None.
        grad_columns: Gradient of the column factors, (out,), after `backward_scaling`; else None.
    """

    h: torch.Tensor
    dropouts: list[Dropout | None]
    scaled: torch.Tensor | None = None
    grad_columns: torch.Tensor | None = None

    def is_small(self) -> bool:
        """Whether it holds only rank-sized tensors."""
        return self.scaled is None and not any(isinstance(dropout, MaskedDropout) for dropout in self.dropouts)


class LinearGroup:
    """One or more linear layers with the same input.

    Attributes:
        in_features: Width of the input.
        out_features: Sum of the layers' output widths.
        rank: Of all paths together, R.
        extra_width: Columns appended to the input: R if the layers share a product, else the highest rank.
    """

    def __init__(
        self, linears: Sequence[nn.Linear | PackedLinear], ranks: Sequence[int], scratch: Scratch | None = None
    ) -> None:
        """Stacks the layers' weights.

        Args:
            linears: Frozen layers; the weights of ordinary ones become views into the group's matrix until `release`.
            ranks: Of each linear's path; 0 for none.
            scratch: Buffers that packed weights are dequantized into.
        """
        self._linears = list(linears)
        self._ranks = list(ranks)
        self._rows = _slices([linear.out_features for linear in linears])
        self._columns = _slices(ranks)
        self.in_features = linears[0].in_features
        self.out_features = sum(linear.out_features for linear in linears)
        self.rank = sum(ranks)
        zeros = sum(linear.out_features * (self.rank - rank) for linear, rank in zip(linears, ranks, strict=True))
        self._shared = zeros <= _MOST_ZEROS * self.out_features * self.in_features
        self.extra_width = self.rank if self._shared else max(ranks)
        self._slots = self._columns if self._shared else [slice(0, rank) for rank in ranks]
        weight = linears[0].weight
        self._scratch = scratch or Scratch()
        self._packed = any(isinstance(linear, PackedLinear) or is_sharded(linear) for linear in linears)
        self._A = weight.new_empty(self.rank, self.in_features)
        if self._packed:
            self._scaled_B = weight.new_zeros(self.out_features, self.extra_width)
        else:
            self._resident = weight.new_zeros(self.out_features, self.in_features + self.extra_width)
            self._scaled_B = self._resident[:, self.in_features :]
            with torch.no_grad():
                for linear, rows in zip(self._linears, self._rows, strict=True):
                    home, own = self._resident[rows, : self.in_features], linear.weight.data
                    linear.weight.data = home.copy_(own)
                    drop_pages(own)
        self._factors: torch.Tensor | None = None
        self._bias = None
        if any(linear.bias is not None for linear in linears):
            biases = [x.bias.detach() if x.bias is not None else weight.new_zeros(x.out_features) for x in linears]
            self._bias = torch.cat(biases)

    def release(self) -> None:
        """Gives every layer a separate weight again. The group must not be used afterwards."""
        if self._packed:
            return
        for linear in self._linears:
            linear.weight.data = linear.weight.detach().clone(memory_format=torch.contiguous_format)
        self._resident = self._scaled_B = self._resident.new_empty(0)

    def refresh(self, paths: Sequence[LowRank | None]) -> None:
        """Copies A and the scaled B, rounded from float32, into the group. None for a layer without an active path."""
        for path, rows, columns, slot in zip(paths, self._rows, self._columns, self._slots, strict=True):
            scaled_B = self._scaled_B[rows, slot]
            if path is None:
                scaled_B.zero_()
                self._A[columns].zero_()
            else:
                scaled_B.copy_(path.B.detach() * path.scaling)
                self._A[columns].copy_(path.A.detach())
        self._factors = self._column_factors(paths)

    def forward(
        self,
        x_ext: torch.Tensor,
        paths: Sequence[LowRank | None],
        residual: torch.Tensor | None = None,
        out: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, GroupState]:
        """Computes the outputs of all layers, concatenated.

        Args:
            x_ext: (T, in + extra_width): the input in the first columns; the others are written.
            paths: As given to `refresh`.
            residual: Added to the output, (T, out), or None.
            out: Buffer for the product, (T, out), or None.

        Returns:
            The outputs (T, out), and the state for the backward.
        """
        x, extra = x_ext[:, : self.in_features], x_ext[:, self.in_features :]
        h = extra if self._shared else x.new_empty(x.shape[0], self.rank)
        state = GroupState(
            h, [draw_dropout(x, d.dropout) if d is not None and d.dropout > 0.0 else None for d in paths]
        )
        if self.rank and None in state.dropouts:
            h.copy_(x @ self._A.T)
        for dropout, columns in zip(state.dropouts, self._columns, strict=True):
            if dropout is not None:
                h[:, columns] = dropout.apply(x) @ self._A[columns].T
        if self._factors is not None:
            state.scaled = self._products(x_ext, h, None, out)
            kernels_for(state.scaled).scale_columns_(state.scaled, self._factors)
            y = state.scaled if residual is None else state.scaled + residual
            return y if self._bias is None else y + self._bias, state
        y = self._products(x_ext, h, residual, out)
        return y if self._bias is None else y.add_(self._bias), state

    def backward_scaling(self, grad: torch.Tensor, state: GroupState) -> torch.Tensor:
        """Backpropagates through the scaling of columns: gradient of the outputs (T, out) -> of the unscaled products.

        Returns `grad` itself if no column is scaled; else the gradient of the factors is stored in `state`.
        """
        if self._factors is None:
            return grad
        assert state.scaled is not None
        through = torch.empty_like(grad)
        sums = kernels_for(grad).scale_columns_backward(grad, state.scaled, self._factors, through)
        # sum g y = factor * sum g (y / factor). If a factor is zero, y is too, and the gradient cannot be recovered.
        state.grad_columns = torch.where(self._factors == 0.0, 0.0, sums / self._factors)
        return through

    def backward_input(
        self, grad: torch.Tensor, state: GroupState, paths: Sequence[LowRank | None], wants_dx: bool = True
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Computes the gradients of the input and of the rank-sized products.

        Args:
            grad: (T, out), from `backward_scaling`, as in `backward_paths`.
            state: From `forward`.
            paths: As in `forward`.
            wants_dx: Whether the input's gradient is needed.

        Returns:
            dx (T, in), undefined if not wanted, and gh (T, R).
        """
        if not wants_dx:
            return grad, self._rank_sized(grad, self._scaled_B)
        if self._shared:
            both = grad @ self._matrix()
            dx, gh = both[:, : self.in_features], both[:, self.in_features :].contiguous()
        else:
            matrix = self._matrix()
            dx, gh = grad @ matrix[:, : self.in_features], self._rank_sized(grad, matrix[:, self.in_features :])
        if not any(state.dropouts):
            return (dx.addmm_(gh, self._A) if self.rank else dx), gh
        for dropout, path, columns in zip(state.dropouts, paths, self._columns, strict=True):
            if dropout is not None:
                dropout.add_(dx, gh[:, columns] @ self._A[columns])
            elif path is not None:
                dx.addmm_(gh[:, columns], self._A[columns])
        return dx, gh

    def backward_paths(
        self,
        grad: torch.Tensor,
        gh: torch.Tensor,
        x: torch.Tensor,
        h: torch.Tensor,
        state: GroupState,
        paths: Sequence[LowRank | None],
    ) -> list[torch.Tensor]:
        """Gradients of each path's tensors in turn, float32.

        Args:
            grad: (T, out).
            gh: (T, R), from `backward_input`.
            x: (T, in), the input.
            h: (T, R), the rank-sized products of the forward.
            state: From `forward`.
            paths: As in `forward`.
        """
        if not any(paths):
            return []
        kernels, grads = kernels_for(grad, gh, x, h), []
        dA = torch.empty(self.rank, self.in_features, device=grad.device)
        if not any(state.dropouts):
            kernels.narrow_product(gh, x, dA, 1.0)
        for dropout, path, rows, columns in zip(state.dropouts, paths, self._rows, self._columns, strict=True):
            if path is not None:
                if any(state.dropouts):
                    seen = x if dropout is None else dropout.apply(x)
                    kernels.narrow_product(gh[:, columns], seen, dA[columns], 1.0)
                dB = torch.empty(path.B.shape, device=grad.device)
                kernels.narrow_product(h[:, columns], grad[:, rows], dB.T, path.scaling)
                grads += [dA[columns], dB]
                if path.columns is not None:
                    assert state.grad_columns is not None
                    grads.append(state.grad_columns[rows])
        return grads

    def _products(
        self, x_ext: torch.Tensor, h: torch.Tensor, residual: torch.Tensor | None, out: torch.Tensor | None
    ) -> torch.Tensor:
        """Computes x W^T + s h B^T plus the residual, (T, out)."""
        matrix = self._matrix()
        if self._shared:
            if residual is None:
                return torch.mm(x_ext, matrix.T, out=out)
            return torch.addmm(residual, x_ext, matrix.T, out=out)
        extra = x_ext[:, self.in_features :].zero_()
        y = x_ext.new_empty(x_ext.shape[0], self.out_features) if out is None else out
        for rows, columns, slot in zip(self._rows, self._columns, self._slots, strict=True):
            # Columns left over from an earlier layer of a higher rank are multiplied by zeros.
            extra[:, slot].copy_(h[:, columns])
            torch.mm(x_ext, matrix[rows].T, out=y[:, rows])
        return y if residual is None else y.add_(residual)

    def _rank_sized(self, grad: torch.Tensor, scaled_B: torch.Tensor) -> torch.Tensor:
        """Computes s g B of each layer, (T, R), from the scaled B's (out, extra_width)."""
        if self._shared:
            return grad @ scaled_B
        gh = grad.new_empty(grad.shape[0], self.rank)
        for rows, columns, slot in zip(self._rows, self._columns, self._slots, strict=True):
            gh[:, columns] = grad[:, rows] @ scaled_B[rows, slot]
        return gh

    def _matrix(self) -> torch.Tensor:
        """Returns [W | s B], (out, in + extra_width). With packed weights it is valid until another group's call."""
        if not self._packed:
            return self._resident
        matrix = self._scratch.buffer(self._scaled_B, self.out_features, self.in_features + self.extra_width)
        for linear, rows in zip(self._linears, self._rows, strict=True):
            weight = matrix[rows, : self.in_features]
            if isinstance(linear, PackedLinear):
                linear.dequantize_into(weight)
            else:
                weight.copy_(linear.weight)
        matrix[:, self.in_features :].copy_(self._scaled_B)
        return matrix

    def _column_factors(self, paths: Sequence[LowRank | None]) -> torch.Tensor | None:
        if not any(path is not None and path.columns is not None for path in paths):
            return None
        factors = torch.ones(self.out_features, device=self._A.device)
        for path, rows in zip(paths, self._rows, strict=True):
            if path is not None and path.columns is not None:
                factors[rows] = path.columns.detach()
        return factors


def _slices(lengths: Sequence[int]) -> list[slice]:
    ends = [sum(lengths[: i + 1]) for i in range(len(lengths))]
    return [slice(end - length, end) for length, end in zip(lengths, ends, strict=True)]
