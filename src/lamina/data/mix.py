"""Mixing: how often each source is seen per epoch, and general text that is replayed to reduce forgetting."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np

from lamina.data.encoded_file import EncodedFile
from lamina.data.side import Pieces


def weigh(pieces: Pieces, file: EncodedFile, seed: int) -> Pieces:
    """Repeats or drops pieces by the weight of their source.

    A weight of 2.5 uses every row twice and half of the rows a third time; a weight of 0.5 drops half of the rows,
    which the file's report lists. The rows are drawn once by seed and file, so every epoch has the same ones.
    """
    weight = file.report.weight
    if weight == 1.0:
        return pieces
    times, rest = divmod(weight, 1.0)
    rows = np.unique(pieces.index)
    drawn = _generator(file, seed).permutation(rows)[: round(rest * len(rows))]
    if times == 0:
        drawn = drawn if len(drawn) else rows[:1]  # a requested source always keeps at least one row
        file.report.drop_all("not_drawn", file.store.rows[np.setdiff1d(rows, drawn)])
    return Pieces.join([*([pieces] * int(times)), pieces.take(np.isin(pieces.index, drawn))])


def draw_replay(
    parts: Sequence[Pieces], replayed: Sequence[EncodedFile], share: float, task_tokens: int, seed: int
) -> list[Pieces]:
    """Draws rows of general text that make up a share of the tokens.

    Args:
        parts: The pieces of each file of general text.
        replayed: Those files; their reports record the rows that are not drawn.
        share: Share of all training tokens of an epoch.
        task_tokens: Training tokens of the task, including repeats.
        seed: Seed of the draw.
    """
    wanted = share / (1.0 - share) * task_tokens
    joined = Pieces.join(parts)
    order = _generator(replayed[0], seed).permutation(len(joined))
    before = np.concatenate(([0], np.cumsum(joined.length[order])[:-1])) if len(order) else order
    drawn = np.zeros(len(joined), dtype=bool)
    drawn[order[before < wanted]] = True
    kept = np.split(drawn, np.cumsum([len(part) for part in parts])[:-1])
    chosen = []
    for part, mask, file in zip(parts, kept, replayed, strict=True):
        left_out = np.setdiff1d(part.index, part.index[mask])
        file.report.drop_all("beyond_replay_share", file.store.rows[left_out])
        chosen.append(part.take(mask))
    if joined.length.sum() < wanted:
        got = joined.length.sum() / (joined.length.sum() + task_tokens)
        replayed[0].notes.append(
            f"data.replay has too little text: it provides {got:.1%} of the tokens, not {share:.1%}"
        )
    return chosen


def _generator(file: EncodedFile, seed: int) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32(file.report.sha256.encode())])
