"""`json_fields`: the share of the reference's fields that the answer has with the same value.

A field is a leaf of the JSON: `address.city`, `items.0.price`. An answer that is no JSON has none of them. Numbers are
the same where they are equal, texts where they are alike to the letter, white space at their ends aside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from lamina.config.section import Section
from lamina.errors import DataError
from lamina.evaluation.scorers._json import NotJson, read_json
from lamina.evaluation.scorers.base import Case

TITLE = "JSON fields"
RANGE = (0.0, 1.0)


class Options(Section):
    """Options of `json_fields`."""

    fields: list[str] | None = None
    """Fields that count, with all that is below them; by default all of the reference's."""

    ignore_case: bool = False
    """Whether texts in upper and lower case are the same."""

    extra: bool = False
    """Whether fields that the answer alone has count as wrong ones."""

    fenced: bool = False
    """Whether an answer may stand in a Markdown fence."""


OPTIONS = Options


def build(options: Options) -> Callable[[Case], float]:
    """Builds the scorer."""

    def fields_of(text: str) -> dict[str, Any]:
        leaves = dict(_leaves(read_json(text, options.fenced), ""))
        chosen = options.fields
        kept = leaves if chosen is None else {key: leaves[key] for key in leaves if _is_below(key, chosen)}
        return {key: _comparable(value, options.ignore_case) for key, value in kept.items()}

    def score(case: Case) -> float:
        try:
            wanted = fields_of(case.expected)
        except NotJson:
            raise DataError("the reference is no JSON. Fix: correct it, or use another scorer.") from None
        if not wanted:
            raise DataError("the reference has none of the fields. Fix: correct `fields`, or the row.")
        try:
            found = fields_of(case.answer)
        except NotJson:
            return 0.0
        right = sum(key in found and found[key] == value for key, value in wanted.items())
        return right / (len(wanted.keys() | found.keys()) if options.extra else len(wanted))

    return score


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict | list) and value:
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        for key, below in pairs:
            yield from _leaves(below, f"{path}.{key}" if path else str(key))
    else:
        yield path, value


def _is_below(key: str, chosen: list[str]) -> bool:
    return any(key == each or key.startswith(f"{each}.") for each in chosen)


def _comparable(value: Any, ignore_case: bool) -> Any:
    """A leaf with its kind, so that `true` is not 1; an empty object is not an empty list."""
    if isinstance(value, bool):
        return ("bool", value)
    if isinstance(value, int | float):
        return ("number", value)
    if isinstance(value, str):
        return ("text", value.strip().casefold() if ignore_case else value.strip())
    return (type(value).__name__, None)
