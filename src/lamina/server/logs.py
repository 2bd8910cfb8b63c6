"""What a server writes down: a line of JSON for each event on stderr, and lines of JSON in files."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from lamina.errors import StorageError


class EventLog:
    """Events as lines of JSON."""

    def __init__(self, stream: IO[str] | None = None) -> None:
        """
        Args:
            stream: Where they go; by default stderr, as it is at the time.
        """
        self._stream = stream

    def write(self, event: str, **values: Any) -> None:
        """Writes an event. That nobody reads it is no error."""
        line = {"time": round(time.time(), 3), "event": event, **values}
        try:
            stream = self._stream or sys.stderr
            stream.write(json.dumps(line, default=str) + "\n")
            stream.flush()
        except (OSError, ValueError):
            return

    def failure(self, event: str, error: BaseException, **values: Any) -> None:
        """Writes an event with the error that it was, and where that came from."""
        trace = "".join(traceback.format_exception(error))[-20_000:]
        self.write(event, **values, error=f"{type(error).__name__}: {error}"[:2000], traceback=trace)


class Lines:
    """A file to which lines of JSON are added, readable by its owner alone. Safe to use from several threads."""

    def __init__(self, path: str | Path) -> None:
        """
        Raises:
            StorageError: It cannot be opened.
        """
        self.path = Path(path)
        self._lock = threading.Lock()
        try:
            descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            self._file = os.fdopen(descriptor, "a", encoding="utf-8")
        except OSError as error:
            raise StorageError.wrap(error, self.path, "opening") from None

    def add(self, value: Mapping[str, Any]) -> None:
        """Adds a line.

        Raises:
            StorageError: It cannot be written.
        """
        text = json.dumps(value) + "\n"
        with self._lock:
            try:
                self._file.write(text)
                self._file.flush()
            except (OSError, ValueError) as error:
                wrapped = error if isinstance(error, OSError) else OSError(str(error))
                raise StorageError.wrap(wrapped, self.path, "writing") from None

    def close(self) -> None:
        """Closes the file."""
        with self._lock:
            self._file.close()
