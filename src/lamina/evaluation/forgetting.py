"""What an adapter has forgotten: the loss on general text that has nothing to do with its task, before and after."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import resources
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from lamina.adapters.load import Loaded
from lamina.compute.fusion import fast_path
from lamina.data.example import EncodedExample
from lamina.data.read import read_rows
from lamina.distributed.world import ALONE, World
from lamina.errors import DataError
from lamina.losses.cross_entropy import CrossEntropy
from lamina.models.vocabulary import check_ids
from lamina.structure.head import Head, find_head
from lamina.structure.positions import declared_positions
from lamina.training.step import evaluate_loss

# Texts written for lamina, in many genres and languages.
OWN_TEXTS = Path(str(resources.files("lamina.evaluation.general"))) / "texts.jsonl"
_PIECE, _MOST_PIECES = 256, 128
# Shorter pieces are ends of documents, whose few tokens say little.
SHORTEST = 16


def general_pieces(
    path: Path, tokenizer: PreTrainedTokenizerBase, max_length: int, most: int, field: str = "--general"
) -> list[EncodedExample]:
    """Cuts a text file into pieces that are in the loss as a whole.

    Args:
        path: `.jsonl` or `.json` with a `text` in each row, or a text file with a document in each line.
        tokenizer: The base's.
        max_length: Tokens of a piece.
        most: How many pieces, from the start of the file.
        field: The option that named the file, for the error.

    Raises:
        ConfigError: The file does not exist.
        DataError: It holds no text.
    """
    pieces: list[EncodedExample] = []
    for number, text in enumerate(_documents(path, field), start=1):
        ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
        for first in range(0, len(ids), max_length):
            part = np.asarray(ids[first : first + max_length], dtype=np.int32)
            if len(part) >= SHORTEST:
                pieces.append(EncodedExample(part, np.arange(len(part)) > 0, row=number))
        if len(pieces) >= most:
            break
    if not pieces:
        raise DataError(f"{path}: holds no text of {SHORTEST} tokens or more. Fix: give a longer one.")
    return pieces[:most]


def general_loss(
    loaded: Loaded, pieces: list[EncodedExample], batch_size: int, *, base: bool = False, world: World = ALONE
) -> float:
    """Mean loss over all tokens of the pieces, of the adapter or of its bare base, by processes that share the work.

    Raises:
        DataError: The base has no row for one of them.
    """
    for piece in pieces:
        where = f"the general text, row {piece.row},"
        check_ids(piece.input_ids, loaded.model, loaded.tokenizer, where, "leave the row out")
    with loaded.injection.disabled():
        head = find_head(loaded.model)
        if base:
            return _mean_loss(loaded, head, pieces, batch_size, world)
    return _mean_loss(loaded, head, pieces, batch_size, world)


def general_losses(
    loaded: Loaded,
    batch_size: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
    world: World = ALONE,
) -> tuple[float, float]:
    """Mean losses of the bare base and of the adapter on lamina's own general text, in nats a token."""
    limit = declared_positions(loaded.model)
    pieces = general_pieces(OWN_TEXTS, loaded.tokenizer, min(_PIECE, limit or _PIECE), _MOST_PIECES)
    progress(0, 2)
    before = general_loss(loaded, pieces, batch_size, base=True, world=world)
    progress(1, 2)
    after = general_loss(loaded, pieces, batch_size, world=world)
    progress(2, 2)
    return before, after


def _mean_loss(loaded: Loaded, head: Head, pieces: list[EncodedExample], batch_size: int, world: World) -> float:
    parts = (loaded.model, head, CrossEntropy(), pieces, batch_size)
    with fast_path(loaded.model, longest=max(map(len, pieces))) as path:
        return evaluate_loss(*parts, layout=path.layout, world=world).loss


def _documents(path: Path, field: str) -> list[str]:
    rows = read_rows(str(path), field)
    if not all(isinstance(row.get("text"), str) for row in rows):
        keys = json.dumps(sorted(rows[0]))
        raise DataError(f"{path}: every row needs a `text`; the first has {keys}. Fix: rename the column.")
    return [row["text"] for row in rows]
