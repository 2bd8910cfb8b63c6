"""`AnswerFile`: answers as they come, each on disk before the next, so that a killed evaluation goes on where it was.

A file holds the answers of one subject on one engine, whatever the task: a prompt that was answered with the same
settings is not asked again. Each line is flushed to disk; a line that a kill tore apart is passed over.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from lamina.errors import StorageError


@dataclass(frozen=True)
class Answer:
    """An answer.

    Attributes:
        text: As the model wrote it, without what its template writes around it.
        finish_reason: `stop` or `length`.
        prompt_tokens: Tokens of the prompt; 0 where that is not known.
        answer_tokens: Tokens of the answer.
        seconds: From when it was asked until it was over, others beside it included.
    """

    text: str
    finish_reason: str
    prompt_tokens: int
    answer_tokens: int
    seconds: float

    @property
    def scored(self) -> str:
        """What scorers see: the answer without reasoning between <think> and </think>, white space at the ends aside.

        >>> Answer("<think>\\n2 + 2\\n</think>\\n\\n4", "stop", 0, 0, 0.0).scored
        '4'
        """
        if self.text.startswith("<think>"):
            return self.text.partition("</think>")[2].strip()
        return self.text.strip()


def answer_key(asked: Any, sampling: Mapping[str, Any]) -> str:
    """SHA-256 of what is asked and how the answer is drawn, as plain data."""
    text = json.dumps([asked, dict(sampling)], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


class AnswerFile:
    """The answers of one subject, on disk. A context manager."""

    def __init__(self, path: Path) -> None:
        """
        Args:
            path: The file; what it holds already is read.

        Raises:
            StorageError: It cannot be read.
        """
        self.path = path
        self._found = dict(_read(path))
        self._file: int | None = None

    def __enter__(self) -> AnswerFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def __len__(self) -> int:
        return len(self._found)

    def get(self, key: str) -> Answer | None:
        """The answer to what `answer_key` stands for; None if there is none yet."""
        return self._found.get(key)

    def add(self, key: str, answer: Answer) -> None:
        """Writes an answer to disk.

        Raises:
            StorageError: It cannot be written.
        """
        line = json.dumps({"key": key, **asdict(answer)}, ensure_ascii=True) + "\n"
        try:
            if self._file is None:
                self._file = self._open()
            os.write(self._file, line.encode())
            os.fsync(self._file)
        except OSError as error:
            raise StorageError.wrap(error, self.path, "writing") from error
        self._found[key] = answer

    def _open(self) -> int:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
        size = os.fstat(file).st_size
        if size and os.pread(file, 1, size - 1) != b"\n":
            os.write(file, b"\n")  # what a kill tore apart stays a line of its own
        return file


def _read(path: Path) -> Iterator[tuple[str, Answer]]:
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return
    except OSError as error:
        raise StorageError.wrap(error, path, "reading") from error
    for line in lines:
        with contextlib.suppress(ValueError, TypeError, KeyError):
            value = json.loads(line)
            yield value.pop("key"), Answer(**value)
