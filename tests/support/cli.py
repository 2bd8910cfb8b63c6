"""What the command-line tests share: a small data file, and how a command ended."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROWS = [{"prompt": f"say {i}", "completion": f"{i}!" * (1 + i % 3)} for i in range(20)]


@dataclass(frozen=True)
class Result:
    """How a command ended, and what it wrote."""

    code: int
    out: str
    err: str

    def json(self) -> dict[str, Any]:
        """The one JSON object on stdout, which is a line of its own with nothing before or after it."""
        assert self.out.endswith("\n") and self.out.count("\n") == 1, self.out
        value = json.loads(self.out)
        assert isinstance(value, dict)
        return value

    def error(self) -> str:
        """The one error message on stderr, on a command that failed in good order and printed no result."""
        assert self.code in (1, 2), self
        assert "Traceback" not in self.err
        assert self.err.count("error: ") == 1, self.err
        return self.err.partition("error: ")[2]


Cli = Callable[..., Result]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Writes rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
