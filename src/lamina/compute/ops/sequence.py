"""Documents divided over processes (Ulysses): each has a part of the tokens, and in attention a part of the heads.

Everything but attention treats a token by itself. Before attention, an all-to-all turns a part of the tokens with all
heads into all tokens with a part of the heads, and one afterwards turns it back, so that each head's attention is
computed as in one process.

Jacobs et al. 2023, "DeepSpeed Ulysses", arXiv:2309.14509.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Split:
    """A part of the documents.

    Attributes:
        part: Which part is this process's, from 0.
        parts: Number of parts.
        exchange: All-to-all over the processes of the other parts: (parts, ...) -> (parts, ...), whose entry p is what
            process p had for this one.
    """

    part: int
    parts: int
    exchange: Callable[[torch.Tensor], torch.Tensor]


@dataclass
class _Current:
    """The split of the running model; None while every process has whole documents."""

    split: Split | None = None


_current = _Current()


@contextlib.contextmanager
def splitting(split: Split | None) -> Iterator[None]:
    """Runs a model on parts of documents inside the block, its backward included."""
    before, _current.split = _current.split, split
    try:
        yield
    finally:
        _current.split = before


def current_split() -> Split | None:
    """Returns how documents are divided now; None if they are whole."""
    return _current.split


@contextlib.contextmanager
def whole_documents(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, split: Split
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Gives attention's inputs for whole documents and the own heads, inside a block that knows of no parts.

    Key heads that the parts do not divide are repeated for each query head.
    """
    if key.shape[1] % split.parts:
        key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
    with splitting(None):
        yield scatter_heads(query, split), scatter_heads(key, split), scatter_heads(value, split)


def scatter_heads(x: torch.Tensor, split: Split) -> torch.Tensor:
    """Turns (1, heads, own tokens, size) into (1, own heads, all tokens, size)."""
    _, heads, tokens, size = x.shape
    found = _exchanged(x.reshape(split.parts, heads // split.parts, tokens, size), split)
    return found.permute(1, 0, 2, 3).reshape(1, heads // split.parts, split.parts * tokens, size)


def gather_heads(x: torch.Tensor, split: Split) -> torch.Tensor:
    """Turns (1, all tokens, own heads, size) into (1, own tokens, heads, size)."""
    _, tokens, heads, size = x.shape
    found = _exchanged(x.reshape(split.parts, tokens // split.parts, heads, size), split)
    return found.permute(1, 0, 2, 3).reshape(1, tokens // split.parts, split.parts * heads, size)


def own_heads(x: torch.Tensor, split: Split) -> torch.Tensor:
    """The own part of one number per head, (heads,)."""
    return x.view(split.parts, -1)[split.part]


def _exchanged(x: torch.Tensor, split: Split) -> torch.Tensor:
    found: Any = _Exchange.apply(x, split)
    return found


class _Exchange(torch.autograd.Function):
    """An all-to-all, whose transpose is another one."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, split: Split) -> torch.Tensor:
        ctx.split = split
        return split.exchange(x.contiguous())

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return ctx.split.exchange(grads[0].contiguous()), None
