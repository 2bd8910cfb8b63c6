"""A `Batch`: documents of one forward, end to end, each with its own positions, and no padding.

A `Layout` says how the documents of a micro-batch become batches. `PACKED` is the fast one, and which one is right for
a model is found out before training (`compute/fusion/exactness.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
import torch

from lamina.data.example import EncodedExample


@dataclass(frozen=True)
class Layout:
    """How documents go through a model.

    Attributes:
        together: All documents of a micro-batch in one sequence; else each in a forward of its own.
        own_attention: In the attention implementation that the model was loaded with; else in lamina's.
    """

    together: bool
    own_attention: bool


PACKED = Layout(together=True, own_attention=False)


@dataclass(frozen=True)
class Batch:
    """Documents of one forward as a single sequence of T tokens.

    Attributes:
        input_ids: int64, shape (1, T).
        position_ids: int64, shape (1, T); starts again from 0 at each document.
        document_lengths: Tokens of each document, on the host; they sum to T.
        predicting: int64, shape (N,): positions whose hidden state predicts a supervised token.
        targets: int64, shape (N,): those supervised tokens.
        layout: How the model is to be called.
        examples: What the documents are of, in order; an example may have several documents, and in a layout that runs
            them one at a time, each has batches of its own.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    document_lengths: list[int]
    predicting: torch.Tensor
    targets: torch.Tensor
    layout: Layout = PACKED
    examples: tuple[EncodedExample, ...] = ()

    @property
    def tokens(self) -> int:
        """Real tokens; there are no others."""
        return self.input_ids.shape[1]

    @property
    def supervised_tokens(self) -> int:
        """Tokens in the loss."""
        return self.targets.shape[0]

    def to(self, device: torch.device) -> Batch:
        """The same batch on `device`."""
        if device.type == "cpu":
            return self

        def moved(tensor: torch.Tensor) -> torch.Tensor:
            # Pinned, so that the copy runs beside the device's work.
            return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)

        return Batch(
            moved(self.input_ids),
            moved(self.position_ids),
            self.document_lengths,
            moved(self.predicting),
            moved(self.targets),
            self.layout,
            self.examples,
        )


class Documents(Sequence[torch.Tensor]):
    """Token ids of examples, int64 (1, T) each, made when they are asked for; of several sequences the first."""

    def __init__(self, examples: Sequence[EncodedExample], device: torch.device) -> None:
        self._examples = examples
        self._device = device

    def __len__(self) -> int:
        return len(self._examples)

    @overload
    def __getitem__(self, place: int) -> torch.Tensor: ...
    @overload
    def __getitem__(self, place: slice) -> Documents: ...
    def __getitem__(self, place: int | slice) -> torch.Tensor | Documents:
        if isinstance(place, slice):
            return Documents(self._examples[place], self._device)
        example = self._examples[place]
        ids = example.input_ids[: example.lengths[0]].astype(np.int64)
        return torch.from_numpy(ids)[None].to(self._device)


def build_units(examples: Sequence[EncodedExample], layout: Layout = PACKED) -> list[list[Batch]]:
    """Turns a micro-batch into the batches that its layout asks for.

    Returns:
        Lists of batches, each with the documents of whole examples, whose loss is computed at once; the sum of their
        losses is the micro-batch's. An example with nothing to learn is left out where it would be alone.
    """
    if layout.together:
        return [[build_batch(examples, layout)]]
    return [_one_at_a_time(example, layout) for example in examples if example.supervised_tokens]


def build_batches(examples: Sequence[EncodedExample], layout: Layout = PACKED) -> list[Batch]:
    """The batches of `build_units`, one after the other."""
    return [batch for unit in build_units(examples, layout) for batch in unit]


def build_batch(examples: Sequence[EncodedExample], layout: Layout = PACKED) -> Batch:
    """Lays examples end to end.

    >>> example = EncodedExample(np.array([5, 6, 7], np.int32), np.array([False, False, True]), row=1)
    >>> batch = build_batch([example, example])
    >>> batch.position_ids.tolist(), batch.predicting.tolist(), batch.targets.tolist()
    ([[0, 1, 2, 0, 1, 2]], [1, 4], [7, 7])
    """
    lengths = [length for example in examples for length in example.lengths]
    ids = np.concatenate([example.input_ids for example in examples])
    supervised = np.concatenate([example.supervised for example in examples])
    return _build(ids, supervised, lengths, layout, tuple(examples))


def _one_at_a_time(example: EncodedExample, layout: Layout) -> list[Batch]:
    """A batch for each sequence of an example."""
    if not example.several:
        return [build_batch([example], layout)]
    cuts = np.cumsum(example.several)[:-1]
    parts = zip(np.split(example.input_ids, cuts), np.split(example.supervised, cuts), strict=True)
    return [_build(ids, supervised, [len(ids)], layout, (example,)) for ids, supervised in parts]


def _build(
    ids: np.ndarray, supervised: np.ndarray, lengths: list[int], layout: Layout, examples: tuple[EncodedExample, ...]
) -> Batch:
    ids = ids.astype(np.int64)
    targets_at = np.flatnonzero(supervised)
    positions = np.concatenate([np.arange(length) for length in lengths])
    assert not (positions[targets_at] == 0).any(), "a document's first token cannot be supervised"
    return Batch(
        input_ids=torch.from_numpy(ids)[None],
        position_ids=torch.from_numpy(positions)[None],
        document_lengths=lengths,
        predicting=torch.from_numpy(targets_at - 1),
        targets=torch.from_numpy(ids[targets_at]),
        layout=layout,
        examples=examples,
    )
