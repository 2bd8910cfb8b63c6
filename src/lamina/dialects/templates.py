"""Names of chat templates in Axolotl and LLaMA-Factory: which of lamina's built-in templates writes the same."""

from __future__ import annotations

from typing import Any

from lamina.dialects.outcome import Nothing, Set

_OWN = "the template is the base model's own; name another with `data.chat_template`"

_BUILT_IN = {
    "alpaca": "alpaca",
    "chatml": "chatml",
    "chatml_de": "chatml",
    "llama2": "llama2",
    "llama3": "llama3",
    "mistral": "mistral",
    "mistral_v1": "mistral",
    "vicuna": "vicuna",
    "zephyr": "zephyr",
    "phi": "phi",
}


def built_in(name: str) -> Any:
    """Returns what to set for a template that another library names."""
    if name in _BUILT_IN:
        return Set({"data.chat_template": _BUILT_IN[name]})
    if name.startswith("tokenizer_default_fallback_"):
        return Nothing(_OWN)
    if "{{" in name or "{%" in name:
        return Set({"data.chat_template": name})
    return Nothing(_OWN)
