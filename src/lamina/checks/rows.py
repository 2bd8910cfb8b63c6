"""The rows of a target, one after another, for the checks and for `lamina data show`. A bad row does not end them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from lamina.chat.template import ChatTemplate
from lamina.checks.findings import CheckedFile
from lamina.checks.row import CheckedRow
from lamina.checks.target import Target
from lamina.config import SourceConfig
from lamina.data.encode import encode_stream
from lamina.data.example import Example, Kind
from lamina.data.guess import guess_notes
from lamina.data.read import DataFile, Fault
from lamina.data.read.excel import sheet_notes
from lamina.data.recognize import recognized_rows
from lamina.data.source import ReadRow, SourceReader, lacks_column, open_sources
from lamina.errors import DataError


@dataclass
class Rows:
    """Every row of a target. Iterating again reads the files again.

    Attributes:
        target: The data.
        template: Renders conversations; without it, rows are not encoded.
        numbers: Rows to encode, by their number in each file, from 1; the others are yielded without tokens. Empty for
            all.
        files: The files that have been read.
        refused: Why a file's rows have no format, or it cannot be read; the first one.
    """

    target: Target
    template: ChatTemplate | None
    numbers: frozenset[int] = frozenset()
    files: list[CheckedFile] = field(default_factory=list)
    refused: DataError | None = None

    def __iter__(self) -> Iterator[CheckedRow]:
        """Yields the training side, then replayed text, then the evaluation side.

        Raises:
            ConfigError: A file does not exist.
            DataError: None of the files has rows.
        """
        self.files.clear()
        self.refused = None
        listed = self._listed()
        for side, source, file in listed:
            reader = SourceReader(file, source, self.target.data.text_unit)
            sheets = list[str]()
            try:
                yield from self._of_file(reader, side, goes_on=len(listed) > 1)
                self.refused = self.refused or reader.refusal
                sheets = reader.sheets
            except DataError as error:
                self.refused = self.refused or error
                message = str(error).removeprefix(f"{file.name}: ")
                fault = Fault("unreadable_rest", reader.rows + 1, 0, message)
                yield CheckedRow(file.name, side, ReadRow(reader.rows + 1, 0, None, fault))
            self.files.append(
                CheckedFile(
                    path=file.name,
                    side=side,
                    format=reader.format,
                    columns=source.columns or reader.guessed,
                    rows=reader.rows,
                    ignored_columns=reader.ignored_columns,
                    skipped=list(file.skipped),
                    notes=[*file.notes, *sheet_notes(file.name, sheets), *guess_notes(file.name, reader.guessed)],
                )
            )
        if self.refused is not None and not any(file.format for file in self.files):
            raise self.refused

    @property
    def has_eval(self) -> bool:
        """Whether evaluation rows follow the training rows."""
        return bool(self.target.data.eval_sources)

    def _listed(self) -> list[tuple[str, SourceConfig, DataFile]]:
        opened = open_sources(self.target.data, "train", "replay", "eval")
        return [(each.side, each.source, file) for each in opened for file in each.files]

    def shapes(self) -> Iterator[tuple[str, str, dict[str, str]]]:
        """Yields name, format and mapped columns of each training file whose format is known, from its first rows."""
        for side, source, file in self._listed():
            reader = SourceReader(file, source, self.target.data.text_unit)
            with contextlib.suppress(DataError):
                next(reader.rows_up_to(1))
                if side == "train":
                    yield file.name, reader.format, source.columns or reader.guessed

    def _of_file(self, reader: SourceReader, side: str, goes_on: bool) -> Iterator[CheckedRow]:
        rows = reader.rows_up_to(reader.source.max_rows, of_any_shape=goes_on)
        if side == "train":
            rows = map(self._with_columns, rows)
        name, source = reader.file.name, reader.source
        if self.template is None:
            for row in rows:
                yield CheckedRow(name, side, row, source=source)
            return
        rows = recognized_rows(rows, self.template)
        encoded = encode_stream(self._to_encode(rows), _sequences, self.template, self.target.data.train_on)
        for (row, example), chosen in encoded:
            rejected = next(encoded)[1] if example is not None and example.rejected else None
            if isinstance(chosen, DataError):
                yield CheckedRow(name, side, row, None, _refusal(chosen, row), source=source)
            elif isinstance(rejected, DataError):
                refusal = f"its rejected answer: {_refusal(rejected, row)}"
                yield CheckedRow(name, side, row, None, refusal, source=source)
            else:
                yield CheckedRow(name, side, row, chosen, "", rejected, source)

    def _with_columns(self, row: ReadRow) -> ReadRow:
        """Returns the row, as a misfit if it lacks a column that the split needs."""
        for name in (self.target.data.stratify_by, self.target.data.group_by):
            if name is not None and row.example is not None and not row.drop_reason and name not in (row.value or {}):
                return replace(row, example=None, misfit=lacks_column(name))
        return row

    def _to_encode(self, rows: Iterable[ReadRow]) -> Iterator[tuple[ReadRow, Example | None]]:
        """Yields each row with its example, if requested; a preference is followed by its rejected answer."""
        for row in rows:
            wanted = not row.drop_reason and (not self.numbers or row.number in self.numbers)
            example = row.example if wanted else None
            yield row, example
            if example is not None and example.rejected:
                other = example.alternatives[1]
                yield row, replace(example, messages=other, rejected=(), kind=Kind.CONVERSATION)


def _sequences(item: tuple[ReadRow, Example | None]) -> tuple[Example, ...]:
    return () if item[1] is None else (item[1],)


def _refusal(error: DataError, row: ReadRow) -> str:
    return str(error).removeprefix(f"row {row.number}: ")
