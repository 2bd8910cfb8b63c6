"""Splits a share of the rows off for evaluation, with equal prompts (and equal groups) on one side only."""

from __future__ import annotations

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components


def hold_out(
    prompts: np.ndarray, share: float, seed: int, strata: np.ndarray | None = None, groups: np.ndarray | None = None
) -> np.ndarray:
    """Chooses the rows of the evaluation side.

    Rows whose prompts are equal go to the same side, so the evaluation never asks a question that was trained on; so
    do rows of one group.

    Args:
        prompts: uint64, shape (rows,): digest of each row's prompt.
        share: The share that should go to evaluation, between 0 and 1.
        seed: Decides which ones.
        strata: uint64, shape (rows,): the share is taken of the rows of each value.
        groups: uint64, shape (rows,): rows of one value stay together.

    Returns:
        bool, shape (rows,). With fewer than two distinct prompts (or groups) it is False throughout; otherwise both
        sides hold at least one row.
    """
    clusters = _clusters(prompts, groups)
    held_out = np.zeros(len(prompts), dtype=bool)
    sizes = np.bincount(clusters)
    if len(sizes) < 2:
        return held_out
    # Of the clusters, shuffled; a cluster counts to the stratum of its first row.
    order = np.random.default_rng([seed, len(prompts)]).permutation(len(sizes))
    first_row = np.unique(clusters, return_index=True)[1]
    stratum_of = np.zeros(len(sizes), dtype=np.uint64) if strata is None else np.asarray(strata)[first_row]
    chosen = np.zeros(len(sizes), dtype=bool)
    for stratum in np.unique(stratum_of):
        members = order[stratum_of[order] == stratum]
        _choose(members, sizes, share, chosen, at_least=0 if strata is not None else 1)
    if not chosen.any():
        chosen[np.argmin(sizes)] = True
    elif chosen.all():
        chosen[np.argmax(sizes)] = False
    return chosen[clusters]


def _choose(members: np.ndarray, sizes: np.ndarray, share: float, chosen: np.ndarray, at_least: int) -> None:
    """Marks clusters until their rows make up the share."""
    wanted = max(at_least, round(share * int(sizes[members].sum())))
    taken = 0
    for cluster in members[:-1] if at_least else members:  # one cluster always stays for training
        if taken >= wanted:
            break
        if taken + sizes[cluster] <= 2 * wanted:  # a prompt repeated very often would swallow the other side
            chosen[cluster] = True
            taken += int(sizes[cluster])


def _clusters(prompts: np.ndarray, groups: np.ndarray | None) -> np.ndarray:
    """int64, shape (rows,): rows that must stay together have equal numbers, counted from 0 without gaps."""
    by_prompt = np.unique(prompts, return_inverse=True)[1]
    if groups is None:
        return by_prompt
    by_group = np.unique(groups, return_inverse=True)[1]
    count = int(by_prompt.max(initial=-1)) + 1
    nodes = count + int(by_group.max(initial=-1)) + 1
    edges = coo_array((np.ones(len(prompts), dtype=bool), (by_prompt, count + by_group)), shape=(nodes, nodes))
    labels = connected_components(edges, directed=False)[1]
    return np.unique(labels[by_prompt], return_inverse=True)[1]
