"""The rows of a target, one after another, as the checks and the preview see them: nothing ends at a bad row."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from lamina.config import SourceConfig
from lamina.data.check.row import CheckedRow
from lamina.data.encode import encode_stream
from lamina.data.example import Example
from lamina.data.read import DataFile, Fault, find_files
from lamina.data.source import ReadRow, SourceReader
from lamina.data.template import ChatTemplate
from lamina.errors import DataError
from lamina.inspection.target import Target


@dataclass
class Rows:
    """Every row of a target. Iterating again reads the files again.

    Attributes:
        target: Which data.
        template: Renders conversations; None leaves tokens out.
        numbers: Rows that are wanted, counted from 1 in each file; the others are not encoded. Empty for all.
        files: What was seen of each file, once it was read: path, side, format, rows, columns that nothing reads.
    """

    target: Target
    template: ChatTemplate | None
    numbers: frozenset[int] = frozenset()
    files: list[dict[str, Any]] = field(default_factory=list)

    def __iter__(self) -> Iterator[CheckedRow]:
        """The training side, then the evaluation side, then replayed text.

        Raises:
            ConfigError: A file does not exist.
            DataError: None of the files has rows.
        """
        self.files.clear()
        refused: DataError | None = None
        for side, source, file in self._listed():
            reader = SourceReader(file, source, self.target.data.text_unit)
            try:
                yield from self._of_file(reader, side)
            except DataError as error:
                refused = refused or error
                message = str(error).removeprefix(f"{file.name}: ")
                fault = Fault("unreadable_rest", reader.rows + 1, 0, message)
                yield CheckedRow(file.name, side, ReadRow(reader.rows + 1, 0, None, fault))
            self.files.append(
                {
                    "path": file.name,
                    "side": side,
                    "format": reader.format,
                    "rows": reader.rows,
                    "ignored_columns": reader.ignored_columns,
                    "skipped": list(file.skipped),
                }
            )
        if refused is not None and not any(file["format"] for file in self.files):
            raise refused

    @property
    def has_eval(self) -> bool:
        """Whether rows of an evaluation side follow those of training."""
        return isinstance(self.target.data.eval, str)

    def _listed(self) -> Iterator[tuple[str, SourceConfig, DataFile]]:
        data = self.target.data
        listed = [("train", source, "data.train") for source in data.sources]
        if data.replay is not None:
            replay = SourceConfig(path=data.replay.path, format=data.replay.format, columns=data.replay.columns)
            listed.append(("train", replay, "data.replay.path"))
        if isinstance(data.eval, str):
            listed.append(("eval", data.source_of(data.eval), "data.eval"))
        for side, source, field_name in listed:
            for file in find_files(source.path, field_name):
                yield side, source, file

    def _of_file(self, reader: SourceReader, side: str) -> Iterator[CheckedRow]:
        if self.template is None:
            for row in reader:
                yield CheckedRow(reader.file.name, side, row)
            return
        for row, encoded in encode_stream(reader, self._wanted, self.template, self.target.data.train_on):
            refusal = ""
            if isinstance(encoded, DataError):
                encoded, refusal = None, str(encoded).removeprefix(f"row {row.number}: ")
            yield CheckedRow(reader.file.name, side, row, encoded, refusal)

    def _wanted(self, row: ReadRow) -> Example | None:
        wanted = not self.numbers or row.number in self.numbers
        return row.example if wanted and not row.drop_reason else None
