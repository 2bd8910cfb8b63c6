"""What a run shows of its data before the first step."""

from __future__ import annotations

import itertools
from typing import Any

from lamina.training.setup import Session


def colored_example(session: Session) -> list[dict[str, Any]]:
    """The first training example as the model sees it, split where the loss begins and ends.

    Returns:
        Pieces in order: `text`, and `supervised`, whether its tokens are in the loss.
    """
    example = session.dataset.train[0]
    cuts = [
        0,
        *(i for i in range(1, len(example)) if example.supervised[i] != example.supervised[i - 1]),
        len(example),
    ]
    decode = session.base.tokenizer.decode
    return [
        {"text": decode(example.input_ids[a:b].tolist()), "supervised": bool(example.supervised[a])}
        for a, b in itertools.pairwise(cuts)
    ]
