"""`lamina data show`: rows as the model sees them, with the tokens in the loss highlighted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np

from lamina.chat.template import ChatTemplate
from lamina.checks.row import CheckedRow
from lamina.checks.rows import Rows
from lamina.checks.target import Target
from lamina.config import DataConfig
from lamina.data.example import EncodedExample, Kind
from lamina.data.remarks import row_notes
from lamina.data.report import DROP_REASONS
from lamina.errors import ConfigError, Problem
from lamina.progress import Notify


@dataclass(frozen=True)
class Piece:
    """A piece of text with the same properties throughout.

    Attributes:
        text: Text decoded from its tokens, including special tokens.
        supervised: Whether it is in the loss.
        special: Whether it is a special token.
    """

    text: str
    supervised: bool
    special: bool


@dataclass(frozen=True)
class Shown:
    """A row as the model sees it.

    Attributes:
        file: Path as the user gave it.
        row: Number of the row, from 1.
        line: Line, from 1; 0 in files without lines.
        kind: `conversation`, `text`, `preference` or `unpaired_preference`; empty if the row cannot be parsed.
        tokens: Number of tokens.
        supervised_tokens: Number of tokens in the loss.
        pieces: The row's text.
        rejected: For a preference, the text with the rejected answer.
        label: For an unpaired preference, whether the answer is desirable.
        left_out: Why training drops the row or stops on it; empty if it does not.
        notes: Other notes on how it is rendered.
    """

    file: str
    row: int
    line: int
    kind: str
    tokens: int = 0
    supervised_tokens: int = 0
    pieces: tuple[Piece, ...] = ()
    rejected: tuple[Piece, ...] = ()
    label: bool | None = None
    left_out: str = ""
    notes: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Returns the row as plain data."""
        return asdict(self)


def show_data(target: Target, notify: Notify, count: int = 3, numbers: Sequence[int] = ()) -> Iterator[Shown]:
    """Yields the first rows, or those with the given numbers, in file order.

    Args:
        target: The data, and the model.
        notify: Reports progress.
        count: Number of rows from the start, if no numbers are given.
        numbers: Numbers of rows of the first file, from 1.

    Raises:
        ConfigError: There is no model, or a requested row does not exist.
        DataError: The data has no rows, or no format matches them.
    """
    template = target.template(notify)
    if template is None:
        raise ConfigError(Problem("--model", "is none, but showing tokens needs a tokenizer", "name a model"))
    longest = target.max_length(notify)
    wanted = set(numbers)
    left = len(wanted) or count
    first_file = ""
    rows = Rows(target, template, frozenset(wanted))
    for row in rows:
        if rows.refused is not None and not any(file.format for file in rows.files):
            raise rows.refused  # nothing of it is as the model sees it
        first_file = first_file or row.place.file
        if wanted and (row.place.file != first_file or row.place.row not in wanted):
            continue
        wanted.discard(row.place.row)
        yield _shown(row, template, target.data, longest)
        left -= 1
        if not left:
            return
    if wanted:
        missing = ", ".join(map(str, sorted(wanted)))
        raise ConfigError(Problem("--row", f"{first_file} has no row {missing}", "choose rows that exist"))


def _shown(row: CheckedRow, template: ChatTemplate, data: DataConfig, max_length: int) -> Shown:
    place, example = row.place, row.read.example
    shown = Shown(place.file, place.row, place.line, str(example.kind) if example else "")
    if row.read.fault is not None:
        return replace(shown, left_out=f"the row {row.read.fault.message}")
    if example is None:
        return replace(shown, left_out=f"the row does not fit its format: {row.read.misfit}")
    if row.refusal or row.read.drop_reason or row.encoded is None:
        return replace(shown, left_out=row.refusal or DROP_REASONS.get(row.read.drop_reason, row.read.drop_reason))
    encoded = row.encoded
    own = {Kind.TEXT: "split", Kind.CLASSIFICATION: "cut"}
    fate = data.overlong if data.overlong != "auto" else own.get(example.kind, "drop")
    left_out = ""
    if row.tokens > max_length and fate == "drop":
        left_out = DROP_REASONS["longer_than_max_length"]
    elif not encoded.supervised[: max_length if fate == "cut" else None].any():
        left_out = DROP_REASONS["no_supervised_tokens"]
    return replace(
        shown,
        tokens=len(encoded),
        supervised_tokens=encoded.supervised_tokens,
        pieces=_pieces(encoded, template),
        rejected=_pieces(row.rejected, template) if row.rejected is not None else (),
        label=example.label,
        left_out=left_out,
        notes=tuple(row_notes(encoded.remarks)),
    )


def _pieces(encoded: EncodedExample, template: ChatTemplate) -> tuple[Piece, ...]:
    tokenizer = template.tokenizer
    special = np.isin(encoded.input_ids, list(tokenizer.all_special_ids))
    flags = list(zip(encoded.supervised.tolist(), special.tolist(), strict=True))
    pieces, at = [], 0
    for (supervised, is_special), group in groupby(flags):
        length = len(list(group))
        text: Any = tokenizer.decode(encoded.input_ids[at : at + length].tolist(), clean_up_tokenization_spaces=False)
        pieces.append(Piece(text, supervised, is_special))
        at += length
    return tuple(pieces)
