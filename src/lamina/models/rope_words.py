"""Writes rotary positions to config.json under the keys of transformers 4 in addition to those of transformers 5.

Version 5 writes only `rope_parameters`. Version 4 ignores that key and silently uses its defaults, which makes another
model. Version 5 still reads the old keys, so it is used to find out which of them a model family honors.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from lamina.machine.quiet import quiet_transformers

NEW_WORD = "rope_parameters"
# The key that lists the keys which only repeat `rope_parameters`, so that a config's digest does not depend on them.
MARK = "_repeats_rope_parameters"

# A rope base and a rotary share that no model has.
_STRANGE_BASE, _STRANGE_SHARE = 12345.0, 0.375


def old_rope_words(parameters: dict[str, Any]) -> dict[str, Any]:
    """Converts `rope_parameters` to all keys that a model family may use in transformers 4."""
    nested = [value for value in parameters.values() if isinstance(value, dict)]
    whole = parameters.get("full_attention") if nested else parameters
    local = parameters.get("sliding_attention") if nested else None
    words: dict[str, Any] = {}
    if isinstance(whole, dict):
        scaling = {k: v for k, v in whole.items() if k not in ("rope_theta", "partial_rotary_factor")}
        base, share = whole.get("rope_theta"), whole.get("partial_rotary_factor")
        if scaling.get("rope_type", "default") != "default":
            words["rope_scaling"] = scaling
        if base is not None:
            words |= {"rope_theta": base, "rotary_emb_base": base, "global_rope_theta": base}
        if share is not None:
            words |= {"partial_rotary_factor": share, "rotary_pct": share}
    if isinstance(local, dict) and local.get("rope_theta") is not None:
        words |= {"rope_local_base_freq": local["rope_theta"], "local_rope_theta": local["rope_theta"]}
    return words


def add_old_rope_words(config: dict[str, Any]) -> None:
    """Adds the old keys to a config.json that has only the new one, if they mean the same."""
    for part in config_parts(config):
        if isinstance(part.get(NEW_WORD), dict) and not old_rope_words(part[NEW_WORD]).keys() & part.keys():
            words = _heard(part)
            part |= words
            if words:
                part[MARK] = sorted(words)


def config_parts(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Iterates over a config and the configs of models nested in it."""
    yield config
    for value in config.values():
        if isinstance(value, dict) and "model_type" in value:
            yield from config_parts(value)


def without_repeats(part: dict[str, Any]) -> dict[str, Any]:
    """Returns a config without the keys that `add_old_rope_words` added."""
    repeats = old_rope_words(part.get(NEW_WORD) or {})
    listed = {word for word in part.get(MARK, ()) if word in repeats and part.get(word) == repeats[word]}
    return {key: value for key, value in part.items() if key != MARK and key not in listed}


def _heard(part: dict[str, Any]) -> dict[str, Any]:
    """Finds the old keys that the model's config class honors; none if they would not mean the same as the new key."""
    bare = {key: value for key, value in part.items() if key != NEW_WORD}
    words, whole, silent = old_rope_words(part[NEW_WORD]), _read(part), _read(bare)
    if whole is None:
        return {}
    strange = {
        word: _STRANGE_SHARE if word in ("partial_rotary_factor", "rotary_pct") else _STRANGE_BASE
        for word in words.keys() - {"rope_scaling"}
    }
    heard = {
        word: words[word] for word in words if word not in strange or _read(bare | {word: strange[word]}) != silent
    }
    return heard if heard and _read(bare | heard) == whole else {}


def _read(part: dict[str, Any]) -> Any:
    """Reads a config with transformers and returns its `rope_parameters`; None if it cannot."""
    kind = str(part.get("model_type"))
    if kind not in CONFIG_MAPPING:
        return None
    try:
        with quiet_transformers():
            return getattr(CONFIG_MAPPING[kind].from_dict(_deep_copy(part)), NEW_WORD, None)
    except Exception:  # of any kind: the config class does not accept these keys
        return None


def _deep_copy(value: Any) -> Any:
    """Copies nested dictionaries and lists, since transformers modifies its arguments."""
    if isinstance(value, dict):
        return {key: _deep_copy(item) for key, item in value.items()}
    return list(value) if isinstance(value, list) else value
