"""Mismatched rows: the prompt of one row with the answer of another, from which KTO estimates a KL divergence."""

from __future__ import annotations

import numpy as np

from lamina.data.example import EncodedExample


def draw_partners(prompts: np.ndarray, seed: int) -> np.ndarray:
    """Draws, for each row, another row whose answer it is paired with. Every answer is used once.

    Rows are put in a random order in which equal prompts are next to each other, and each takes the answer of the row
    that is as far ahead as the most frequent prompt has rows. So its prompt differs, unless more than half of all rows
    have the same one.

    Args:
        prompts: uint64, (rows,): digest of each row's prompt.
        seed: Seed of the order.

    Returns:
        int64, (rows,): a permutation; without a fixed point from two rows on.
    """
    rows = len(prompts)
    if not rows:
        return np.zeros(0, dtype=np.int64)
    _, group, sizes = np.unique(prompts, return_inverse=True, return_counts=True)
    generator = np.random.default_rng([seed, rows, 1])
    shuffled = generator.permutation(rows)
    place_of_group = generator.permutation(len(sizes))
    order = shuffled[np.argsort(place_of_group[group[shuffled]], kind="stable")]
    ahead = max(1, min(int(sizes.max()), rows - 1))
    partners = np.empty(rows, dtype=np.int64)
    partners[order] = np.roll(order, -ahead)
    return partners


def mismatched(prompt_of: EncodedExample, answer_of: EncodedExample, max_length: int) -> EncodedExample:
    """Builds the sequences of `prompt_of` with the answers of `answer_of`, cut to `max_length` tokens each.

    The cut ends matter little: the estimate is an average over rows.
    """
    parts = []
    for number in range(len(prompt_of.lengths)):
        prompt, answer = prompt_of.sequence(number), answer_of.sequence(number % len(answer_of.lengths))
        begin, first = _answer_start(prompt), _answer_start(answer)
        ids = np.concatenate([prompt.input_ids[:begin], answer.input_ids[first:]])[:max_length]
        supervised = np.concatenate([np.zeros(begin, dtype=bool), answer.supervised[first:]])[:max_length]
        parts.append((ids, supervised))
    return EncodedExample(
        np.concatenate([ids for ids, _ in parts]),
        np.concatenate([supervised for _, supervised in parts]),
        prompt_of.row,
        prompt_of.file_index,
        several=tuple(len(ids) for ids, _ in parts) if len(parts) > 1 else (),
    )


def _answer_start(sequence: EncodedExample) -> int:
    return int(np.flatnonzero(sequence.supervised)[0])
