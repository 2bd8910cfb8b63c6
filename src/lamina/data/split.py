"""Splits off a share of the rows for evaluation, with equal prompts (and equal groups) on one side only."""

from __future__ import annotations

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components


def hold_out(
    prompts: np.ndarray, share: float, seed: int, strata: np.ndarray | None = None, groups: np.ndarray | None = None
) -> np.ndarray:
    """Chooses the rows of the evaluation side.

    Rows with equal prompts go to the same side, so that no evaluation prompt occurs in training; so do rows of the same
    group.

    Args:
        prompts: uint64, shape (rows,): digest of each row's prompt.
        share: The share for evaluation, between 0 and 1.
        seed: Seed of the choice.
        strata: uint64, shape (rows,): take the share separately from the rows with each value.
        groups: uint64, shape (rows,): keep rows with the same value together.

    Returns:
        bool, shape (rows,). With fewer than two distinct prompts (or groups), it is False everywhere; otherwise, both
        sides have at least one row.
    """
    clusters = _clusters(prompts, groups)
    held_out = np.zeros(len(prompts), dtype=bool)
    sizes = np.bincount(clusters)
    if len(sizes) < 2:
        return held_out
    # Per cluster, shuffled. A cluster belongs to the stratum of its first row.
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
    """Marks clusters until their rows reach the share."""
    wanted = max(at_least, round(share * int(sizes[members].sum())))
    taken = 0
    for cluster in members[:-1] if at_least else members:  # one cluster always stays for training
        if taken >= wanted:
            break
        if taken + sizes[cluster] <= 2 * wanted:  # a prompt repeated very often would take most of the other side
            chosen[cluster] = True
            taken += int(sizes[cluster])


def _clusters(prompts: np.ndarray, groups: np.ndarray | None) -> np.ndarray:
    """Numbers the clusters of rows that must stay together, from 0 without gaps: int64, shape (rows,)."""
    by_prompt = np.unique(prompts, return_inverse=True)[1]
    if groups is None:
        return by_prompt
    by_group = np.unique(groups, return_inverse=True)[1]
    count = int(by_prompt.max(initial=-1)) + 1
    nodes = count + int(by_group.max(initial=-1)) + 1
    edges = coo_array((np.ones(len(prompts), dtype=bool), (by_prompt, count + by_group)), shape=(nodes, nodes))
    labels = connected_components(edges, directed=False)[1]
    return np.unique(labels[by_prompt], return_inverse=True)[1]
