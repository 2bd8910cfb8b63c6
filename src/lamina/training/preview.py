"""What a run shows of its data before the first step."""

from __future__ import annotations

import itertools

from lamina.runs.events import Segment
from lamina.training.session import Session


def colored_example(session: Session) -> list[Segment]:
    """The first training example as the model sees it, split where the loss begins and ends."""
    example = session.dataset.train[0]
    cuts = [
        0,
        *(i for i in range(1, len(example)) if example.supervised[i] != example.supervised[i - 1]),
        len(example),
    ]
    decode = session.base.tokenizer.decode
    return [
        Segment(str(decode(example.input_ids[a:b].tolist())), bool(example.supervised[a]))
        for a, b in itertools.pairwise(cuts)
    ]
