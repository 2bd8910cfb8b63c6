"""Reads `.json` and `.jsonl`: an object per line, one array of objects, or consecutive objects; determined from the
content."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from lamina.data.read.find import DataFile
from lamina.data.read.rows import Fault, RawRow
from lamina.data.read.stream import ROW_BYTES, chunks_of, decoded, excerpt, lines_of, not_utf8, remarks_on

_MARK = "\ufeff"
_SPACE = re.compile(r"\s*")
_BETWEEN = re.compile(r"[\s,]*")
_FIRST_KEY = re.compile(r'\{\s*(?P<key>"(?:[^"\\]|\\.)*")\s*:')
# Parsed text is freed in pieces of this many characters.
_DROP = 2**18
# Maximum length of an element's start, including the white space before it.
_LONG_BEGINNING = 2**12
# Faults after which the end of the element is unknown.
_LOST = ("not_json", "truncated", "too_long")


def read(file: DataFile) -> Iterator[RawRow | Fault]:
    """Yields the rows of the file, in order."""
    assert file.path is not None
    if _spans_lines(next(chunks_of(file.path, file.compression), "")):
        return _Values(chunks_of(file.path, file.compression)).rows()
    return _line_rows(file)


def _spans_lines(begin: str | Fault) -> bool:
    """Returns whether the file is an array or has objects that span lines, judging by its first line with content."""
    if isinstance(begin, Fault):
        return False
    start = begin.removeprefix(_MARK).lstrip().split("\n", 1)[0].strip()
    # A first line that is a complete or a broken object means JSON lines; an object left open continues below.
    return start.startswith("[") or (start.startswith("{") and start.endswith(("{", "[", ",")))


class _Decoder:
    """json's own decoder, with remarks on what it would accept silently."""

    def __init__(self) -> None:
        self.remarks: set[str] = set()
        # Control characters inside strings are accepted: the remark on NUL is more helpful than an error.
        self._decoder = json.JSONDecoder(
            object_pairs_hook=self._object, parse_float=self._float, parse_constant=self._constant, strict=False
        )

    def whole(self, text: str) -> Any:
        """Parses a text that contains a single value."""
        self.remarks.clear()
        return self._decoder.decode(text)

    def first(self, text: str, start: int) -> tuple[Any, int]:
        """Parses the value at `start`, and returns it with its end."""
        self.remarks.clear()
        return self._decoder.raw_decode(text, start)

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) < len(pairs):
            self.remarks.add("duplicate_key")
        return value

    def _float(self, digits: str) -> float:
        value = float(digits)
        if math.isinf(value):  # 1e999
            self.remarks.add("not_a_number")
        return value

    def _constant(self, name: str) -> float:
        self.remarks.add("not_a_number")
        return float(name)


def _line_rows(file: DataFile) -> Iterator[RawRow | Fault]:
    assert file.path is not None
    decoder, number = _Decoder(), 0
    for line in lines_of(file.path, file.compression):
        if isinstance(line, Fault):
            yield replace(line, number=number + 1)
            return
        if not line.content.strip():
            continue
        number += 1
        text = decoded(line)
        if isinstance(text, Fault):
            yield replace(text, number=number)
            continue
        try:
            value = decoder.whole(text)
        except (ValueError, RecursionError) as error:
            reason = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
            yield Fault("not_json", number, line.number, f"is not JSON: {reason}", excerpt(text))
            continue
        yield _row(value, number, line.number, text, decoder, line.after_mark)


def _row(value: Any, number: int, line: int, text: str, decoder: _Decoder, after_mark: bool) -> RawRow | Fault:
    if not isinstance(value, dict):
        message = f"is a {type(value).__name__}, not an object"
        return Fault("not_an_object", number, line, message, excerpt(text))
    remarks = [*sorted(decoder.remarks), *remarks_on(text)]
    if "\\u" in text and not _is_text(value):
        remarks.append("half_a_character")
    if after_mark:
        remarks.append("byte_order_mark")
    return RawRow(number, line, value, tuple(remarks))


def _with_the_rest(fault: Fault) -> Fault:
    """Returns the fault for an element after which no other was found, although the file continues."""
    return replace(fault, code="unreadable_rest", message=f"{fault.message}; the start of the next row cannot be found")


