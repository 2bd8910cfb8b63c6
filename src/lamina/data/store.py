"""Encoded rows on disk, memory-mapped: a second run on the same data starts from them at once.

A store is kept under the digest of everything that determines its content (the file's bytes, how they are read, the
tokenizer, the template, and what is supervised), so a stale store is never used. It is written under a temporary name
and renamed, under a lock, so that two processes that need the same store create it once.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
from filelock import FileLock

from lamina import files
from lamina.cache.folder import cache_folder
from lamina.data.example import NO_REMARKS, EncodedExample, Example, Remarks
from lamina.data.report import FileReport, RowList
from lamina.errors import StorageError

# Stores of other versions are not read. Increase it with every change to what is stored, or to how rows are encoded.
VERSION = 10

# Maximum number of texts to count separately. A template has one or two; texts specific to a row are not worth
# counting.
_MOST_COUNTED = 32


@dataclass(frozen=True)
class StoredRow:
    """A row to be stored.

    Attributes:
        encoded: Its tokens.
        prompt: Digest of its prompt, 0 to 2**64 - 1; equal prompts have equal digests.
        stratum: Digest of the value to stratify by; 0 if there is none.
        group: Digest of the value to group by; 0 if there is none.
        teaches_stop: Whether a stop token is in the loss.
        values: Numbers of the row that the loss uses, by name; every row of a file has the same names.
    """

    encoded: EncodedExample
    prompt: int
    stratum: int
    group: int
    teaches_stop: bool
    values: Mapping[str, float] = field(default_factory=dict)


@dataclass
class Facts:
    """What is known about a file besides its tokens; stored as JSON.

    Attributes:
        format: The format its rows were parsed with.
        rows: Number of rows in the file.
        dropped: Rows that are not stored, by reason.
        trimmed: Rows whose turns after the last answer were removed.
        ignored_columns: Columns that are not used.
        guessed: The column mapping by usual names (`lamina/data/guess.py`).
        encoding: Remark on the file's encoding, if it is not UTF-8.
        sheets: The sheet that was read of a workbook with several, and then the others.
        kinds: Number of stored rows, by kind.
        with_tools: Number of stored rows with tools, calls or results.
        with_thinking: Number of stored rows with reasoning separate from the answer.
        rendered: Number of stored rows whose conversation was rendered before.
        foreign: Number of stored plain texts, by the marker of another chat template in them.
        wanted: Number of stored rows with a label that says that the answer is desirable.
        classes: Number of stored rows, by class.
        not_asked: Stored rows with answers that are excluded from the loss (see `Remarks`).
        openings: Number of stored rows, by the template's text in the loss before their last answer.
        reasoning_given: Number of stored rows whose reasoning is excluded from the loss.
        cut_tokens: Number of stored rows with a token that spans a prompt and its answer.
        unread_kwargs: Number of stored rows, by names in their `chat_template_kwargs` that the template does not read.
        several: Whether a stored row has several sequences.
        values: Names of the numbers of each row that the loss uses.
    """

    format: str = ""
    rows: int = 0
    dropped: dict[str, RowList] = field(default_factory=dict)
    trimmed: RowList = field(default_factory=RowList)
    ignored_columns: list[str] = field(default_factory=list)
    guessed: dict[str, str] = field(default_factory=dict)
    encoding: str = ""
    sheets: list[str] = field(default_factory=list)
    kinds: dict[str, int] = field(default_factory=dict)
    with_tools: int = 0
    with_thinking: int = 0
    rendered: int = 0
    foreign: dict[str, int] = field(default_factory=dict)
    wanted: int = 0
    classes: dict[str, int] = field(default_factory=dict)
    not_asked: RowList = field(default_factory=RowList)
    openings: dict[str, int] = field(default_factory=dict)
    reasoning_given: int = 0
    cut_tokens: int = 0
    unread_kwargs: dict[str, int] = field(default_factory=dict)
    several: bool = False
    values: list[str] = field(default_factory=list)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Facts:
        """Reads what `asdict` and JSON made of the facts."""
        facts = cls(**content)
        facts.dropped = {reason: RowList(**rows) for reason, rows in content["dropped"].items()}
        facts.trimmed, facts.not_asked = RowList(**content["trimmed"]), RowList(**content["not_asked"])
        return facts

    def remark(self, row: int, remarks: Remarks) -> None:
        """Records the remarks on a stored row."""
        if remarks is NO_REMARKS:
            return
        if remarks.not_asked:
            self.not_asked.add(row)
        self.reasoning_given += remarks.reasoning_given
        self.cut_tokens += remarks.cut_token
        count_text(self.openings, remarks.opening)
        for name in remarks.unread_kwargs:
            count_text(self.unread_kwargs, name)

    def report(self, path: str, sha256: str, role: str, weight: float = 1.0) -> FileReport:
        """Returns the initial report on the file."""
        return FileReport(
            path,
            sha256,
            self.format,
            self.rows,
            role,
            weight,
            dropped={reason: RowList(rows.count, list(rows.first)) for reason, rows in self.dropped.items()},
            trimmed=RowList(self.trimmed.count, list(self.trimmed.first)),
            not_asked=RowList(self.not_asked.count, list(self.not_asked.first)),
            ignored_columns=self.ignored_columns,
        )


def count_text(counts: dict[str, int], text: str) -> None:
    """Counts a text, unless it is empty or there are too many different ones."""
    if text and (text in counts or len(counts) < _MOST_COUNTED):
        counts[text] = counts.get(text, 0) + 1


class TokenStore:
    """The encoded rows of one file.

    Attributes:
        facts: What happened to its rows.
        lengths: int64, shape (rows stored,): tokens in each row.
        longest: int64, shape (rows stored,): tokens in the longest sequence of each row.
        supervised_counts: int64, shape (rows stored,): tokens in the loss in each row.
        rows: int64, shape (rows stored,): number of each row in the file.
        highest: int64, shape (rows stored,): highest token id in each row; -1 for a row without tokens.
        prompts: uint64, shape (rows stored,): see `StoredRow`; likewise `strata` and `groups`.
        teaches_stop: bool, shape (rows stored,).
    """

    def __init__(self, folder: Path) -> None:
        self.facts = Facts.from_json(json.loads((folder / "facts.json").read_text(encoding="utf-8")))
        table: np.ndarray = np.load(folder / "rows.npy", mmap_mode="r")
        self.lengths: np.ndarray = table["length"]
        self.longest: np.ndarray = table["longest"]
        self.supervised_counts: np.ndarray = table["supervised"]
        self.rows: np.ndarray = table["row"]
        self.highest: np.ndarray = table["highest"]
        self.prompts: np.ndarray = table["prompt"]
        self.strata: np.ndarray = table["stratum"]
        self.groups: np.ndarray = table["group"]
        self.teaches_stop: np.ndarray = table["teaches_stop"]
        self._starts = np.concatenate(([0], np.cumsum(self.lengths)))
        self._first_sequence = np.concatenate(([0], np.cumsum(table["sequences"])))
        self._sequences = _mapped(folder / "sequences.bin", np.int64)
        self._values = _mapped(folder / "values.bin", np.float64).reshape(-1, max(1, len(self.facts.values)))
        self._ids = _mapped(folder / "tokens.bin", np.uint32)
        self._supervised = _mapped(folder / "supervised.bin", np.bool_)

    def __len__(self) -> int:
        return len(self.lengths)

    def example(self, index: int, begin: int = 0, length: int | None = None, file_index: int = 0) -> EncodedExample:
        """Returns a row, or `length` tokens of it from `begin`; the first token is never supervised.

        A row with several sequences can only be returned whole.
        """
        start = int(self._starts[index]) + begin
        end = int(self._starts[index + 1]) if length is None else start + length
        supervised = np.array(self._supervised[start:end])
        supervised[:1] = False
        ids, row = self._ids[start:end].astype(np.int32), int(self.rows[index])
        if not (self.facts.several or self.facts.values):
            return EncodedExample(ids, supervised, row, file_index)
        several = self._sequences[self._first_sequence[index] : self._first_sequence[index + 1]].tolist()
        assert len(several) == 1 or len(ids) == sum(several), "sequences that belong together are not cut"
        values = dict(zip(self.facts.values, self._values[index].tolist(), strict=True)) if self.facts.values else {}
        return EncodedExample(
            ids, supervised, row, file_index, several=tuple(several) if len(several) > 1 else (), values=values
        )

    def piece_facts(self, index: int, begin: int, length: int, stop: Sequence[int]) -> tuple[int, bool]:
        """Returns the number of supervised tokens of a piece, and whether a token in `stop` is among them."""
        start = int(self._starts[index]) + begin
        supervised = np.array(self._supervised[start : start + length])
        supervised[:1] = False
        return int(supervised.sum()), bool(np.isin(self._ids[start : start + length][supervised], stop).any())


def cached_store(key: dict[str, Any] | None, build: Callable[[StoreWriter], None]) -> TokenStore:
    """Returns the store of `key`, and creates it with `build` if necessary.

    If the cache folder is not writable, the store is created in a temporary folder, which is deleted with the process.

    Args:
        key: Everything that determines the store's content, as plain data; None if unknown.
        build: Fills a new store.

    Raises:
        StorageError: The disk is full.
    """
    if key is None:
        return _temporary_store(build)
    digest = hashlib.sha256(json.dumps({"version": VERSION, **key}, sort_keys=True).encode()).hexdigest()[:32]
    folder = cache_folder() / "tokens" / digest
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder.parent / f"{digest}.lock")
        lock.acquire()
    except OSError:
        return TokenStore(folder) if (folder / "facts.json").is_file() else _temporary_store(build)
    try:
        if not (folder / "facts.json").is_file():
            with files.new_folder(folder) as temporary:
                _write(temporary, build)
        with contextlib.suppress(OSError):
            os.utime(folder)  # marks it as used now
        return TokenStore(folder)  # it is now mapped, so it may be pruned once the lock is released
    finally:
        lock.release()


def digest_of(value: object) -> int:
    """Returns a 64-bit digest of a value's text; a million distinct values collide with a probability of 3e-8."""
    return int.from_bytes(hashlib.blake2b(repr(value).encode("utf-8", "replace"), digest_size=8).digest(), "little")


