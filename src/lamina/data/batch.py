"""A `Batch`: the documents of one forward pass, concatenated without padding, each with its own positions.

A `Layout` says how the documents of a micro-batch become batches, and how a batch goes through the model, which may be
as padded rows after all. `PACKED` is the fastest; training determines
beforehand which layouts are exact for a model (`compute/fusion/exactness.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
import torch
import torch.nn.functional as F

from lamina.data.example import EncodedExample


@dataclass(frozen=True)
class Layout:
    """How documents are run through a model.

    Attributes:
        together: Whether all documents of a micro-batch are one sequence; otherwise, each is one.
        own_attention: Whether to use the attention implementation that the model was loaded with; otherwise, lamina's.
        padded: Whether sequences of similar lengths share a forward pass, as the rows of a batch that is padded on the
            right. Causal models need no mask for that: nothing sees the tokens after it. Otherwise, each sequence has
            a forward pass of its own.
    """

    together: bool
    own_attention: bool
    padded: bool = False

    @property
    def shared(self) -> bool:
        """Whether documents share a forward pass."""
        return self.together or self.padded


PACKED = Layout(together=True, own_attention=False)

# The largest share of padding in a padded batch.
_PADDING = 0.2


@dataclass(frozen=True)
class Batch:
    """The documents of one forward pass, end to end: T tokens. `fusion.model_inputs` pads them, if the layout says so.

    Attributes:
        input_ids: int64, shape (1, T).
        position_ids: int64, shape (1, T); restarts at 0 for each document.
        document_lengths: Tokens in each document, on the host; they sum to T.
        predicting: int64, shape (N,): positions whose hidden state predicts a supervised token.
        targets: int64, shape (N,): the supervised tokens.
        layout: How to run the model.
        examples: The examples that the documents belong to, in order. An example may have several documents; a layout
            that runs them one at a time makes separate batches of them.
        parts: Number of processes that the tokens are divided over; the documents' lengths are those of the whole.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    document_lengths: list[int]
    predicting: torch.Tensor
    targets: torch.Tensor
    layout: Layout = PACKED
    examples: tuple[EncodedExample, ...] = ()
    parts: int = 1

    @property
    def tokens(self) -> int:
        """Number of tokens; there is no padding."""
        return self.input_ids.shape[1]

    @property
    def supervised_tokens(self) -> int:
        """Number of tokens in the loss."""
        return self.targets.shape[0]

    def to(self, device: torch.device) -> Batch:
        """Returns the batch on `device`."""
        if device.type == "cpu":
            return self

        def moved(tensor: torch.Tensor) -> torch.Tensor:
            # Pinned, so that the copy overlaps with the device's work.
            return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)

        return Batch(
            moved(self.input_ids),
            moved(self.position_ids),
            self.document_lengths,
            moved(self.predicting),
            moved(self.targets),
            self.layout,
            self.examples,
            self.parts,
        )

    def part(self, number: int, parts: int) -> Batch:
        """Returns one of several equal parts of the tokens; documents of one token fill up what is missing.

        >>> example = EncodedExample(np.array([5, 6, 7], np.int32), np.array([False, True, True]), row=1)
        >>> part = build_batch([example]).part(1, 2)
        >>> part.input_ids.tolist(), part.document_lengths, part.predicting.tolist(), part.targets.tolist()
        ([[7, 0]], [3, 1], [], [])
        """
        missing = -self.tokens % parts
        size = (self.tokens + missing) // parts
        first = number * size
        mine = (self.predicting >= first) & (self.predicting < first + size)
        return Batch(
            F.pad(self.input_ids, (0, missing))[:, first : first + size],
            F.pad(self.position_ids, (0, missing))[:, first : first + size],
            [*self.document_lengths, *[1] * missing],
            self.predicting[mine] - first,
            self.targets[mine],
            self.layout,
            self.examples,
            parts,
        )


class Documents(Sequence[torch.Tensor]):
    """Token ids of examples, int64 (1, T) each, created on access; for an example with several sequences, the first."""

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
    """Turns a micro-batch into batches, as its layout requires.

    Returns:
        Lists of batches. Each list has the documents of whole examples, whose loss is computed together; the sum of the
        losses is the micro-batch's loss. An example without supervised tokens is skipped if it would be alone, unless
        it has values, which its loss may compare with the state of a token.
    """
    if layout.together:
        return [[build_batch(examples, layout)]]
    examples = [example for example in examples if example.supervised_tokens or example.values]
    if layout.padded:
        return [[build_batch(group, layout)] for group in _of_similar_lengths(examples)]
    return [_one_at_a_time(example, layout) for example in examples]


def in_best_order(examples: Sequence[EncodedExample], layout: Layout) -> Sequence[EncodedExample]:
    """Returns examples in the order in which they make the fewest batches; only for what does not depend on it."""
    return sorted(examples, key=lambda example: example.longest) if layout.padded else examples


def build_batches(examples: Sequence[EncodedExample], layout: Layout = PACKED) -> list[Batch]:
    """Returns the batches of `build_units` as one list."""
    return [batch for unit in build_units(examples, layout) for batch in unit]


def build_batch(examples: Sequence[EncodedExample], layout: Layout = PACKED) -> Batch:
    """Concatenates examples into one batch.

    >>> example = EncodedExample(np.array([5, 6, 7], np.int32), np.array([False, False, True]), row=1)
    >>> batch = build_batch([example, example])
    >>> batch.position_ids.tolist(), batch.predicting.tolist(), batch.targets.tolist()
    ([[0, 1, 2, 0, 1, 2]], [1, 4], [7, 7])
    """
    lengths = [length for example in examples for length in example.lengths]
    ids = np.concatenate([example.input_ids for example in examples])
    supervised = np.concatenate([example.supervised for example in examples])
    return _build(ids, supervised, lengths, layout, tuple(examples))


def _of_similar_lengths(examples: Sequence[EncodedExample]) -> Iterator[list[EncodedExample]]:
    """Yields groups of consecutive examples, with little padding in each."""
    group: list[EncodedExample] = []
    for example in examples:
        lengths = [length for each in (*group, example) for length in each.lengths]
        if group and sum(lengths) < (1 - _PADDING) * len(lengths) * max(lengths):
            yield group
            group = []
        group.append(example)
    if group:
        yield group


def _one_at_a_time(example: EncodedExample, layout: Layout) -> list[Batch]:
    """Returns one batch per sequence of an example."""
    if not example.several:
        return [build_batch([example], layout)]
    parts = [example.sequence(number) for number in range(len(example.several))]
    return [_build(part.input_ids, part.supervised, [len(part)], layout, (example,)) for part in parts]


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
