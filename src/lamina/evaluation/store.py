"""An evaluation as a folder: its result, its rows and its page, bound to each other by digests.

    result.json     subjects, tasks, settings and figures, the digest of every other file, and its own
    rows/TASK.jsonl each row with its digest, every subject's answer, and every score
    page.html       the same for reading

`read_evaluation` refuses a folder in which a byte was changed. The digest is what a gate's record names as evidence.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lamina import files
from lamina.config.tasks import NAME_PATTERN
from lamina.errors import ConfigError, LaminaError, Problem, check_format

FORMAT = 1
RESULT = "result.json"
PAGE = "page.html"
ROWS = "rows"


class EvaluationError(LaminaError, ValueError):
    """A stored evaluation is missing, was changed, or is not one of what it is named for."""


@dataclass(frozen=True)
class StoredEvaluation:
    """An evaluation on disk.

    Attributes:
        path: Its folder.
        digest: SHA-256 of its content.
        result: What `result.json` holds.
        rows: The rows of each task, by its name.
    """

    path: Path
    digest: str
    result: Mapping[str, Any]
    rows: Mapping[str, list[dict[str, Any]]]

    @property
    def subjects(self) -> list[dict[str, Any]]:
        """The subjects, in order."""
        return list(self.result["subjects"])

    def values(self, task: str, subject: str, metric: str) -> dict[str, float]:
        """A subject's values of a metric, by the digests of the rows that have one.

        Raises:
            EvaluationError: It has none.
        """
        found = {
            row["digest"]: float(value)
            for row in self.rows.get(task, [])
            if (value := row["scores"].get(subject, {}).get(metric)) is not None
        }
        if not found:
            raise EvaluationError(f"{self.path}: has no {metric} of {subject!r} on the task {task!r}.")
        return found


def check_place(folder: Path) -> None:
    """Checks, before any work, that nothing but an evaluation would be replaced.

    Raises:
        ConfigError: The folder holds something else, or is a file.
    """
    if not folder.exists():
        return
    names = {entry.name for entry in folder.iterdir()} if folder.is_dir() else {folder.name}
    if names and not (RESULT in names <= {RESULT, PAGE, ROWS}):
        message = f"{folder} holds something else than an evaluation, which would be lost"
        raise ConfigError(Problem("--out", message, "name a new folder"))


def write_evaluation(
    folder: Path, result: Mapping[str, Any], rows: Mapping[str, Sequence[Mapping[str, Any]]], page: str
) -> str:
    """Writes an evaluation as a whole or not at all.

    Args:
        folder: Where; what is there is replaced.
        result: Its content as plain data, without `format`, `files` and `digest`.
        rows: The rows of each task.
        page: The page.

    Returns:
        Its digest.

    Raises:
        StorageError: It cannot be written.
    """
    contents = {f"{ROWS}/{name}.jsonl": _lines(task_rows) for name, task_rows in rows.items()}
    contents[PAGE] = page.encode("utf-8", "replace").decode()  # data may hold half a surrogate pair
    digests = {name: _sha256(text) for name, text in sorted(contents.items())}
    content = {"format": FORMAT, **result, "files": digests}
    digest = content_digest(content)
    with files.new_folder(folder) as new:
        for name, text in contents.items():
            files.write_text(new / name, text)
        files.write_text(new / RESULT, _text({**content, "digest": digest}))
    return digest


def read_evaluation(folder: Path) -> StoredEvaluation:
    """Reads an evaluation, and checks that it is what was written.

    Raises:
        EvaluationError: It is not there, or a byte of it was changed.
        NewerVersionError: A newer version wrote it.
    """
    path = folder / RESULT
    try:
        text = path.read_bytes().decode("utf-8", "surrogatepass")
        content = json.loads(text)
        written = content["digest"]
        rest = {name: value for name, value in content.items() if name != "digest"}
        check_format(path, content["format"], FORMAT, str(content.get("lamina", "")))
        whole = text == _text({**rest, "digest": content_digest(rest)})
        names = {str(name): str(digest) for name, digest in content["files"].items()}
    except FileNotFoundError:
        raise EvaluationError(f"{folder}: there is no evaluation here. Fix: check the path.") from None
    except LaminaError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise EvaluationError(f"{path}: is not readable ({error}). {_AGAIN}") from None
    if not whole:
        raise EvaluationError(f"{path}: was changed after it was written: its digest does not fit. {_AGAIN}")
    rows = dict(_read_files(folder, names))
    return StoredEvaluation(folder, str(written), content, rows)


def content_digest(content: Mapping[str, Any]) -> str:
    """SHA-256 of plain data as canonical JSON: sorted keys, no white space."""
    text = json.dumps(content, sort_keys=True, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


_AGAIN = "Fix: copy it again, or evaluate again."


def _read_files(folder: Path, names: Mapping[str, str]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    for name, digest in names.items():
        stem = re.fullmatch(rf"{ROWS}/(?P<task>.+)\.jsonl", name)
        if name != PAGE and (stem is None or not re.fullmatch(NAME_PATTERN, stem["task"])):
            raise EvaluationError(f"{folder / RESULT}: names a file {name!r} that no evaluation has. {_AGAIN}")
        try:
            content = (folder / name).read_bytes()
        except OSError as error:
            reason = error.strerror or str(error)
            raise EvaluationError(f"{folder / name}: cannot be read ({reason}). {_AGAIN}") from None
        if f"sha256:{hashlib.sha256(content).hexdigest()}" != digest:
            raise EvaluationError(f"{folder / name}: was changed after it was written: its digest differs. {_AGAIN}")
        if stem is not None:
            yield stem["task"], [json.loads(line) for line in content.decode("utf-8").splitlines()]


def _lines(rows: Sequence[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=True, allow_nan=False, default=str) + "\n" for row in rows)


def _text(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=1, ensure_ascii=True, allow_nan=False) + "\n"


def _sha256(text: str) -> str:
    return "sha256:" + hashlib.sha256(text.encode("utf-8")).hexdigest()
