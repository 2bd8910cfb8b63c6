"""One encoded file of a run's data: from the cache, or read, rendered, tokenized and added to it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from lamina import files
from lamina.cache.folder import IdentityCache
from lamina.chat.template import ChatTemplate
from lamina.config import DataConfig, SourceConfig
from lamina.data.encode import encode_stream
from lamina.data.example import Example, Kind
from lamina.data.guess import guess_notes
from lamina.data.read import REMARKS, DataFile
from lamina.data.read.excel import sheet_notes
from lamina.data.read.rows import ENCODINGS, place_of
from lamina.data.recognize import foreign_marker, recognized_rows
from lamina.data.report import FileReport
from lamina.data.sequences import ANSWERS, Sequences, itself
from lamina.data.source import ReadRow, SourceReader, lacks_column, used_examples
from lamina.data.store import StoredRow, StoreWriter, TokenStore, cached_store, count_text, digest_of, prompt_digest
from lamina.errors import DataError
from lamina.machine.garbage import few_collections
from lamina.progress import Notify

_AS_IT_IS = (
    "is a conversation that was rendered or tokenized before, and this loss renders conversations itself. Fix: give "
    "the conversation as `messages`."
)

# Seconds between progress messages on a large file.
_WORD_EVERY = 10.0


@dataclass(frozen=True)
class EncodedFile:
    """A file of rows with their tokens.

    Attributes:
        file: The file.
        source: The settings it was read with.
        text_unit: The unit that becomes a document, for a plain text file.
        store: The tokens of its rows.
        report: What happened to its rows; completed while the data is assembled.
        whole_rows: Whether rows must not be cut; see `Sequences`.
        pooled: Whether every row counts, and is cut if it is too long; see `Sequences`.
        notes: Other messages to the user.
        eval_set: Name of the evaluation set that it belongs to; empty if it has none.
    """

    file: DataFile
    source: SourceConfig
    text_unit: str
    store: TokenStore
    report: FileReport
    whole_rows: bool = False
    pooled: bool = False
    notes: list[str] = field(default_factory=list)
    eval_set: str = ""

    @property
    def is_text(self) -> bool:
        """Whether its rows are plain text documents."""
        return Kind.TEXT in self.store.facts.kinds

    def reader(self) -> SourceReader:
        """Reads the file again."""
        return SourceReader(self.file, self.source, self.text_unit)


def encode_file(
    file: DataFile,
    source: SourceConfig,
    config: DataConfig,
    role: str,
    template: ChatTemplate,
    notify: Notify | None,
    sequences: Sequences = ANSWERS,
) -> EncodedFile:
    """Encodes a file, unless the cache has it.

    Args:
        file: The file.
        source: The settings to read it with.
        config: The `data:` section.
        role: `train`, `eval` or `replay`.
        template: Renders conversations.
        notify: Reports progress on a large file.
        sequences: How rows become sequences. Rows of kinds that it does not support are stored as one sequence.

    Raises:
        DataError: A row cannot be read, does not fit the format, or is refused by the template.
    """
    sha256 = _digest(file)
    stratify, group = (config.stratify_by, config.group_by) if role == "train" else (None, None)
    train_on = "completions" if sequences.whole_rows else config.train_on
    key = {
        "file": sha256,
        "kind": [file.kind, file.compression, file.split],
        "source": source.model_dump(mode="json", exclude={"path", "weight"}),
        "text_unit": config.text_unit if file.kind == "text" else None,
        "tokenizer": template.tokenizer_digest,
        "template": [template.digest, template.name, template.thinking, template.enable_thinking, template.kwargs],
        "train_on": train_on,
        "columns": [stratify, group],
        "sequences": sequences.key,
    }

    def build(writer: StoreWriter) -> None:
        reader = SourceReader(file, source, config.text_unit)
        with few_collections():
            _fill(writer, reader, train_on, template, sequences, stratify, group, notify)

    # The content of a data set on the hub can change under the same name.
    store = cached_store(key if sha256 else None, build)
    report = store.facts.report(file.name, sha256, role, source.weight if role == "train" else 1.0)
    whole = sequences.whole_rows or store.facts.several
    notes = [*file.notes, *_notes(file, store)]
    return EncodedFile(file, source, config.text_unit, store, report, whole, sequences.pooled, notes)


def _notes(file: DataFile, store: TokenStore) -> Iterator[str]:
    yield from sheet_notes(file.name, store.facts.sheets)
    yield from guess_notes(file.name, store.facts.guessed)
    if store.facts.encoding:
        yield f"{file.name}: {REMARKS[store.facts.encoding]}"


def _fill(
    writer: StoreWriter,
    reader: SourceReader,
    train_on: str,
    template: ChatTemplate,
    sequences: Sequences,
    stratify: str | None,
    group: str | None,
    notify: Notify | None,
) -> None:
    facts, stop = writer.facts, template.stop_token_ids
    last_word = time.monotonic()

    def sequences_of(row: ReadRow) -> Sequence[Example]:
        if row.drop_reason or row.example is None:
            return ()
        if sequences.of is not itself and (row.example.is_rendered or row.example.tokens is not None):
            raise DataError(f"{reader.file.name}: {place_of(row)}: {_AS_IT_IS}")
        return sequences.of(row.example) if row.example.kind in sequences.kinds else (row.example,)

    rows = recognized_rows(used_examples(reader, reader.source.max_rows), template)
    for row, encoded in encode_stream(rows, sequences_of, template, train_on):
        facts.encoding = facts.encoding or next(filter(ENCODINGS.__contains__, row.remarks), "")
        if isinstance(encoded, DataError):
            raise DataError(f"{reader.file.name}: {encoded}") from None
        if encoded is None:
            writer.drop(row.drop_reason, row.number)
            continue
        assert row.example is not None and row.value is not None
        accepted = row.example.kind in sequences.kinds
        if accepted and (unfit := sequences.unfit(encoded)):
            writer.drop(unfit, row.number)
        else:
            if row.trimmed:
                facts.trimmed.add(row.number)
            facts.kinds[row.example.kind] = facts.kinds.get(row.example.kind, 0) + 1
            facts.rendered += row.example.is_rendered
            count_text(facts.foreign, "" if template.is_bare else foreign_marker(row.example))
            facts.wanted += row.example.label is True
            if row.example.kind is Kind.CLASSIFICATION:
                facts.classes[row.example.category] = facts.classes.get(row.example.category, 0) + 1
            facts.with_tools += row.example.has_tools
            facts.with_thinking += any(message.thinking for message in row.example.messages)
            facts.remark(row.number, encoded.remarks)
            teaches_stop = bool(np.isin(encoded.input_ids[encoded.supervised], stop).any())
            stratum, together = (_column(row, name, reader) for name in (stratify, group))
            values = sequences.values(row.example) if accepted else {}
            writer.add(StoredRow(encoded, prompt_digest(row.example), stratum, together, teaches_stop, values))
        if notify is not None and time.monotonic() - last_word > _WORD_EVERY:
            last_word = time.monotonic()
            notify(f"Encoding {reader.file.name}: {row.number:,} rows ...")
    facts.format, facts.rows, facts.ignored_columns = reader.format, reader.rows, reader.ignored_columns
    facts.guessed, facts.sheets = reader.guessed, reader.sheets


def _column(row: ReadRow, name: str | None, reader: SourceReader) -> int:
    if name is None:
        return 0
    if row.value is None or name not in row.value:
        place = place_of(row)
        raise DataError(f"{reader.file.name}: {place}: {lacks_column(name)}. Fix: correct the setting or the row.")
    return digest_of(row.value[name])


def _digest(file: DataFile) -> str:
    """Returns the SHA-256 of the file, cached until the file changes; empty for a data set on the hub."""
    if file.path is None:
        return ""
    cache = IdentityCache("files")
    known = cache.get(file.path)
    if known is None:
        known = files.sha256_file(file.path)
        cache.put(file.path, known)
    return str(known)
