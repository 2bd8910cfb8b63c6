"""`KeptAnswers`: the answers of a batch that was interrupted, so that the same command goes on where it stopped."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from lamina.errors import Interrupted, StorageError

# Seconds between two times at which the file is made durable.
_SYNC_SECONDS = 1.0


class KeptAnswers:
    """Answers by key, each a line of JSON in a file beside the batch's target. Used as a context.

    The file is deleted if the block succeeds, since the target then has all answers, and kept if it fails. An interrupt
    (KeyboardInterrupt) in the block becomes `Interrupted`, which says how to go on. While the file is open no other
    process can open it, since the first to end would delete the answers of the other.

    Attributes:
        path: The file.
    """

    def __init__(self, target: Path) -> None:
        """
        Args:
            target: The file that the finished batch will be written to.

        Raises:
            StorageError: The file cannot be opened, or another process writes to it.
        """
        self.path = target.with_name(f"{target.name}.partial")
        self._synced = time.monotonic()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = _open_alone(self.path)
            self._found = _read(self.path)
            if self.path.stat().st_size:
                self._file.write("\n")  # the last line may be torn
        except BlockingIOError:
            message = f"{target}: another command is writing to it. Fix: wait until it ends, or name another --out."
            raise StorageError(message) from None
        except OSError as error:
            raise StorageError(f"{self.path}: cannot be opened ({error.strerror}). Fix: name another --out.") from None

    def __enter__(self) -> KeptAnswers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None or not self._found:
            self.path.unlink(missing_ok=True)
        self._file.close()
        if isinstance(error, KeyboardInterrupt):
            count = len(self._found)
            kept = f"{count} answers are kept in {self.path}" if count else "no answer was finished yet"
            raise Interrupted(f"{kept}. Go on with: the same command again", answers=count) from None

    def __len__(self) -> int:
        return len(self._found)

    def get(self, key: str) -> Mapping[str, Any] | None:
        """Returns what was kept under a key; None if nothing was."""
        return self._found.get(key)

    def keep(self, key: str, answer: Mapping[str, Any]) -> None:
        """Adds an answer to the file.

        Raises:
            StorageError: It cannot be written.
        """
        self._found[key] = dict(answer)
        try:
            self._file.write(json.dumps({"key": key, "answer": answer}, ensure_ascii=True) + "\n")
            self._file.flush()
            if time.monotonic() - self._synced > _SYNC_SECONDS:
                os.fsync(self._file.fileno())
                self._synced = time.monotonic()
        except OSError as error:
            message = f"{self.path}: cannot be written ({error.strerror}). Fix: make room; the same command goes on."
            raise StorageError(message) from None


def _open_alone(path: Path) -> IO[str]:
    """Opens a file to append to, and locks it until it is closed.

    Raises:
        BlockingIOError: Another process has it open.
        OSError: It cannot be opened.
    """
    while True:
        file = path.open("a", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(file.fileno()).st_ino == path.stat().st_ino:
                return file
        except FileNotFoundError:
            pass  # whoever had it finished and deleted it before it was locked here; make a new one
        except BlockingIOError:
            file.close()
            raise
        except OSError:  # a file system without locks
            return file
        file.close()


def _read(path: Path) -> dict[str, dict[str, Any]]:
    """Reads the answers that are complete."""
    found: dict[str, dict[str, Any]] = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            value = json.loads(line)
            found[str(value["key"])] = dict(value["answer"])
        except (ValueError, KeyError, TypeError):
            continue
    return found
