"""Reads an answer as JSON, strictly or out of its fence."""

from __future__ import annotations

import json
import re
from typing import Any

_FENCE = re.compile(r"\A\s*```(?:json)?[ \t]*\n(.*?)\n?```\s*\Z", re.DOTALL)


class NotJson(Exception):
    """A text is no JSON."""


def read_json(text: str, fenced: bool) -> Any:
    """The value of a text that is JSON as a whole; NaN and Infinity are none.

    Args:
        text: The answer.
        fenced: Whether it may stand in a Markdown fence.

    Raises:
        NotJson: It is none.
    """
    match = _FENCE.match(text) if fenced else None
    try:
        return json.loads(match[1] if match else text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        raise NotJson from None


def _refuse(constant: str) -> Any:
    raise ValueError(constant)