class StoreWriter:
    """Writes rows to a folder as they arrive, in order.

    Attributes:
        facts: Facts about the file, filled in by the caller.
    """

    def __init__(self, columns: Mapping[str, IO[bytes]]) -> None:
        self.facts = Facts()
        self._columns = columns
        self._table: list[np.ndarray] = []
        self._part: list[tuple[int | bool, ...]] = []

    def add(self, row: StoredRow) -> None:
        """Stores a row."""
        encoded = row.encoded
        self._columns["tokens"].write(encoded.input_ids.astype(np.uint32).tobytes())
        self._columns["supervised"].write(encoded.supervised.tobytes())
        self._columns["sequences"].write(np.array(encoded.lengths, np.int64).tobytes())
        self.facts.several |= bool(encoded.several)
        self.facts.values = self.facts.values or list(row.values)
        assert self.facts.values == list(row.values), "every row of a file takes the same values along"
        self._columns["values"].write(np.array(list(row.values.values()), np.float64).tobytes())
        highest = int(encoded.input_ids.max(initial=-1))
        counts = (len(encoded), encoded.longest, len(encoded.lengths), encoded.supervised_tokens)
        self._part.append((*counts, encoded.row, highest, row.prompt, row.stratum, row.group, row.teaches_stop))
        if len(self._part) == _PART:
            self._close_part()

    def drop(self, reason: str, row: int) -> None:
        """Records a row that is not stored."""
        self.facts.dropped.setdefault(reason, RowList()).add(row)

    def table(self) -> np.ndarray:
        """Returns the table of facts about each row."""
        self._close_part()
        return np.concatenate(self._table)

    def _close_part(self) -> None:
        self._table.append(np.array(self._part, dtype=_ROW))
        self._part = []


