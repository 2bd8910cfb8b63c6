"""Which texts of one list occur in another, exactly or nearly: prompts that are evaluated and that training saw."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from lamina.checks.kinds.leakage import MIN_PROMPT_SIMILARITY
from lamina.checks.minhash import Signatures, bands, similar


@dataclass(frozen=True)
class Overlap:
    """A text that the other list has too.

    Attributes:
        kind: `exact` where they differ in white space at most, or `near`.
        other: Its place in the other list, from 0.
    """

    kind: Literal["exact", "near"]
    other: int


def find_overlaps(texts: Sequence[str], others: Iterable[str]) -> list[Overlap | None]:
    """Finds for each text an equal one among `others`, or else one that is nearly the same.

    Texts are nearly the same as in `lamina data check`: by their distinctive 5-grams (see `minhash.py`). Texts of a few
    words are compared exactly alone.
    """
    signatures, first = Signatures(prompts=True), dict[str, int]()
    count = 0
    for text in others:
        first.setdefault(_key(text), count)
        signatures.add(text, "")
        count += 1
    found = [None if (other := first.get(_key(text))) is None else Overlap("exact", other) for text in texts]
    for text in texts:
        signatures.add(text, "")
    signatures.finish()
    is_asked = np.arange(count + len(texts)) >= count
    for members, runs in bands(signatures.prompts, np.arange(count + len(texts))):
        _mark_near(found, signatures.prompts, members, runs, is_asked, count)
    return found


def _mark_near(
    found: list[Overlap | None],
    signatures: np.ndarray,
    members: np.ndarray,
    runs: np.ndarray,
    is_asked: np.ndarray,
    count: int,
) -> None:
    """Compares each text with the nearest other one on either side, within a run of texts that agree in a band."""
    positions, end = np.arange(len(members)), len(members) - 1
    other = ~is_asked[members]
    before = np.maximum.accumulate(np.where(other, positions, 0))
    after = np.minimum.accumulate(np.where(other, positions, end)[::-1])[::-1]
    for partners in (before, after):
        pairs = np.flatnonzero(~other & other[partners] & (runs[partners] == runs))
        asked, partner = members[pairs], members[partners[pairs]]
        near = similar(signatures, asked, partner, MIN_PROMPT_SIMILARITY)
        for number, place in zip(asked[near] - count, partner[near], strict=True):
            found[number] = found[number] or Overlap("near", int(place))


def _key(text: str) -> str:
    return " ".join(text.split())
