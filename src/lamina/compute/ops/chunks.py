"""The size of the chunks in which logits are computed, so that those of a whole batch never exist at once."""

from __future__ import annotations

import torch
import torch.nn.functional as F

# Elements of a chunk's logits: 2**25 are 64 MiB in bfloat16.
CHUNK_ELEMENTS = 2**25

# Rows of a chunk on a CPU: at most this many, and a multiple of 16 from 16 rows on. A row of 49,152 logits and their
# gradient takes 0.22 ms with 336 rows, 0.26 with 341, and 0.32 with 360, where the gradient's product drops to half its
# speed; with few rows both products are slow, 0.30 ms with 128. The last chunk is padded to a multiple of a seventh of
# the maximum. This makes seven shapes in all; oneDNN would cache code and memory for every other one.
_ROWS_STEP, _MOST_ROWS, _LAST_ROWS_STEP = 16, 336, 48


def rows_of_a_chunk(hidden: torch.Tensor, vocabulary: int, chunk_elements: int) -> int:
    """Returns how many rows of `hidden` have their logits computed at once."""
    rows = max(1, chunk_elements // vocabulary)
    if hidden.device.type == "cpu":
        rows = min(rows, _MOST_ROWS)
        rows -= rows % _ROWS_STEP if rows > _ROWS_STEP else 0
    return rows


def padded_rows(count: int, rows: int) -> int:
    """Rounds `count`, the tokens of the last chunk, up to one of the chunk sizes that repeat."""
    return min(rows, -(-count // _LAST_ROWS_STEP) * _LAST_ROWS_STEP)


def pad_chunk(hidden_ND: torch.Tensor, rows: int) -> torch.Tensor:
    """Pads a chunk with rows of zeros to one of the sizes that repeat."""
    count = len(hidden_ND)
    return F.pad(hidden_ND, (0, 0, 0, padded_rows(count, rows) - count))
