"""Near-duplicates of a million texts: MinHash signatures by datasketch's permutations, bands, and sorted arrays.

A text is the set of its 5-grams of characters (lower case; punctuation and white space as one space). MinHash (Broder
1997) makes 128 numbers of the set, such that two sets agree in each with the probability of their Jaccard likeness. As
in b-bit minwise hashing (Li and Koenig 2010) one byte of each is kept: 128 bytes a text, and numbers that differ agree
by chance in 1 of 256, which the estimate takes out. Texts that agree in all four bytes of one of 32 bands are looked
at, 98.8% of those with a likeness of 0.6; it is then estimated over the 128 bytes (standard deviation 0.04).

The numbers are those of `datasketch.MinHash(128)`, bit for bit; its own loop over shingles takes twenty times as long,
and its `MinHashLSH` holds Python sets that take gigabytes for a million rows.

Words that many rows share (one instruction in front of every row) would make all of them near-duplicates. So 5-grams
that stand in a large share of the first rows are left out of every set.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from datasketch import MinHash

PERMUTATIONS = 128
ANSWER_BYTES = 32
BAND_BYTES = 4
SHINGLE = 5

# Below so many 5-grams one word is too much of a text to say that two texts are nearly the same.
FEWEST_SHINGLES = 16

# 5-grams are common if they stand in this share of the rows they are learnt from; fewer rows than LEARN_AT_LEAST teach
# nothing, as two copies of one text would make its words common.
COMMON_SHARE = 0.2
LEARN_AT_LEAST = 200
LEARN_ROWS = 2000
LEARN_SHINGLES = 4_000_000

_COMMON_BITS = 18
_BLOCK = 255  # 5-grams at once: the products stay in the cache, and are just too few for torch to split over threads
_PAIRS = 200_000  # compared at once


class Signatures:
    """Takes rows one after another and gives signatures of each row, of its prompt and of its answer.

    A row is the set of its prompt's and its answer's 5-grams, so that its numbers are the smaller ones of the two.
    The first rows wait until there are enough of them to tell which 5-grams are common.

    Attributes:
        rows: uint8, (rows, 128); zeros alone where too little is said to compare. From `finish` on, like the others.
        prompts: uint8, (rows, 128), likewise; no rows if prompts are not wanted.
        answers: uint8, (rows, 32); those of short answers agree only if the words are the same.
    """

    def __init__(self, prompts: bool) -> None:
        self.rows = self.prompts = np.empty((0, PERMUTATIONS), np.uint8)
        self.answers = np.empty((0, ANSWER_BYTES), np.uint8)
        self._rows, self._answers = bytearray(), bytearray()
        self._prompts = bytearray() if prompts else None
        self._waiting: list[_Hashed] | None = []
        self._held = 0
        self._common: np.ndarray | None = None
        permutations = np.asarray(MinHash(PERMUTATIONS).permutations, np.uint32)
        # Signed numbers are in the order of unsigned ones once half of the range is added; the low byte is the same.
        self._factors = torch.from_numpy(permutations[0].view(np.int32)[:, None])
        self._offsets = torch.from_numpy((permutations[1] + np.uint32(1 << 31)).view(np.int32)[:, None])
        self._products = torch.empty((PERMUTATIONS, _BLOCK), dtype=torch.int32)
        self._nothing = torch.full((PERMUTATIONS,), torch.iinfo(torch.int32).max, dtype=torch.int32)

    def add(self, prompt: str, answer: str) -> None:
        """Takes the next row; one without words is like nothing."""
        said = normal(answer)
        row = _Hashed(_mix(shingles(normal(prompt))), _mix(shingles(said)), said)
        if self._waiting is None:
            self._sign(row)
            return
        self._waiting.append(row)
        self._held += len(row.prompt) + len(row.answer)
        if len(self._waiting) == LEARN_ROWS or self._held > LEARN_SHINGLES:
            self._learn()

    def finish(self) -> None:
        """Ends the rows."""
        self._learn()
        self.rows = np.frombuffer(self._rows, np.uint8).reshape(-1, PERMUTATIONS)
        self.prompts = np.frombuffer(self._prompts or b"", np.uint8).reshape(-1, PERMUTATIONS)
        self.answers = np.frombuffer(self._answers, np.uint8).reshape(-1, ANSWER_BYTES)

    def _learn(self) -> None:
        waiting, self._waiting = self._waiting or [], None
        if len(waiting) >= LEARN_AT_LEAST:
            sets = [np.unique(np.concatenate((row.prompt, row.answer))) for row in waiting]
            hashes, rows = np.unique(np.concatenate(sets), return_counts=True)
            self._common = np.zeros(1 << _COMMON_BITS, dtype=bool)
            self._common[hashes[rows >= COMMON_SHARE * len(waiting)] >> (32 - _COMMON_BITS)] = True
        for row in waiting:
            self._sign(row)

    def _sign(self, row: _Hashed) -> None:
        prompt, answer = self._distinctive(row.prompt), self._distinctive(row.answer)
        of_prompt, of_answer = self._smallest(prompt), self._smallest(answer)
        self._rows += _bytes(torch.minimum(of_prompt, of_answer), len(prompt) + len(answer))
        if self._prompts is not None:
            self._prompts += _bytes(of_prompt, len(prompt))
        if len(answer) < FEWEST_SHINGLES:
            self._answers += hashlib.blake2b(row.said.tobytes(), digest_size=ANSWER_BYTES).digest()
        else:
            self._answers += _bytes(of_answer[:ANSWER_BYTES], len(answer))

    def _distinctive(self, hashes: np.ndarray) -> np.ndarray:
        return hashes if self._common is None else hashes[~self._common[hashes >> (32 - _COMMON_BITS)]]

    def _smallest(self, hashes: np.ndarray) -> torch.Tensor:
        """int32, (128,): the smallest value of any hash under each permutation."""
        smallest = self._nothing
        for first in range(0, len(hashes), _BLOCK):
            block = torch.from_numpy(hashes[first : first + _BLOCK].view(np.int32))
            products = self._products[:, : len(block)]
            torch.mul(block, self._factors, out=products)
            of_block = products.add_(self._offsets).amin(1)
            smallest = torch.minimum(smallest, of_block) if first else of_block
        return smallest


@dataclass(frozen=True, slots=True)
class _Hashed:
    """A row whose signatures are still to be made: hashes of its 5-grams, and its answer's characters."""

    prompt: np.ndarray
    answer: np.ndarray
    said: np.ndarray


