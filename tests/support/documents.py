"""Documents to train a method on."""

from __future__ import annotations

import numpy as np

from lamina.data.example import EncodedExample


def documents() -> list[EncodedExample]:
    rng = np.random.default_rng(0)
    return [
        EncodedExample(rng.integers(3, 250, length, dtype=np.int32), np.arange(length) > length // 2, row=1)
        for length in (23, 9, 40)
    ]
