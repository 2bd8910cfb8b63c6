"""Hints for settings of other libraries in lamina's own configuration: where they belong here, or why nowhere."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from lamina.dialects.axolotl import AXOLOTL
from lamina.dialects.llama_factory import LLAMA_FACTORY
from lamina.dialects.outcome import Entry, Missing, Nothing, Outcome, Set, To
from lamina.dialects.peft import BITS_AND_BYTES, LORA_CONFIG
from lamina.dialects.trl import DPO, SFT
from lamina.dialects.values import METHODS

_TYPES: dict[str, Entry] = {"type": To("method.type", lambda name: _method(name))}

# What people write without looking, in any library.
_SHORT: dict[str, Entry] = {
    "lr": To("train.learning_rate"),
    "epochs": To("train.num_train_epochs"),
    "steps": To("train.max_steps"),
    "rank": To("method.r"),
    "alpha": To("method.lora_alpha"),
    "dropout": To("method.lora_dropout"),
    "targets": To("method.target_modules"),
    "seq_len": To("data.max_length"),
}

# Whose names are looked for first in a section.
_TABLES: dict[str, tuple[Mapping[str, Entry], ...]] = {
    "method": (LORA_CONFIG, SFT, AXOLOTL, LLAMA_FACTORY),
    "quantization": (BITS_AND_BYTES, LLAMA_FACTORY, AXOLOTL),
    "loss": (DPO, LLAMA_FACTORY, AXOLOTL),
}
_DEFAULT = (SFT, LORA_CONFIG, DPO, AXOLOTL, LLAMA_FACTORY, _SHORT)


def hint_for(field: str, value: Any) -> str:
    """Returns what to do about an unknown key; empty if no library of the tables has it.

    Args:
        field: The key, dotted, as it was written.
        value: Its value.
    """
    section, _, name = field.rpartition(".")
    for table in (*_TABLES.get(section, ()), *_DEFAULT):
        if name in table:
            outcome = table[name].outcome(value)
            if isinstance(outcome, Set) and field in outcome.values:  # what was written, and is not allowed there
                continue
            return _said(field, outcome, value)
    return ""


def value_hint(field: str, value: Any) -> str:
    """Returns what to write in place of a value that another library has for one of lamina's settings; empty if none.

    Args:
        field: The key, dotted.
        value: Its value, which is none that lamina has.
    """
    field = re.sub(r"[.]\d+$", "", field)  # an item of a list
    section, _, name = field.rpartition(".")
    tables = (_TYPES,) if field == "method.type" else (*_TABLES.get(section, ()), *_DEFAULT)
    for table in tables:
        entry = table.get(name)
        if isinstance(entry, To) and entry.key == field:
            outcome = entry.outcome(value)
            if outcome != Set({field: value}) and not isinstance(outcome, Missing):
                return _said(field, outcome, value)
    return ""


def written(values: Mapping[str, Any]) -> str:
    """Returns dotted keys and their values as YAML in one line.

    >>> written({"data.max_length": 2048, "method.r": 8})
    '`data: {max_length: 2048}` and `method: {r: 8}`'
    """
    sections: dict[str, dict[str, Any]] = {}
    for key, value in values.items():
        section, _, name = key.partition(".")
        sections.setdefault(section, {})[name] = value
    return " and ".join(
        f"`{section}: {inline(inner[''])}`" if "" in inner else f"`{section}: {inline(inner)}`"
        for section, inner in sections.items()
    )


def inline(value: Any) -> str:
    """Returns a value as YAML writes it in one line."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {inline(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(inline, value)) + "]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def _said(field: str, outcome: Outcome, value: Any) -> str:
    if isinstance(outcome, Nothing):
        return f"remove it: {outcome.reason}"
    if isinstance(outcome, Missing):
        return outcome.reason if outcome.reason.startswith("write `") else f"remove it: {outcome.reason}"
    note = f" ({outcome.note})" if outcome.note else ""
    return f"write {written(outcome.values)}{note}"


def _method(name: Any) -> Any:
    found = METHODS.get(str(name).lower(), Missing("it is none of lamina's methods"))
    return found if not isinstance(found, str) else Set({"method.type": found})
