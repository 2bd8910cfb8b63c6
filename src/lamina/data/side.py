"""One side of a run's data, training or evaluation: pieces of stored rows, chosen by number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np

from lamina.data.example import EncodedExample
from lamina.data.packing import wrap
from lamina.data.report import TokenReport
from lamina.data.store import TokenStore


@dataclass(frozen=True)
class Pieces:
    """Which tokens of which stored rows make a side's examples, one entry each.

    Attributes:
        source: int64, shape (examples,): which of the stores.
        index: int64, shape (examples,): which of its rows.
        begin: int64, shape (examples,): first token of the row.
        length: int64, shape (examples,): number of tokens.
        supervised: int64, shape (examples,): how many of them are in the loss.
        teaches_stop: bool, shape (examples,): whether the stop token is one of those.
    """

    source: np.ndarray
    index: np.ndarray
    begin: np.ndarray
    length: np.ndarray
    supervised: np.ndarray
    teaches_stop: np.ndarray

    def __len__(self) -> int:
        return len(self.index)

    def take(self, chosen: np.ndarray) -> Pieces:
        """Some of the pieces: those at the numbers, or where the mask is True."""
        return Pieces(*(column[chosen] for column in vars(self).values()))

    @classmethod
    def join(cls, parts: Sequence[Pieces]) -> Pieces:
        """All pieces of several, in order."""
        if not parts:
            empty = np.zeros(0, dtype=np.int64)
            return cls(empty, empty, empty, empty, empty, empty.astype(bool))
        columns = zip(*(vars(part).values() for part in parts), strict=True)
        return cls(*(np.concatenate(column) for column in columns))


@dataclass(frozen=True)
class Found:
    """A token of a side.

    Attributes:
        source: Number of the source that it is in.
        row: Of its file, counted from 1.
        token: Its id.
    """

    source: int
    row: int
    token: int


class Side(Sequence[EncodedExample]):
    """Examples in file order, read from their stores as they are asked for.

    Attributes:
        stores: Where the rows lie, by the number of their source.
        pieces: Which tokens of which rows they are.
    """

    def __init__(self, stores: Sequence[TokenStore], pieces: Pieces) -> None:
        self.stores = stores
        self.pieces = pieces

    @property
    def lengths(self) -> np.ndarray:
        """int64, shape (examples,): tokens of each."""
        return self.pieces.length

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence; 0 without any."""
        longest = 0
        for source, store in enumerate(self.stores):
            chosen = self.pieces.source == source
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
            return Side(self.stores, self.pieces.take(np.arange(len(self))[place]))
        source = int(self.pieces.source[place])
        begin, length = int(self.pieces.begin[place]), int(self.pieces.length[place])
        return self.stores[source].example(int(self.pieces.index[place]), begin, length, source)

    def indices(self, source: int) -> np.ndarray:
        """int64: which stored rows of a source are here, each once, in order."""
        present = np.zeros(len(self.stores[source]), dtype=bool)  # a million in milliseconds; np.unique takes 0.4 s
        present[self.pieces.index[self.pieces.source == source]] = True
        return np.flatnonzero(present)

    def rows(self, source: int) -> np.ndarray:
        """int64: numbers of the rows of a source that are here, each once, in order."""
        return self.stores[source].rows[self.indices(source)]

    def first_beyond(self, limit: int, learnt: bool = False) -> Found | None:
        """The first token whose id is `limit` or higher; only one that is in the loss, where `learnt` says so."""
        for source, store in enumerate(self.stores):
            places = np.flatnonzero(self.pieces.source == source)
            for place in places[store.highest[self.pieces.index[places]] >= limit]:
                example = self[int(place)]  # of a row that is cut, the token may be in what is left out
                ids = example.input_ids[example.supervised] if learnt else example.input_ids
                if (ids >= limit).any():
                    return Found(source, example.row, int(ids[ids >= limit][0]))
        return None

    def report(self) -> TokenReport:
        """Its tokens."""
        return TokenReport.of(self.pieces.length, self.pieces.supervised)


def whole_rows(store: TokenStore, source: int, chosen: np.ndarray) -> Pieces:
    """Stored rows as they are, one piece each.

    Args:
        store: Where they lie.
        source: Its number.
        chosen: int64: which rows.
    """
    return Pieces(
        np.full(len(chosen), source, dtype=np.int64),
        np.asarray(chosen, dtype=np.int64),
        np.zeros(len(chosen), dtype=np.int64),
        store.lengths[chosen],
        store.supervised_counts[chosen],
        store.teaches_stop[chosen],
    )


def parts_of(store: TokenStore, piece: Pieces, ends: Sequence[int], stop: Sequence[int]) -> Pieces:
    """One whole row in parts.

    Args:
        store: Where it lies.
        piece: The row, a single piece.
        ends: Where each part ends, in tokens; the first one begins at 0.
        stop: Ids of the stop tokens.
    """
    index, source = int(piece.index[0]), int(piece.source[0])
    begins = [0, *ends[:-1]]
    facts = [store.piece_facts(index, begin, end - begin, stop) for begin, end in zip(begins, ends, strict=True)]
    return Pieces(
        np.full(len(ends), source, dtype=np.int64),
        np.full(len(ends), index, dtype=np.int64),
        np.array(begins, dtype=np.int64),
        np.diff([0, *ends]).astype(np.int64),
        np.array([count for count, _ in facts], dtype=np.int64),
        np.array([taught for _, taught in facts], dtype=bool),
    )


def wrapped_pieces(side: Side, budget: int, seed: int, stop: Sequence[int]) -> tuple[Pieces, np.ndarray]:
    """A side's examples end to end, cut wherever a micro-batch is full (see `wrap`).

    Parts of which nothing is in the loss are left out.

    Args:
        side: The examples.
        budget: Tokens of a micro-batch.
        seed: Decides the order.
        stop: Ids of the stop tokens.

    Returns:
        The parts, and of each the number of its micro-batch.
    """
    parts = wrap(side.lengths, budget, seed)
    pieces = side.pieces.take(parts.example)
    whole = parts.length == pieces.length
    begin, supervised, teaches_stop = pieces.begin + parts.begin, pieces.supervised.copy(), pieces.teaches_stop.copy()
    for place in np.flatnonzero(~whole):
        store, index = side.stores[int(pieces.source[place])], int(pieces.index[place])
        facts = store.piece_facts(index, int(begin[place]), int(parts.length[place]), stop)
        supervised[place], teaches_stop[place] = facts
    cut = Pieces(pieces.source, pieces.index, begin, parts.length, supervised, teaches_stop)
    learnt = supervised > 0
    return cut.take(learnt), parts.block[learnt]


class Batches(Sequence[list[EncodedExample]]):
    """Micro-batches by a plan; each is read from its stores when it is asked for."""

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
