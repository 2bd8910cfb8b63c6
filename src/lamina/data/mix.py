"""Mixing: how often each source is seen in an epoch, and general text that is replayed against forgetting."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np

from lamina.data.encoded_file import EncodedFile
from lamina.data.side import Pieces


def weigh(pieces: Pieces, file: EncodedFile, seed: int) -> Pieces:
    """The pieces as often as the weight of their source says.

    A weight of 2.5 takes every row twice and half of the rows once more; one of 0.5 leaves half of the rows out, which
    the file's report names. Which rows is drawn by seed and file, once: every epoch has the same.
    """
    weight = file.report.weight
    if weight == 1.0:
        return pieces
    times, rest = divmod(weight, 1.0)
    rows = np.unique(pieces.index)
    drawn = _generator(file, seed).permutation(rows)[: round(rest * len(rows))]
    if times == 0:
        drawn = drawn if len(drawn) else rows[:1]  # a source that is asked for is never left out whole
        file.report.drop_all("not_drawn", file.store.rows[np.setdiff1d(rows, drawn)])
    return Pieces.join([*([pieces] * int(times)), pieces.take(np.isin(pieces.index, drawn))])


def draw_replay(
    parts: Sequence[Pieces], replayed: Sequence[EncodedFile], share: float, learnt_tokens: int, seed: int
) -> list[Pieces]:
    """Rows of general text that make up a share of the tokens.

    Args:
        parts: The pieces of each file of general text.
        replayed: Those files, whose reports take in what is not drawn.
        share: Of all tokens that an epoch trains on.
        learnt_tokens: Tokens of the task, repeats included.
        seed: Decides which rows.
    """
    wanted = share / (1.0 - share) * learnt_tokens
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
        got = joined.length.sum() / (joined.length.sum() + learnt_tokens)
        replayed[0].notes.append(
            f"data.replay has too little text: it makes up {got:.1%} of the tokens, not {share:.1%}"
        )
    return chosen


def _generator(file: EncodedFile, seed: int) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32(file.report.sha256.encode())])