def _is_text(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


class _Values:
    """The elements of one array, or consecutive objects. Keeps at most one of them and a chunk in memory.

    After an unreadable element, reading continues where the next one appears to start: at a line that starts like the
    first element's line, with `{` after the same white space; or, if the first element did not start a line, at a comma
    and an object with the same first key. If there is no such place although the file continues, the fault says so.
    """

    def __init__(self, chunks: Iterator[str | Fault]) -> None:
        self._chunks = chunks
        self._text, self._at = "", 0
        self._line = 1  # line of the text's first character
        self._cut: Fault | None = None
        self._cut_told = False
        self._element: re.Pattern[str] | None = None
        self._broken_at = 0  # where the last fault was noticed

    def rows(self) -> Iterator[RawRow | Fault]:
        """Yields the elements, in order."""
        decoder, number = _Decoder(), 0
        self._fill()
        after_mark = self._text.startswith(_MARK)
        self._at = int(after_mark)
        self._skip(_SPACE)
        in_array = self._text.startswith("[", self._at)
        self._at += in_array
        while self._skip(_BETWEEN):
            if in_array and self._text[self._at] == "]":
                self._at += 1
                if not self._skip(_SPACE):
                    return
                number += 1
                fault = self._fault("not_json", number, "the array has ended, but the file continues")
                if not self._find_next():
                    yield replace(fault, code="unreadable_rest")
                    return
                yield fault
                continue
            if not number:
                self._element = self._beginning()
            number += 1
            found = self._next(decoder, number, after_mark)
            after_mark = False
            if isinstance(found, Fault) and found.code in _LOST:
                goes_on = "{" in self._text[self._broken_at :]
                if not self._find_next():
                    yield _with_the_rest(found) if goes_on else found
                    return
            yield found
        if self._cut is not None and not self._cut_told:
            yield replace(self._cut, number=number + 1)
        elif in_array and not self._cut_told:
            yield self._fault("truncated", number + 1, "the file ends before its array does")

    def _next(self, decoder: _Decoder, number: int, after_mark: bool) -> RawRow | Fault:
        """Parses the element that starts here, reading more text until it is complete."""
        while True:
            end_of_text = len(self._text)
            try:
                value, end = decoder.first(self._text, self._at)
            except json.JSONDecodeError as error:
                open_string = error.msg.startswith("Unterminated")
                # More text may help if the decoder reached the end; for an open string, the error position is the
                # string's start.
                if (open_string or error.pos >= end_of_text - 8) and self._more():
                    continue
                if open_string or error.pos >= len(self._text.rstrip()):
                    return self._never_ends(number)
                column = error.pos - self._text.rfind("\n", 0, error.pos)
                place = f"line {self._line_of(error.pos)}, column {column}"
                fault = self._fault("not_json", number, f"is not JSON: {error.msg} at {place}")
                self._at, self._broken_at = self._at + 1, error.pos
                return fault
            except (ValueError, RecursionError) as error:
                fault = self._fault("not_json", number, f"is not JSON: {error}")
                self._at = self._broken_at = self._at + 1
                return fault
            if end == end_of_text and not isinstance(value, dict) and self._more():
                continue  # a number may continue
            text, line = self._text[self._at : end], self._line_of(self._at)
            # An extra bracket turns the following elements into a list.
            inside = self._element.search(text) if self._element and isinstance(value, list) else None
            self._at = self._at + inside.start("element") if inside else end
            fault = not_utf8(text, line)
            return replace(fault, number=number) if fault else _row(value, number, line, text, decoder, after_mark)

    def _never_ends(self, number: int) -> Fault:
        """Returns the fault for an element that continues to the end of the text."""
        if len(self._text) - self._at > ROW_BYTES:
            fault = self._fault("too_long", number, f"is longer than {ROW_BYTES // 2**20} MiB, or is never closed")
        else:
            fault = self._cut or self._fault("truncated", number, "the file ends in the middle of it")
            self._cut_told = True
        self._at, self._broken_at = self._at + 1, len(self._text)
        return replace(fault, number=number)

    def _beginning(self) -> re.Pattern[str] | None:
        """Returns a pattern for the start of every element, derived from the element here; None if there is none."""
        before = self._text[self._text.rfind("\n", 0, self._at) + 1 : self._at].removeprefix(_MARK)
        if not before.strip():
            return re.compile(rf"\n{re.escape(before)}(?P<element>\{{)")
        key = _FIRST_KEY.match(self._text, self._at)
        return re.compile(rf",\s*(?P<element>\{{\s*{re.escape(key['key'])}\s*:)") if key else None

    def _find_next(self) -> bool:
        """Moves to where the next element appears to start, after an unreadable one. Returns False if there is none."""
        while self._element is not None:
            for found in self._element.finditer(self._text, max(0, self._at - _LONG_BEGINNING)):
                if found.start("element") >= self._at:
                    self._at = found.start("element")
                    return True
            self._at = max(self._at, len(self._text) - _LONG_BEGINNING)
            if not self._fill():
                break
        return False

    def _skip(self, pattern: re.Pattern[str]) -> bool:
        """Moves past whatever the pattern matches. Returns whether anything follows."""
        while True:
            found = pattern.match(self._text, self._at)
            self._at = found.end() if found else self._at
            if self._at < len(self._text):
                return True
            if not self._fill():
                return False

    def _more(self) -> bool:
        """Doubles the text read for the element, so that the total time is proportional to its size."""
        have = len(self._text) - self._at
        if have > ROW_BYTES:
            return False
        while len(self._text) - self._at < 2 * have + 1:
            if not self._fill():
                return len(self._text) - self._at > have
        return True

    def _fill(self) -> bool:
        piece = next(self._chunks, None) if self._cut is None else None
        if isinstance(piece, Fault):
            self._cut = piece
        if not isinstance(piece, str):
            return False
        if self._at > _DROP:
            keep = self._text.rfind("\n", 0, self._at) + 1
            keep = keep if self._at - keep < _DROP else self._at
            self._line += self._text.count("\n", 0, keep)
            self._text, self._at = self._text[keep:], self._at - keep
        self._text += piece
        return True

    def _line_of(self, at: int) -> int:
        return self._line + self._text.count("\n", 0, at)

    def _fault(self, code: str, number: int, message: str) -> Fault:
        return Fault(code, number, self._line_of(self._at), message, excerpt(self._text[self._at : self._at + 200]))
