"""Digests: SHA-256 of bytes, and of a JSON value in the one form in which it is hashed.

Canonical JSON is UTF-8 with sorted keys, no white space, and no NaN; so that a value has one digest.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from typing import Any

PREFIX = "sha256:"
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def canonical(value: Any) -> bytes:
    """Returns a JSON value in canonical form.

    >>> canonical({"b": 1, "a": [True, None]})
    b'{"a":[true,null],"b":1}'

    Raises:
        ValueError: It holds something that JSON cannot represent, such as NaN.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8")


def digest_of(content: bytes) -> str:
    """Returns the digest of some bytes, such as `sha256:2c26...`."""
    return PREFIX + hashlib.sha256(content).hexdigest()


def is_digest(value: object) -> bool:
    """Returns whether a value is a whole digest."""
    return isinstance(value, str) and DIGEST.fullmatch(value) is not None


def short(digest: str | None) -> str:
    """Returns the first letters of a digest, for people; of None, the bare base."""
    return "the bare base" if digest is None else digest[: len(PREFIX) + 12]


def finite(value: Any) -> Any:
    """Returns a JSON value with None in place of infinite numbers and NaN."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
