"""Broken data files, each with what must be said of it. Used by the tests of reading and of the command line."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

GOOD = [{"prompt": f"question {number}", "completion": f"answer {number}"} for number in range(1, 6)]
LINES = [json.dumps(row) for row in GOOD]
CHAT = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}


@dataclass(frozen=True)
class Broken:
    """A broken file.

    Attributes:
        name: Its name, with the suffix that decides how it is read.
        content: Its bytes, or a function that makes what lies at a path.
        said: A fault's or remark's code, a drop reason, or words of the misfit or the error that ends the reading.
        line: Where it is said of; 0 where there are no lines, -1 where it depends on the compression.
        good: Rows that can be used all the same, -1 for some; None where the whole file is an error.
        columns: `data.columns`.
    """

    name: str
    content: bytes | Callable[[Path], None]
    said: str
    line: int = 0
    good: int | None = 5
    columns: dict[str, str] | None = None


def lines(*texts: str | bytes, end: bytes = b"\n") -> bytes:
    return end.join(text.encode() if isinstance(text, str) else text for text in texts) + end


def with_third(text: str | bytes) -> bytes:
    """Five good lines with another one in the third place."""
    return lines(*LINES[:2], text, *LINES[2:])


def array(*texts: str, indent: str = "  ") -> bytes:
    return ("[\n" + ",\n".join(indent + text for text in texts) + "\n]\n").encode()


def parquet(table: pa.Table) -> Callable[[Path], None]:
    return lambda path: pq.write_table(table, path)


def cut_parquet(path: Path) -> None:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(GOOD), buffer)
    path.write_bytes(buffer.getvalue()[:-20])


def arrow(path: Path) -> None:
    with pa.ipc.new_file(path, pa.schema([("prompt", pa.string())])) as _:
        pass


def link_to_itself(path: Path) -> None:
    path.symlink_to(path.name)


def folder_with_loop(path: Path) -> None:
    path.mkdir()
    (path / "a.jsonl").write_bytes(with_third("{"))
    (path / "loop").symlink_to("..")
    (path / "README.md").write_text("not data")


def empty_folder(path: Path) -> None:
    path.mkdir()


def messages(*turns: Any, **more: Any) -> str:
    return json.dumps({"messages": list(turns), **more})


USER, ANSWER = CHAT["messages"]
CHATS = [messages({"role": "user", "content": f"q{n}"}, ANSWER) for n in range(5)]


def chats_with_third(text: str) -> bytes:
    return lines(*CHATS[:2], text, *CHATS[2:])


ZSTD = zstandard.ZstdCompressor().compress(lines(*LINES * 2000))
CSV = "prompt,completion\n" + "".join(f"q{n},a{n}\n" for n in range(1, 6))

BROKEN = {
    "truncated gzip": Broken("x.jsonl.gz", gzip.compress(lines(*LINES * 2000))[:-200], "truncated", -1, -1),
    "gzip that is none": Broken("x.jsonl.gz", lines(*LINES), "truncated", 1, None),
    "gzip with nothing behind its head": Broken("x.jsonl.gz", b"\x1f\x8b\x08\x00junk", "truncated", 1, None),
    "truncated zstd": Broken("x.jsonl.zst", ZSTD[: len(ZSTD) // 2], "truncated", -1, -1),
    "zstd that is none": Broken("x.jsonl.zst", lines(*LINES), "truncated", 1, None),
    "byte-order mark": Broken("x.jsonl", b"\xef\xbb\xbf" + lines(*LINES), "byte_order_mark", 1),
    "byte-order mark in csv": Broken("x.csv", b"\xef\xbb\xbf" + CSV.encode(), "byte_order_mark", 2),
    "utf-16": Broken("x.jsonl", "\n".join(LINES).encode("utf-16"), "UTF-16", 0, None),
    "latin-1 line": Broken(
        "x.jsonl", with_third('{"prompt": "Zürich", "completion": "a"}'.encode("latin-1")), "not_utf8", 3
    ),
    "latin-1 in csv": Broken("x.csv", (CSV + "Zürich,a\nq7,a7\n").encode("latin-1"), "windows_1252", 2, 7),
    "latin-1 in csv of utf-8": Broken(
        "x.csv", (CSV + "Zürich,é\n").encode() + "Zürich,a\nq7,a7\n".encode("latin-1"), "not_utf8", 8, 7
    ),
    "utf-16 in csv": Broken("x.csv", (CSV + "Zürich,日本\n").encode("utf-16"), "utf_16", 2, 6),
    "latin-1 in an array": Broken(
        "x.json", array(*LINES[:2], '{"prompt": "Zürich"}').decode().encode("latin-1"), "not_utf8", 4, 2
    ),
    "nul in json": Broken("x.jsonl", with_third('{"prompt": "a\x00b", "completion": "c"}'), "nul", 3, 6),
    "escaped nul in json": Broken("x.jsonl", with_third(r'{"prompt": "a\u0000b", "completion": "c"}'), "nul", 3, 6),
    "nul in csv": Broken("x.csv", (CSV + "a\x00b,c\n").encode(), "nul", 7, 6),
    "line of nul bytes": Broken("x.jsonl", with_third(b"\x00" * 100), "not_json", 3),
    "half a surrogate pair": Broken(
        "x.jsonl", with_third(r'{"prompt": "a\ud83d", "completion": "c"}'), "half_a_character", 3, 6
    ),
    "replacement character": Broken(
        "x.jsonl", with_third('{"prompt": "Z\ufffdrich", "completion": "c"}'), "replacement_character", 3, 6
    ),
    "mojibake": Broken("x.jsonl", with_third('{"prompt": "ZÃ¼rich", "completion": "c"}'), "mojibake", 3, 6),
    "broken quote": Broken("x.jsonl", with_third('{"prompt": "oops, "completion": "x"}'), "not_json", 3),
    "single quotes": Broken("x.jsonl", with_third("{'prompt': 'a', 'completion': 'b'}"), "not_json", 3),
    "trailing comma": Broken("x.jsonl", with_third('{"prompt": "a", "completion": "b",}'), "not_json", 3),
    "two objects in a line": Broken("x.jsonl", with_third(LINES[0] + LINES[1]), "not_json", 3),
    "cut last line": Broken("x.jsonl", lines(*LINES, LINES[0][:20]), "not_json", 6),
    "html error page": Broken(
        "x.jsonl", b"<!DOCTYPE html>\n<html>\n<body>404</body>\n</html>\n", "None of the first", 0, None
    ),
    "git lfs pointer": Broken(
        "x.jsonl", b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 12\n", "git lfs pull", 0, None
    ),
    "row that is a list": Broken("x.jsonl", with_third("[1, 2]"), "not_an_object", 3),
    "row that is null": Broken("x.jsonl", with_third("null"), "not_an_object", 3),
    "duplicate key": Broken(
        "x.jsonl", with_third('{"prompt": "a", "prompt": "b", "completion": "c"}'), "duplicate_key", 3, 6
    ),
    "NaN in json": Broken(
        "x.jsonl", with_third('{"prompt": "a", "completion": "c", "score": NaN}'), "not_a_number", 3, 6
    ),
    "NaN for an answer": Broken("x.jsonl", with_third('{"prompt": "a", "completion": NaN}'), "empty_answer", 3),
    "NaN in csv": Broken("x.csv", (CSV + "q,NaN\n").encode(), "missing_value_word", 7, 6),
    "empty cell in csv": Broken("x.csv", (CSV + "q,\n").encode(), "empty_answer", 7),
    "too many cells": Broken("x.csv", (CSV + "q,a,b\nq7,a7\n").encode(), "wrong_cells", 7, 6),
    "too few cells": Broken("x.csv", (CSV + "q\nq7,a7\n").encode(), "wrong_cells", 7, 6),
    "quote never closed": Broken("x.csv", (CSV + 'q,"a\n').encode(), "truncated", 7),
    "quote never closed, rows below": Broken("x.csv", (CSV + 'q,"a\nq7,a7\nq8,a8\n').encode(), "truncated", 7, 7),
    "quote that ends in another row": Broken(
        "x.csv", (CSV + 'q,"a\nq7,a7\nq8,"a8"\nq9,a9\n').encode(), "ends in line 9", 7, 6
    ),
    "text after a quote": Broken("x.csv", (CSV + 'q,"a"b\nq7,a7\n').encode(), "wrong_cells", 7, 6),
    "column twice": Broken("x.csv", b"prompt,prompt\na,b\n", "contains the column 'prompt' twice", 0, None),
    "csv without a header": Broken("x.csv", b",,\na,b,c\n", "not a header", 0, None),
    "header alone": Broken("x.csv", b"prompt,completion\n", "has no rows", 0, None),
    "empty file": Broken("x.jsonl", b"", "has no rows", 0, None),
    "white space alone": Broken("x.jsonl", b"\n \n\t\n", "has no rows", 0, None),
    "empty array": Broken("x.json", b"[]", "has no rows", 0, None),
    "empty parquet": Broken(
        "x.parquet", parquet(pa.table({"prompt": pa.array([], pa.string())})), "has no rows", 0, None
    ),
    "cut parquet": Broken("x.parquet", cut_parquet, "not a complete Parquet file", 0, None),
    "parquet that is none": Broken("x.parquet", lines(*LINES), "not a complete Parquet file", 0, None),
    "null cells in parquet": Broken(
        "x.parquet",
        parquet(pa.Table.from_pylist([*GOOD, {"prompt": "q", "completion": None}])),
        "empty_answer",
    ),
    "empty arrow": Broken("x.arrow", arrow, "has no rows", 0, None),
    "arrow that is none": Broken("x.arrow", lines(*LINES), "not a complete Arrow file", 0, None),
    "array that is cut off": Broken("x.json", array(*LINES)[:-12], "truncated", 6, 4),
    "array without its end": Broken("x.json", array(*LINES)[:-2], "truncated", 7),
    "broken element of an array": Broken("x.json", array(*LINES[:2], '{"prompt": "a" "b"}', *LINES[2:]), "not_json", 4),
    "broken element, all on a line": Broken(
        "x.json", f'[{LINES[0]}, {{"prompt": "a" "b"}}, {", ".join(LINES[1:])}]'.encode(), "not_json", 1
    ),
    "unclosed text, all on a line": Broken(
        "x.json", f'[{LINES[0]}, {{"prompt": "a", "completion": "b}}, {", ".join(LINES[1:])}]'.encode(), "not_json", 1
    ),
    "bracket never closed in an array": Broken(
        "x.json", array(*CHATS[:2], CHATS[2].replace("]", "").removesuffix("}") + "", *CHATS[3:]), "truncated", 4, 4
    ),
    "elements that begin in different ways": Broken(
        "x.json",
        f'[{{"completion": "a", "prompt": "b"}}, {{"prompt": "a" "b"}}, {", ".join(LINES[1:])}]'.encode(),
        "the start of the next row cannot be found",
        1,
        1,
    ),
    "bracket between elements": Broken("x.json", array(*LINES).replace(b"},\n", b"}],\n", 1), "has ended", 2),
    "text after an array": Broken("x.json", array(*LINES) + b"{}", "unreadable_rest", 8),
    "mixed schemas": Broken("x.jsonl", with_third(json.dumps(CHAT)), "field 'prompt' is missing", 3),
    "half and half": Broken("x.jsonl", lines(*LINES, *[json.dumps(CHAT)] * 5), "different formats", 0, None),
    "unknown columns": Broken("x.jsonl", lines('{"foo": "a", "bar": "b"}'), "unknown format", 0, None),
    "row without a mapped column": Broken(
        "x.jsonl",
        lines(*['{"question": "q", "answer": "a"}'] * 5, '{"question": "q", "reply": "a"}'),
        "no column 'answer'",
        6,
        columns={"prompt": "question", "completion": "answer"},
    ),
    "object for a text": Broken(
        "x.jsonl", with_third('{"prompt": {"a": 1}, "completion": "a"}'), "is dict, not text", 3
    ),
    "nested null": Broken("x.jsonl", chats_with_third(messages(USER, None)), "is not an object", 3),
    "null for a user's text": Broken(
        "x.jsonl", chats_with_third(messages({"role": "user", "content": None}, ANSWER)), "type NoneType", 3
    ),
    "unknown role": Broken(
        "x.jsonl", chats_with_third(messages({"role": "narrator", "content": "x"}, ANSWER)), "role 'narrator'", 3
    ),
    "image part": Broken(
        "x.jsonl",
        chats_with_third(messages({"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, ANSWER)),
        "only text is supported",
        3,
    ),
    "arguments that are no json": Broken(
        "x.jsonl",
        chats_with_third(
            messages(USER, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{x"}}]})
        ),
        "must be an object of arguments in JSON",
        3,
    ),
    "no answer": Broken("x.jsonl", chats_with_third(messages(USER)), "no_assistant_turn", 3),
    "no turns": Broken("x.jsonl", chats_with_third(messages()), "no_assistant_turn", 3),
    "answer of white space": Broken("x.jsonl", with_third('{"prompt": "q", "completion": " \\n"}'), "empty_answer", 3),
    "row of 10 MB": Broken(
        "x.jsonl", with_third(json.dumps({"prompt": "q " * 5_000_000, "completion": "a"})), "", 0, 6
    ),
    "deep nesting": Broken("x.jsonl", with_third('{"prompt": ' + "[" * 100_000), "not_json", 3),
    "number beyond bounds": Broken("x.jsonl", with_third('{"prompt": ' + "1" * 5000 + "}"), "not_json", 3),
    "link to itself": Broken("x.jsonl", link_to_itself, "a link that leads nowhere or to itself", 0, None),
    "folder with a loop of links": Broken("x", folder_with_loop, "not_json", 3),
    "folder without data": Broken("x", empty_folder, "a folder without data files", 0, None),
    "unknown kind": Broken("x.xyz", b"some words", "has an unknown suffix", 0, None),
}
