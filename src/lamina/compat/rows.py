"""Rows in memory as a file of JSON lines, which lamina trains from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from lamina import files
from lamina.errors import DataError

Formatting = Callable[[Any], Any]


def rows_of(data: Any, name: str) -> list[dict[str, Any]]:
    """Returns the rows of a list, a `datasets.Dataset` or a DataFrame.

    Raises:
        DataError: There are none, or they are no rows.
    """
    if hasattr(data, "to_dict") and hasattr(data, "iloc"):
        data = data.to_dict("records")
    if isinstance(data, str | bytes | Mapping) or not isinstance(data, Iterable):
        raise DataError(
            f"{name}: rows cannot be read from a {type(data).__name__}. Fix: give a list of rows or a Dataset."
        )
    rows = [row if isinstance(row, Mapping) else {"text": row} for row in data]
    if not rows:
        raise DataError(f"{name}: has no rows. Fix: give at least one.")
    return [dict(row) for row in rows]


def formatted(row: Mapping[str, Any], formatting: Formatting) -> dict[str, Any]:
    """Applies a `formatting_func`, of one row or, as in older versions of TRL, of a batch.

    Raises:
        DataError: It returns neither a text nor a conversation.
    """
    batch = {name: [value] for name, value in row.items()}
    try:
        made = formatting(dict(row))
    except Exception:
        made = _only(formatting(batch))
    else:
        if isinstance(made, list) and not all(isinstance(each, Mapping) for each in made):
            made = _only(formatting(batch))
    if isinstance(made, str):
        return {"text": made}
    if isinstance(made, Mapping):
        return dict(made)
    if isinstance(made, list) and made and all(isinstance(each, Mapping) for each in made):
        return {"messages": [dict(each) for each in made]}
    raise DataError(f"formatting_func returned a {type(made).__name__}. Fix: return a text, or a list of messages.")


def _only(made: Any) -> Any:
    return made[0] if isinstance(made, list) and len(made) == 1 else made


def write(rows: Iterable[Mapping[str, Any]], folder: Path, name: str) -> Path:
    """Writes rows to `folder/name-DIGEST.jsonl`.

    Raises:
        StorageError: It cannot be written.
    """
    try:
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    except TypeError as error:
        raise DataError(f"{name}: a value is no text, number, or list of these ({error}).") from None
    content = text.encode("utf-8", "surrogatepass")
    path = folder / f"{name}-{hashlib.sha256(content).hexdigest()[:12]}.jsonl"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        files.write_bytes(path, content)
    return path


def first_of(path: Path) -> dict[str, Any]:
    """Returns the first row of a file that `write` wrote."""
    with path.open(encoding="utf-8") as lines:
        return json.loads(next(lines))
