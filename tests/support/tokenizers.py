"""Tokenizers of every kind, made in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, trainers
from tokenizers.models import BPE, WordLevel

STOP = "<|im_end|>"

LEARNT = [
    "the cat sat on the mat, 12 times\n\n  indeed\t",
    "naïve café über straße 日本語日本語 🎉🎉 привет",
    "don't  won't",
]


def byte_level(**changes: Any) -> Tokenizer:
    """GPT-2's kind, with merges that cross the letters of several bytes."""
    backend = Tokenizer(BPE())
    backend.pre_tokenizer = changes.get("pre_tokenizer") or pre_tokenizers.ByteLevel(add_prefix_space=False)
    if "normalizer" in changes:
        backend.normalizer = changes["normalizer"]
    backend.decoder = decoders.ByteLevel()
    alphabet = changes.get("alphabet", pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False, special_tokens=[])
    backend.train_from_iterator(LEARNT * 3, trainer)
    backend.add_special_tokens([AddedToken(STOP, lstrip=changes.get("lstrip", False), normalized=False)])
    return backend


def split(behavior: str) -> Any:
    cuts = pre_tokenizers.Split(Regex(r"\s+\S*|[^\s\d]+|\d{1,3}"), behavior)
    return pre_tokenizers.Sequence([cuts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def sentence_piece() -> Tokenizer:
    backend = Tokenizer(BPE(byte_fallback=True, unk_token="<unk>"))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback()])
    trainer = trainers.BpeTrainer(vocab_size=200, show_progress=False, special_tokens=["<unk>", STOP])
    backend.train_from_iterator(LEARNT, trainer)
    return backend


def words() -> Tokenizer:
    backend = Tokenizer(WordLevel({"<unk>": 0, "the": 1, "cat": 2, STOP: 3}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return backend


# Tokenizers whose tokens have their places by their bytes.
BY_BYTES: dict[str, Callable[[], Tokenizer]] = {
    "gpt2": byte_level,
    "llama3": lambda: byte_level(pre_tokenizer=split("isolated")),
    "qwen": lambda: byte_level(pre_tokenizer=split("isolated"), normalizer=normalizers.NFC()),
    "digits": lambda: byte_level(
        pre_tokenizer=pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    ),
    "a token that swallows white space": lambda: byte_level(lstrip=True),
    "bytes are missing": lambda: byte_level(alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())[:120]),
}

OTHERS: dict[str, Callable[[], Tokenizer]] = {
    "a space before": lambda: byte_level(pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=True)),
    "cuts away": lambda: byte_level(pre_tokenizer=split("removed")),
    "lower case": lambda: byte_level(normalizer=normalizers.Lowercase()),
    "sentencepiece": sentence_piece,
    "words": words,
}
