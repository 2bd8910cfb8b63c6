"""A file's bytes, line by line, decompressed on the way; and what may be odd about a line of text."""

from __future__ import annotations

import codecs
import gzip
import io
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import zstandard

from lamina.data.read.rows import Fault
from lamina.errors import DataError, StorageError

# No row of text is this large; what is, is a file without line ends.
ROW_BYTES = 64 * 2**20
# Of a row that cannot be read, for people.
EXCERPT = 80
_BOM = b"\xef\xbb\xbf"
_CHUNK = 2**18
# What the decompressors raise on data that is cut off or damaged.
_BROKEN = (EOFError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError)
_UTF16 = (b"\xff\xfe", b"\xfe\xff")

# UTF-8 of two bytes that was decoded as Latin-1 or Windows-1252 and encoded again: "Ã©", "â€™".
_MOJIBAKE = re.compile("[\u00c2\u00c3][\u0080-\u00bf]|\u00e2(?:\u20ac|\u0080)[\u0080-\u00bf\u2018-\u2122]")
# A byte that `surrogateescape` let pass.
_ESCAPED = re.compile("[\udc80-\udcff]")
_MISSING = {"nan", "null", "none", "n/a", "#n/a", "<na>"}


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a text file.

    Attributes:
        number: Counted from 1.
        content: Its bytes, without the line's end.
        after_mark: Whether a byte-order mark stood before it.
    """

    number: int
    content: bytes
    after_mark: bool = False


def open_bytes(path: Path, compression: str) -> IO[bytes]:
    """The file's bytes, decompressed.

    Raises:
        StorageError: It cannot be opened.
    """
    try:
        raw = path.open("rb")
    except OSError as error:
        raise StorageError.wrap(error, path, "reading") from error
    if compression == "gzip":
        return cast("IO[bytes]", gzip.GzipFile(fileobj=raw))
    if compression == "zstd":
        return io.BufferedReader(_Zstd(raw), _CHUNK)
    return raw


def lines_of(path: Path, compression: str) -> Iterator[Line | Fault]:
    """The lines of a file, empty ones too; a fault where no further line can be read.

    Raises:
        DataError: The file is UTF-16.
        StorageError: It cannot be opened or read.
    """
    number = 0
    with open_bytes(path, compression) as file:
        while True:
            number += 1
            try:
                content = file.readline(ROW_BYTES + 1)
            except _BROKEN as error:
                yield Fault("truncated", 0, number, f"the compressed data breaks here ({error})")
                return
            except OSError as error:
                raise StorageError.wrap(error, path, "reading") from error
            if not content:
                return
            if len(content) > ROW_BYTES:
                message = f"the line is longer than {ROW_BYTES // 2**20} MiB"
                yield Fault("too_long", 0, number, message, excerpt(content))
                return
            after_mark = number == 1 and content.startswith(_BOM)
            if number == 1 and content.startswith(_UTF16):
                raise DataError(f"{path}: the file is UTF-16. Fix: save it as UTF-8.")
            yield Line(number, content[len(_BOM) if after_mark else 0 :].rstrip(b"\r\n"), after_mark)


def chunks_of(path: Path, compression: str) -> Iterator[str | Fault]:
    """The text of a file in pieces, for files whose rows may span lines or whose lines may hold many rows.

    A byte that is not UTF-8 becomes half of a surrogate pair, as Python's `surrogateescape` has it; see `not_utf8`.

    Raises:
        DataError: The file is UTF-16.
        StorageError: It cannot be opened or read.
    """
    decoder, first, line = codecs.getincrementaldecoder("utf-8")("surrogateescape"), True, 1
    with open_bytes(path, compression) as file:
        while True:
            try:
                chunk = file.read(_CHUNK)
            except _BROKEN as error:
                yield Fault("truncated", 0, line, f"the compressed data breaks here ({error})")
                return
            except OSError as error:
                raise StorageError.wrap(error, path, "reading") from error
            if first and chunk.startswith(_UTF16):
                raise DataError(f"{path}: the file is UTF-16. Fix: save it as UTF-8.")
            yield decoder.decode(chunk, final=not chunk)
            if not chunk:
                return
            line += chunk.count(b"\n")
            first = False


def decoded(line: Line) -> str | Fault:
    """The text of a line, or why it has none."""
    try:
        return line.content.decode("utf-8")
    except UnicodeDecodeError:
        fault = not_utf8(line.content.decode("utf-8", "surrogateescape"), line.number)
        assert fault is not None
        return fault


def not_utf8(text: str, line: int) -> Fault | None:
    """The fault of a text that holds bytes which are not UTF-8, decoded with `surrogateescape`."""
    found = None if text.isascii() else _ESCAPED.search(text)
    if not found:
        return None
    whole = text.encode("utf-8", "surrogateescape")
    around = text[max(0, found.start() - 20) : found.start() + 20].encode("utf-8", "surrogateescape").decode("latin-1")
    place = len(text[: found.start()].encode("utf-8", "surrogateescape"))
    message = f"holds a byte that is not UTF-8, its byte {place} (as Latin-1 it reads {around!r})"
    return Fault("not_utf8", 0, line, message, excerpt(whole))


def remarks_on(text: str) -> list[str]:
    """Codes of what is odd about a text, in quick scans."""
    found = []
    if "\x00" in text or "\\u0000" in text:
        found.append("nul")
    if not text.isascii():
        if "\ufffd" in text:
            found.append("replacement_character")
        # Most text is decided by a search for single characters, which takes a tenth of the pattern's time.
        if ("\u00c3" in text or "\u00c2" in text or "\u00e2" in text) and _MOJIBAKE.search(text):
            found.append("mojibake")
    return found


def is_missing_word(cell: str) -> bool:
    """Whether a cell of a table says that there is no value."""
    return len(cell) <= 4 and cell.strip().lower() in _MISSING


def excerpt(content: bytes | str) -> str:
    """How a row begins, for people."""
    text = content[: 4 * EXCERPT].decode("utf-8", "replace") if isinstance(content, bytes) else content
    text = " ".join(text.split())
    return text if len(text) <= EXCERPT else f"{text[:EXCERPT]}..."


class _Zstd(io.RawIOBase):
    """The content of a zstd file. Unlike the library's own reader, it does not take a file's early end for its end."""

    def __init__(self, raw: IO[bytes]) -> None:
        self._raw = raw
        self._frame = zstandard.ZstdDecompressor().decompressobj()
        self._ready, self._begun = b"", False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            if self._frame.eof:
                packed = self._frame.unused_data or self._raw.read(_CHUNK)
                self._frame, self._begun = zstandard.ZstdDecompressor().decompressobj(), False
            else:
                packed = self._raw.read(_CHUNK)
            if not packed:
                if self._begun:
                    raise EOFError("the file ends before its last frame does")
                return 0
            self._begun = True
            self._ready = self._frame.decompress(packed)
        length = min(len(buffer), len(self._ready))
        buffer[:length] = self._ready[:length]
        self._ready = self._ready[length:]
        return length

    def close(self) -> None:
        self._raw.close()
        super().close()
