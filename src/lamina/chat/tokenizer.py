"""Facts about a tokenizer that the data code needs: its digest, and whether it adds BOS."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from transformers import PreTrainedTokenizerBase


def fingerprint_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """Returns the SHA-256 of everything that determines the tokenizer's ids (not padding and truncation)."""
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    state = tokenizer.get_vocab() if backend is None else json.loads(backend.to_str())
    state = {name: value for name, value in state.items() if backend is None or name not in ("padding", "truncation")}
    text = json.dumps(state, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def adds_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Returns whether the tokenizer adds its BOS token at the start of every text."""
    ids: list[int] = tokenizer("a").input_ids
    return tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id]
