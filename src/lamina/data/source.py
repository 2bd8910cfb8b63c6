"""From the rows of a file to examples: maps columns, finds the format, and reports every unusable row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice

from lamina.config import DataConfig, SourceConfig
from lamina.data.columns import ColumnMapping
from lamina.data.example import Example, Kind
from lamina.data.formats import DETECT_ROWS, FORMATS, Format, choose_format, column_names, name_of
from lamina.data.formats._fields import RowError
from lamina.data.guess import guess_columns
from lamina.data.read import DataFile, Fault, RawRow, Row, find_files, rows_of
from lamina.data.read.open import fault_message, sheets_of
from lamina.data.read.rows import place_of
from lamina.errors import ConfigError, DataError, Problem


@dataclass(frozen=True)
class OpenSource:
    """A source of a run's data, with its files.

    Attributes:
        side: `train`, `eval` or `replay`.
        source: The settings its rows are read with.
        files: Its files, in order.
        name: Name of the evaluation set; empty if it has none.
    """

    side: str
    source: SourceConfig
    files: list[DataFile]
    name: str = ""


def open_sources(config: DataConfig, *sides: str) -> list[OpenSource]:
    """Returns the sources of the given sides of a run's data, in order.

    Raises:
        ConfigError: A source does not exist, or it is unclear which of its files to use for the side.
    """
    listed = {"train": [("", source, "data.train") for source in config.sources], "replay": []}
    listed["eval"] = [
        (name, source, f"data.eval.{name}" if name else "data.eval") for name, source in config.eval_sources.items()
    ]
    if config.replay is not None:
        replay = config.replay
        source = SourceConfig(path=replay.path, format=replay.format, columns=replay.columns)
        listed["replay"].append(("", source, "data.replay.path"))
    return [
        OpenSource(side, source, find_files(source.path, field, "eval" if side == "eval" else "train"), name)
        for side in sides
        for name, source, field in listed[side]
    ]


@dataclass(frozen=True, slots=True)
class ReadRow:
    """A row, as far as it could be read and parsed.

    Attributes:
        number: Number of the row in its file, from 1.
        line: Line of its file, from 1; 0 in files without lines.
        value: Its columns as they are in the file; None if it is unreadable.
        fault: Why it is unreadable; None if it is readable.
        remarks: Codes of what is odd about it.
        example: The parsed example; None if the row does not fit the format or is unreadable.
        misfit: Why it does not fit the format; empty if it does.
        drop_reason: Why it is dropped although it fits the format (a key of `DROP_REASONS`); empty if it is kept.
        trimmed: Whether turns after the last answer were removed.
    """

    number: int
    line: int
    value: Row | None
    fault: Fault | None = None
    remarks: tuple[str, ...] = ()
    example: Example | None = None
    misfit: str = ""
    drop_reason: str = ""
    trimmed: bool = False


class SourceReader:
    """Reads the rows of one file, and collects facts about them.

    Attributes:
        file: The file.
        source: The settings to read it with.
        format: The name of its format, once the first row has been read.
        columns: Columns seen so far, in order.
        rows: Number of rows seen so far, including unreadable ones.
        refusal: Why no format could be chosen, if reading continued anyway.
        guessed: The column mapping that was found by the columns' usual names; empty if none was needed.
    """

    def __init__(self, file: DataFile, source: SourceConfig, text_unit: str = "auto") -> None:
        self.file = file
        self.source = source
        self.format = ""
        self.columns: dict[str, None] = {}
        self.rows = 0
        self._text_unit = text_unit
        self._mapping = ColumnMapping(source.columns) if source.columns else None
        self.refusal: DataError | None = None
        self.guessed: dict[str, str] = {}

    def __iter__(self) -> Iterator[ReadRow]:
        """Yields every row of the file, in order, used or not; see `rows_up_to`."""
        return self.rows_up_to(None)

    def rows_up_to(self, max_rows: int | None, of_any_shape: bool = False) -> Iterator[ReadRow]:
        """Yields every row of the file, in order; rows after `max_rows` are counted, but not parsed.

        Args:
            max_rows: The last row to parse; None for all.
            of_any_shape: If no format matches the file, continue with every row as a misfit, and set `refusal`.

        Raises:
            ConfigError: `data.columns` maps a field that the format does not read.
            DataError: The file has no rows, or no format matches them.
        """
        rows = self._counted()
        begun = list(islice(rows, DETECT_ROWS))
        if not begun:
            raise DataError(f"{self.file.name}: the file has no rows. Fix: give a file with at least one row.")
        module = None
        try:
            module = self._find_format(begun)
        except DataError as error:
            if not of_any_shape:
                raise
            self.refusal = error
        for row in chain(begun, rows):
            if max_rows is not None and row.number > max_rows:
                yield ReadRow(row.number, row.line, None, drop_reason="after_max_rows")
            else:
                yield self._read(row, module)

    def _counted(self) -> Iterator[RawRow | Fault]:
        for row in rows_of(self.file, self._text_unit):
            self.rows += 1
            if isinstance(row, RawRow):
                self.columns.update(dict.fromkeys(row.value))
            yield row

    @property
    def sheets(self) -> list[str]:
        """The sheet that is read of a workbook with several, and then the others; see `sheet_notes`."""
        return sheets_of(self.file)

    @property
    def ignored_columns(self) -> list[str]:
        """Columns that are not used."""
        if not self.format:
            return []
        module = FORMATS[self.format]
        used = self._mapping.used(self.columns) if self._mapping else {*module.FIELDS, *module.OPTIONAL_FIELDS}
        return [str(column) for column in self.columns if column not in used]

    def _find_format(self, begun: list[RawRow | Fault]) -> Format:
        wanted = self.source.format or "auto"
        values, places, failed = [], [], ""
        for row in begun:
            if isinstance(row, RawRow):
                try:
                    values.append(self._mapping.apply(row.value) if self._mapping else row.value)
                    places.append(place_of(row))
                except RowError as error:
                    failed = failed or f"{place_of(row)}: {error}"
        if not values and failed:
            raise DataError(f"{self.file.name}: {failed}. Fix: correct data.columns.")
        if not values and wanted == "auto":
            first = next(row for row in begun if isinstance(row, Fault))
            raise DataError(f"{fault_message(self.file, first)} None of the first {len(begun)} rows can be read.")
        try:
            module = self._by_usual_names(values, wanted) or choose_format(values, wanted, self.file.name, places)
        except DataError as error:
            if not self.file.within:
                raise
            raise DataError(
                f"{error} If this file is not data, give the paths of the files in {self.file.within} that are."
            ) from None
        name = name_of(module)
        read = (*module.FIELDS, *module.OPTIONAL_FIELDS)
        unread = [field for field in self._mapping.fields if field not in read] if self._mapping else []
        if unread:
            message = f"is mapped, but rows in the format {name!r} have no such field; they have {', '.join(read)}"
            raise ConfigError(Problem(f"data.columns.{unread[0]}", message, "remove it, or map fields of one format"))
        self.format = name
        return module

    def _by_usual_names(self, rows: Sequence[Row], wanted: str) -> Format | None:
        """Maps columns by their usual names, if no format matches the rows as they are; returns the format."""
        if wanted != "auto" or self._mapping or any(form.detect(row) for row in rows for form in FORMATS.values()):
            return None
        common = [column for column in rows[0] if all(column in row for row in rows)]
        guess = guess_columns(map(str, common))
        if guess is None:
            return None
        mapping = ColumnMapping(guess)
        try:
            module = choose_format([mapping.apply(row) for row in rows], "auto", self.file.name)
        except DataError:
            return None
        self._mapping, self.guessed = mapping, guess
        return module

    def _read(self, row: RawRow | Fault, module: Format | None) -> ReadRow:
        if isinstance(row, Fault):
            return ReadRow(row.number, row.line, None, fault=row)
        if module is None:
            misfit = str(self.refusal).removeprefix(f"{self.file.name}: ")
            return ReadRow(row.number, row.line, row.value, remarks=row.remarks, misfit=misfit)
        try:
            value = self._mapping.apply(row.value) if self._mapping else row.value
            example: Example = module.parse(value, row.number)
        except RowError as error:
            return ReadRow(row.number, row.line, row.value, remarks=row.remarks, misfit=str(error))
        usable, drop_reason = usable_part(example)
        trimmed = len(usable.messages) < len(example.messages)
        return ReadRow(row.number, row.line, row.value, None, row.remarks, usable, "", drop_reason, trimmed)


def used_examples(reader: SourceReader, max_rows: int | None = None) -> Iterator[ReadRow]:
    """Yields the rows of a reader for training or evaluation. A row that is unreadable or a misfit is an error.

    Args:
        reader: The file.
        max_rows: Rows after this one get the drop reason `after_max_rows`.

    Raises:
        DataError: A row is unreadable or does not fit the format; the message names it.
    """
    for row in reader.rows_up_to(max_rows):
        if row.fault is not None:
            raise DataError(fault_message(reader.file, row.fault))
        if row.misfit:
            raise DataError(misfit_message(reader, row))
        yield row


def misfit_message(reader: SourceReader, row: ReadRow) -> str:
    """Returns the error message for a row that does not fit its format, where it stops the command."""
    return (
        f"{reader.file.name}: {place_of(row)} does not fit the format {reader.format!r}: {row.misfit}. Its columns are "
        f"{column_names(row.value or {})}. Fix: correct the row, or set data.format or data.columns."
    )


def lacks_column(name: str) -> str:
    """Returns why a row cannot be split by a column that it does not have."""
    return f"it has no column {name!r}, which data.stratify_by or data.group_by refers to"


def usable_part(example: Example) -> tuple[Example, str]:
    """Returns the example up to its last answer, and why it is dropped (empty if it is kept)."""
    if example.tokens is not None:
        return example, "" if example.tokens.ids else "empty_text"
    if example.kind is Kind.TEXT:
        return example, "" if example.text.strip() else "empty_text"
    if example.kind is Kind.CLASSIFICATION:
        return example, "" if example.words().strip() else "empty_text"
    messages = example.messages
    answers = [index for index, message in enumerate(messages) if message.role == "assistant"]
    if not answers:
        return example, "no_assistant_turn"
    if answers[-1] + 1 < len(messages):
        messages = messages[: answers[-1] + 1]
        example = replace(example, messages=messages)
    if any(messages[index].is_empty for index in answers) or any(turn.is_empty for turn in example.rejected):
        return example, "empty_answer"
    if len(messages) == 1:
        return example, "nothing_before_the_answer"
    if example.kind is Kind.PREFERENCE and messages[-1:] == example.rejected:
        return example, "same_answers"
    return example, ""
