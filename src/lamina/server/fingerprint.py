"""`system_fingerprint`: what an answer came from, so that it can be had again, or what has changed can be named."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from lamina.engine.guides import Guide
from lamina.engine.sampling import Sampling

# What changes no token, but how many there are and what is said of them; and the seed.
_LEFT_OUT = ("seed", "max_tokens", "logprobs", "prompt_logprobs")


def fingerprint(engine: str, adapter: str | None, sampling: Sampling) -> str:
    """`fp_` and 16 hex digits of the engine's digest, the adapter's, and how answers are drawn.

    What changes no token is not part of it, nor is the seed: as with OpenAI, the same seed and the same fingerprint
    give the same answer.
    """
    chosen = {name: value for name, value in sampling_values(sampling).items() if name not in _LEFT_OUT}
    parts = [engine, adapter, chosen]
    return "fp_" + hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def sampling_values(sampling: Sampling) -> dict[str, Any]:
    """A sampling as plain data."""
    values = dataclasses.asdict(sampling)
    return {**values, "logit_bias": {str(token): bias for token, bias in sorted(sampling.logit_bias.items())}}


def read_sampling(values: Mapping[str, Any]) -> Sampling:
    """The sampling of what `sampling_values` gave.

    Raises:
        TypeError, ValueError: It is none.
    """
    changes = dict(values)
    changes["logit_bias"] = {int(token): bias for token, bias in dict(changes.get("logit_bias") or {}).items()}
    for name in ("stop", "stop_token_ids"):
        changes[name] = tuple(changes.get(name) or ())
    if changes.get("guide") is not None:
        changes["guide"] = Guide(**changes["guide"])
    return Sampling(**changes)