def _bytes(numbers: torch.Tensor, of: int) -> bytes:
    """The low byte of each number, or zeros if they are those of too few 5-grams."""
    return bytes(len(numbers)) if of < FEWEST_SHINGLES else numbers.numpy().astype(np.uint8).tobytes()


def shingles(characters: np.ndarray) -> np.ndarray:
    """uint32, a number for each 5-gram in order, equal ones included; nearby texts have nearby numbers."""
    count = max(0, len(characters) - SHINGLE + 1)
    numbers = characters[:count].copy()
    for place in range(1, SHINGLE):
        numbers *= _FACTOR
        numbers += characters[place : place + count]
    return numbers


# Odd, so that no character is lost; otherwise any number.
_FACTOR = np.uint32(0x9E3779B1)


def _mix(hashes: np.ndarray) -> np.ndarray:
    """MurmurHash3's finalizer, which datasketch applies to every number before its permutations."""
    hashes ^= hashes >> np.uint32(16)
    hashes *= np.uint32(0x85EBCA6B)
    hashes ^= hashes >> np.uint32(13)
    hashes *= np.uint32(0xC2B2AE35)
    hashes ^= hashes >> np.uint32(16)
    return hashes


def normal(text: str) -> np.ndarray:
    """uint32 code points of the text in lower case, with a single space for all that is neither letter nor digit."""
    text = text.lower()
    if text.isascii():
        return np.frombuffer(b" ".join(text.encode().translate(_ASCII_WORDS).split()), np.uint8).astype(np.uint32)
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    spoken = _spoken()[np.minimum(points, 0xFFFF)]
    points = np.where(spoken, points, np.uint32(32))
    return points[spoken | np.concatenate(([False], spoken[:-1]))]


_ASCII_WORDS = bytes(point if chr(point).isalnum() else 32 for point in range(256))


@cache
def _spoken() -> np.ndarray:
    """bool, (65536,): the characters that words are made of, marks on letters included; past them, all."""
    spoken = np.array([unicodedata.category(chr(point))[0] in "LNM" for point in range(0x10000)])
    spoken[0xFFFF] = True
    return spoken


def likeness(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The estimated Jaccard likeness of pairs of signatures, each of shape (pairs, numbers)."""
    agreeing = np.count_nonzero(left == right, axis=1) / left.shape[1]
    return (agreeing - 1 / 256) / (1 - 1 / 256)


def alike(signatures: np.ndarray, left: np.ndarray, right: np.ndarray, threshold: float) -> np.ndarray:
    """bool, (pairs,): whether the texts `left` and `right` (row numbers) are at least so alike."""
    found = np.zeros(len(left), dtype=bool)
    for first in range(0, len(left), _PAIRS):
        part = slice(first, first + _PAIRS)
        found[part] = likeness(signatures[left[part]], signatures[right[part]]) >= threshold
    return found


def bands(signatures: np.ndarray, rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """For each band: the rows, those that agree in it next to each other, and for each the number of its run.

    Rows with nothing to compare are left out. In a million rows a run may hold some that agree by chance, so within a
    run rows are sorted by further bytes: those that are alike then stand next to each other. Equal ones keep their
    order.
    """
    rows = rows[signatures[rows].any(axis=1)]
    if not len(rows):
        return
    for first in range(0, PERMUTATIONS, BAND_BYTES):
        keys = np.zeros(len(rows), np.uint64)
        for column in range(first, first + 8):
            keys = keys * np.uint64(256) + signatures[rows, column % PERMUTATIONS]
        order = np.argsort(keys, kind="stable")
        bytes_of_band = keys[order] >> np.uint64(64 - 8 * BAND_BYTES)
        yield rows[order], np.cumsum(np.concatenate(([0], bytes_of_band[1:] != bytes_of_band[:-1])))
