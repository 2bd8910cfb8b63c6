"""A `formatting_func` in its forms of all versions of TRL, as `lamina.train` takes it: for one row."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any


class ForRows:
    """A `formatting_func` of one row or, as in older versions, of a batch.

    The first row tells which, so that the function is called once for each of the others.

    Args:
        function: Takes a row and returns a text or a list of messages; or takes columns and returns a list of texts.
    """

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self._function = function
        self._takes_batches: bool | None = None

    def __call__(self, row: dict[str, Any]) -> Any:
        """Returns what the function makes of a row."""
        if self._takes_batches is None:
            return self._first(row)
        return _only(self._function(_batch(row))) if self._takes_batches else self._function(row)

    def _first(self, row: dict[str, Any]) -> Any:
        try:
            made = self._function(dict(row))
        except Exception as error:  # of one that wants lists, or for another reason
            try:
                made = _only(self._function(_batch(row)))
            except Exception:
                raise error from None  # rows are what TRL gives now
            self._takes_batches = True
            return made
        self._takes_batches = isinstance(made, list) and not all(isinstance(each, Mapping) for each in made)
        return _only(self._function(_batch(row))) if self._takes_batches else made


def _batch(row: Mapping[str, Any]) -> dict[str, list[Any]]:
    return {name: [value] for name, value in row.items()}


def _only(made: Any) -> Any:
    return made[0] if isinstance(made, list) and len(made) == 1 else made
