"""`lamina classify`: the classes of texts, or of the rows of a file."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from lamina.cli.output import (
    DeviceOption,
    JsonFlag,
    MismatchFlag,
    ModelOption,
    Source,
    check_target,
    notify,
    out,
    print_json,
)
from lamina.errors import ConfigError, DataError, Problem


def classify(
    source: Source,
    text: Annotated[list[str] | None, typer.Option("--text", "-t", help="A text to classify; may be repeated.")] = None,
    data: Annotated[
        str | None, typer.Option("--data", help="Classify the rows of a file, with text, prompt or messages.")
    ] = None,
    target: Annotated[
        Path | None, typer.Option("--out", help="With --data: the .jsonl file to write the rows and their labels to.")
    ] = None,
    model: ModelOption = None,
    device: DeviceOption = "auto",
    allow_base_mismatch: MismatchFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Sort texts into the classes of a trained classifier: given with --text, as lines on stdin, or as a file."""
    if data is not None and text:
        raise ConfigError(Problem("--data", "is given beside --text", "give one of them"))
    if target is not None and data is None:
        raise ConfigError(Problem("--out", "has no effect without --data", "add --data FILE, or remove it"))
    check_target("--out", target)
    rows = _texts(text) if data is None else None
    from lamina.evaluation.classify import classify as sort_texts
    from lamina.files import write_text

    given: list[Any] = rows if rows is not None else _rows_of(str(data))
    found = sort_texts(source, given, model=model, allow_base_mismatch=allow_base_mismatch, notify=notify)
    named = [{"text": row} if isinstance(row, str) else dict(row) for row in given]
    results = [{**row, "predicted": one.label, **_rest(asdict(one))} for row, one in zip(named, found, strict=True)]
    if target is not None:
        write_text(target, "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in results))
    if as_json:
        print_json({"out": str(target), "rows": len(results)} if target is not None else {"results": results})
    elif target is not None:
        out.print(f"{len(results)} rows classified; wrote {target}", markup=False)
    else:
        for one in found:
            out.print(f"{one.label}\t{one.probability:.3f}", markup=False)


def _rest(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key != "label"}


def _texts(text: list[str] | None) -> list[str]:
    asked = list(text or [])
    if not asked and not sys.stdin.isatty():
        asked = [line.removeprefix("\ufeff").rstrip("\r\n") for line in sys.stdin if line.strip()]
    if not asked:
        raise ConfigError(Problem("--text", "is required, or lines on stdin, or --data FILE", 'add --text "..."'))
    return asked


def _rows_of(path: str) -> list[dict[str, Any]]:
    from lamina.data.read import find_files
    from lamina.data.read.open import fault_message, rows_of
    from lamina.data.read.rows import Fault

    rows: list[dict[str, Any]] = []
    for file in find_files(path, "--data", "test"):
        for row in rows_of(file, "line"):
            if isinstance(row, Fault):
                raise DataError(fault_message(file, row))
            rows.append(dict(row.value))
    return rows
