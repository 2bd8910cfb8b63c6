"""What a `formatting_func` makes of a row, in its forms of all versions of TRL."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from lamina.errors import DataError

Formatting = Callable[[Any], Any]


def formatted(row: Mapping[str, Any], formatting: Formatting) -> dict[str, Any]:
    """Applies a `formatting_func`, of one row or, as in older versions, of a batch.

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
