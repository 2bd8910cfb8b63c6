"""Splits a share of the examples off for evaluation, with equal prompts on one side only."""

from __future__ import annotations

import random
from collections.abc import Sequence

from lamina.data.example import Example


def split_off_eval(examples: Sequence[Example], share: float, seed: int) -> tuple[list[Example], list[Example]]:
    """Splits examples into training and evaluation.

    Examples whose prompts are equal (white space apart) go to the same side, so the evaluation never asks a
    question that was trained on.

    Args:
        examples: All examples.
        share: The share that should go to evaluation, between 0 and 1.
        seed: Decides which ones.

    Returns:
        The training and the evaluation examples, each in file order. With fewer than two distinct prompts the
        evaluation side is empty; otherwise both sides hold at least one example.
    """
    groups: dict[tuple[tuple[str, str], ...], list[int]] = {}
    for index, example in enumerate(examples):
        groups.setdefault(example.prompt_key(), []).append(index)
    if len(groups) < 2:
        return list(examples), []
    shuffled = list(groups.values())
    random.Random(seed).shuffle(shuffled)
    wanted = max(1, round(share * len(examples)))
    held_out: set[int] = set()
    for group in shuffled[:-1]:  # one group always stays for training
        if len(held_out) >= wanted:
            break
        if len(held_out) + len(group) <= 2 * wanted:  # a prompt repeated very often would swallow the other side
            held_out.update(group)
    if not held_out:
        held_out.update(min(shuffled, key=len))
    train = [example for index, example in enumerate(examples) if index not in held_out]
    return train, [example for index, example in enumerate(examples) if index in held_out]
