"""One side of a run's data, training or evaluation: pieces of stored rows, by index."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import overload

import numpy as np

from lamina.data.example import EncodedExample
from lamina.data.packing import wrap
from lamina.data.report import TokenReport
from lamina.data.store import TokenStore

# Builds a companion from an example and its partner.
BuildCompanion = Callable[[EncodedExample, EncodedExample], EncodedExample]


@dataclass(frozen=True)
class Pieces:
    """The tokens of stored rows that form a side's examples, one entry per example.

    Attributes:
        file_index: int64, shape (examples,): index of the file, and of its store.
        index: int64, shape (examples,): index of the row in the store.
        begin: int64, shape (examples,): first token in the row.
        length: int64, shape (examples,): number of tokens.
        supervised: int64, shape (examples,): number of tokens in the loss.
        teaches_stop: bool, shape (examples,): whether a stop token is in the loss.
    """

    file_index: np.ndarray
    index: np.ndarray
    begin: np.ndarray
    length: np.ndarray
    supervised: np.ndarray
    teaches_stop: np.ndarray

    def __len__(self) -> int:
        return len(self.index)

    def take(self, chosen: np.ndarray) -> Pieces:
        """Returns some of the pieces, by index or mask."""
        return Pieces(*(column[chosen] for column in vars(self).values()))

    @classmethod
    def join(cls, parts: Sequence[Pieces]) -> Pieces:
        """Concatenates several groups of pieces, in order."""
        if not parts:
            empty = np.zeros(0, dtype=np.int64)
            return cls(empty, empty, empty, empty, empty, empty.astype(bool))
        columns = zip(*(vars(part).values() for part in parts), strict=True)
        return cls(*(np.concatenate(column) for column in columns))


@dataclass(frozen=True)
class Found:
    """A token of a side.

    Attributes:
        file_index: Index of its file.
        row: Number of the row in its file, from 1.
        token: The token id.
    """

    file_index: int
    row: int
    token: int


class Side(Sequence[EncodedExample]):
    """Examples in file order, read from their stores on access.

    Attributes:
        stores: The stores of the rows, by the index of their file.
        pieces: Which tokens of which rows the examples are.
        values: float64, shape (examples,), by name: numbers that the examples have in addition to those of their rows.
        companions: Their companions, by index; None if they have none. Each is built on access.
    """

    def __init__(
        self,
        stores: Sequence[TokenStore],
        pieces: Pieces,
        values: Mapping[str, np.ndarray] | None = None,
        companions: Companions | None = None,
    ) -> None:
        self.stores = stores
        self.pieces = pieces
        self.values = dict(values or {})
        self.companions = companions

    def with_values(self, values: Mapping[str, np.ndarray]) -> Side:
        """Returns the same examples with more values, each (examples,)."""
        return Side(self.stores, self.pieces, {**self.values, **values}, self.companions)

    def with_companions(self, partners: np.ndarray, build: BuildCompanion) -> Side:
        """Returns the same examples with companions.

        Args:
            partners: int64, (examples,): the example that the companion of each is built from, with itself.
            build: Builds it.
        """
        return Side(self.stores, self.pieces, self.values, Companions(self, partners, build))

    @property
    def prompts(self) -> np.ndarray:
        """uint64, shape (examples,): digest of each example's prompt."""
        digests = np.zeros(len(self), dtype=np.uint64)
        for file_index, store in enumerate(self.stores):
            chosen = self.pieces.file_index == file_index
            digests[chosen] = store.prompts[self.pieces.index[chosen]]
        return digests

    @property
    def kinds(self) -> set[str]:
        """The kinds of the rows that the examples are made of (`Kind`)."""
        present = {int(index) for index in np.unique(self.pieces.file_index)}
        return {kind for index in present for kind in self.stores[index].facts.kinds}

    @property
    def lengths(self) -> np.ndarray:
        """int64, shape (examples,): tokens in each example."""
        return self.pieces.length

    @property
    def longest(self) -> int:
        """Tokens in the longest sequence; 0 if there is none."""
        longest = 0
        for file_index, store in enumerate(self.stores):
            chosen = self.pieces.file_index == file_index
            of_rows = store.longest[self.pieces.index[chosen]]
            longest = max(longest, int(np.minimum(self.pieces.length[chosen], of_rows).max(initial=0)))
        return longest

    def __len__(self) -> int:
        return len(self.pieces)

    @overload
    def __getitem__(self, place: int) -> EncodedExample: ...
    @overload
    def __getitem__(self, place: slice) -> Side: ...
    def __getitem__(self, place: int | slice) -> EncodedExample | Side:
        if isinstance(place, slice):
            chosen = np.arange(len(self))[place]
            values = {name: column[chosen] for name, column in self.values.items()}
            companions = self.companions and self.companions.take(chosen)
            return Side(self.stores, self.pieces.take(chosen), values, companions)
        file_index = int(self.pieces.file_index[place])
        begin, length = int(self.pieces.begin[place]), int(self.pieces.length[place])
        example = self.stores[file_index].example(int(self.pieces.index[place]), begin, length, file_index)
        if self.values:
            example = example.with_values({name: float(column[place]) for name, column in self.values.items()})
        return example if self.companions is None else replace(example, companion=self.companions[place])

    def indices(self, file_index: int) -> np.ndarray:
        """Returns the indices of a file's stored rows that are here, sorted and unique (int64)."""
        present = np.zeros(
            len(self.stores[file_index]), dtype=bool
        )  # milliseconds for a million rows; np.unique takes 0.4 s
        present[self.pieces.index[self.pieces.file_index == file_index]] = True
        return np.flatnonzero(present)

    def rows(self, file_index: int) -> np.ndarray:
        """Returns the numbers of a file's rows that are here, sorted and unique (int64)."""
        return self.stores[file_index].rows[self.indices(file_index)]

    def first_beyond(self, limit: int, in_loss: bool = False) -> Found | None:
        """Returns the first token with an id of at least `limit`; with `in_loss`, only among tokens in the loss."""
        for file_index, store in enumerate(self.stores):
            places = np.flatnonzero(self.pieces.file_index == file_index)
            for place in places[store.highest[self.pieces.index[places]] >= limit]:
                example = self[int(place)]  # in a truncated row, the token may be in the part that was removed
                ids = example.input_ids[example.supervised] if in_loss else example.input_ids
                if (ids >= limit).any():
                    return Found(file_index, example.row, int(ids[ids >= limit][0]))
        return None

    def report(self) -> TokenReport:
        """Returns the token counts of the side."""
        return TokenReport.of(self.pieces.length, self.pieces.supervised)


