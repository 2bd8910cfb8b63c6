"""`json_valid`: 1 where the answer is JSON, and of the given schema if there is one, else 0."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from lamina.config.section import Section
from lamina.errors import ConfigError, Problem
from lamina.evaluation.scorers._json import NotJson, read_json
from lamina.evaluation.scorers.base import Case
from lamina.packages import needed_package

TITLE = "valid JSON"
RANGE = (0.0, 1.0)

_FIX = "give a schema, or name a .json file with one"


class Options(Section):
    """Options of `json_valid`."""

    schema_: Annotated[dict[str, Any] | str | None, Field(alias="schema")] = None
    """A JSON schema, or the path of a file with one. Without it any JSON is valid."""

    fenced: bool = False
    """Whether an answer may stand in a Markdown fence."""


OPTIONS = Options


def build(options: Options) -> Callable[[Case], float]:
    """Builds the scorer.

    Raises:
        ConfigError: The schema cannot be read or is none, or jsonschema-rs is not installed.
    """
    check = _checker(options.schema_)

    def score(case: Case) -> float:
        try:
            return float(check(read_json(case.answer, options.fenced)))
        except NotJson:
            return 0.0

    return score


def _checker(schema: dict[str, Any] | str | None) -> Callable[[Any], bool]:
    if schema is None:
        return lambda value: True
    library = needed_package("jsonschema_rs", "json_valid with a schema", "type", "metrics")
    try:
        found = json.loads(Path(schema).expanduser().read_text(encoding="utf-8")) if isinstance(schema, str) else schema
        return library.validator_for(found, retriever=_refuse).is_valid
    except OSError as error:
        raise ConfigError(Problem("schema", f"{schema} cannot be read ({error.strerror})", _FIX)) from None
    except ValueError as error:  # of JSON, or of the schema
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(Problem("schema", f"is no JSON schema ({reason})", _FIX)) from None


def _refuse(address: str) -> Any:
    raise ValueError(f"it refers to {address}, and nothing is fetched")