# Number of rows to hold as Python tuples before they become an array.
_PART = 4096
_ROW = np.dtype(
    [
        ("length", np.int64),
        ("longest", np.int64),
        ("sequences", np.int64),
        ("supervised", np.int64),
        ("row", np.int64),
        ("highest", np.int64),
        ("prompt", np.uint64),
        ("stratum", np.uint64),
        ("group", np.uint64),
        ("teaches_stop", np.bool_),
    ]
)


def prompt_digest(example: Example) -> int:
    """Returns a digest that is equal for equal prompts, ignoring white space."""
    return digest_of(example.prompt_key())


def _write(folder: Path, build: Callable[[StoreWriter], None]) -> None:
    with contextlib.ExitStack() as stack:
        names = ("tokens", "supervised", "sequences", "values")
        writer = StoreWriter({name: stack.enter_context((folder / f"{name}.bin").open("wb")) for name in names})
        build(writer)
    np.save(folder / "rows.npy", writer.table())
    files.write_json(folder / "facts.json", asdict(writer.facts))


def _temporary_store(build: Callable[[StoreWriter], None]) -> TokenStore:
    folder = Path(tempfile.mkdtemp(prefix="lamina-tokens-"))
    try:
        _write(folder, build)
        store = TokenStore(folder)
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, StorageError):
            raise
        raise StorageError.wrap(error, folder, "writing encoded rows") from error
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    weakref.finalize(store, shutil.rmtree, folder, ignore_errors=True)
    return store


def _mapped(path: Path, dtype: Any) -> np.ndarray:
    if not path.stat().st_size:
        return np.zeros(0, dtype=dtype)
    return np.memmap(path, dtype=dtype, mode="r")