@dataclass(frozen=True)
class Companions:
    """Companions of examples, built on access.

    Attributes:
        side: The examples that they are built from.
        partners: int64: which example each is built from, with the one in `of`.
        build: Builds one.
        of: int64: the example that each belongs to; None for all of the side, in order.
    """

    side: Side
    partners: np.ndarray
    build: BuildCompanion
    of: np.ndarray | None = None

    def __getitem__(self, place: int) -> EncodedExample:
        own = place if self.of is None else int(self.of[place])
        return self.build(self.side[own], self.side[int(self.partners[place])])

    def take(self, chosen: np.ndarray) -> Companions:
        """Returns some of them, by index."""
        own = chosen if self.of is None else self.of[chosen]
        return Companions(self.side, self.partners[chosen], self.build, own)


def whole_rows(store: TokenStore, file_index: int, chosen: np.ndarray) -> Pieces:
    """Returns whole stored rows, one piece each.

    Args:
        store: The store with the rows.
        file_index: Its index.
        chosen: int64: indices of the rows.
    """
    return Pieces(
        np.full(len(chosen), file_index, dtype=np.int64),
        np.asarray(chosen, dtype=np.int64),
        np.zeros(len(chosen), dtype=np.int64),
        store.lengths[chosen],
        store.supervised_counts[chosen],
        store.teaches_stop[chosen],
    )


def parts_of(store: TokenStore, piece: Pieces, ends: Sequence[int], stop: Sequence[int]) -> Pieces:
    """Divides one whole row into parts.

    Args:
        store: The store with the row.
        piece: The row, as a single piece.
        ends: The end of each part, in tokens; the first part starts at 0.
        stop: Ids of the stop tokens.
    """
    index, file_index = int(piece.index[0]), int(piece.file_index[0])
    begins = [0, *ends[:-1]]
    facts = [store.piece_facts(index, begin, end - begin, stop) for begin, end in zip(begins, ends, strict=True)]
    return Pieces(
        np.full(len(ends), file_index, dtype=np.int64),
        np.full(len(ends), index, dtype=np.int64),
        np.array(begins, dtype=np.int64),
        np.diff([0, *ends]).astype(np.int64),
        np.array([count for count, _ in facts], dtype=np.int64),
        np.array([taught for _, taught in facts], dtype=bool),
    )


def wrapped_pieces(side: Side, budget: int, seed: int, stop: Sequence[int]) -> tuple[Pieces, np.ndarray]:
    """Concatenates a side's examples and cuts them wherever a micro-batch is full (see `wrap`).

    Parts without supervised tokens are dropped.

    Args:
        side: The examples.
        budget: Tokens per micro-batch.
        seed: Seed of the order.
        stop: Ids of the stop tokens.

    Returns:
        The parts, and the micro-batch of each.
    """
    parts = wrap(side.lengths, budget, seed)
    pieces = side.pieces.take(parts.example)
    whole = parts.length == pieces.length
    begin, supervised, teaches_stop = pieces.begin + parts.begin, pieces.supervised.copy(), pieces.teaches_stop.copy()
    for place in np.flatnonzero(~whole):
        store, index = side.stores[int(pieces.file_index[place])], int(pieces.index[place])
        facts = store.piece_facts(index, int(begin[place]), int(parts.length[place]), stop)
        supervised[place], teaches_stop[place] = facts
    cut = Pieces(pieces.file_index, pieces.index, begin, parts.length, supervised, teaches_stop)
    in_loss = supervised > 0
    return cut.take(in_loss), parts.block[in_loss]


class Batches(Sequence[list[EncodedExample]]):
    """Micro-batches of an epoch's plan, each read from its stores on access."""

    def __init__(self, side: Side, plan: Sequence[Sequence[int]]) -> None:
        self._side = side
        self._plan = plan

    def __len__(self) -> int:
        return len(self._plan)

    @overload
    def __getitem__(self, place: int) -> list[EncodedExample]: ...
    @overload
    def __getitem__(self, place: slice) -> Batches: ...
    def __getitem__(self, place: int | slice) -> list[EncodedExample] | Batches:
        if isinstance(place, slice):
            return Batches(self._side, self._plan[place])
        return [self._side[index] for index in self._plan[place]]

    def largest(self) -> list[EncodedExample]:
        """Returns the micro-batch with the most tokens, of equals the first."""
        indices = np.fromiter(itertools.chain.from_iterable(self._plan), np.int64)
        begins = np.cumsum([0, *map(len, self._plan[:-1])])
        return self[int(np.add.reduceat(self._side.lengths[indices], begins).argmax())]
