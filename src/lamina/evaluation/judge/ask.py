"""Who judges, and what it said before: asks a judge only what it was not asked yet."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lamina import files
from lamina.chat.message import Message
from lamina.engine.generator import Generator, Request
from lamina.engine.guides import Guide
from lamina.engine.sampling import Sampling
from lamina.evaluation.remote import RemoteModel

Keep = Callable[[int, str], None]

# Conversations, the letters that may be said, and where each answer goes as it comes -> answers.
Ask = Callable[[Sequence[Sequence[Message]], Sequence[str], Keep], list[str]]

# Questions that are asked together; after each lot all answers are on disk.
_TOGETHER = 64

_LETTER_TOKENS = 8


@dataclass(frozen=True)
class Judge:
    """Something that answers conversations.

    Attributes:
        name: For people.
        digest: Of all that its answers depend on.
        ask: Answers.
        settings: How its answers are drawn; part of every result's digest.
    """

    name: str
    digest: str
    ask: Ask
    settings: Mapping[str, Any] = field(default_factory=dict)


def generator_judge(generator: Generator, name: str, digest: str, adapter: str | None = None) -> Judge:
    """A generator, or one of its adapters, as judge: greedy, and kept to the letters by a grammar.

    Args:
        generator: Answers.
        name: For people.
        digest: Of base, adapter and template.
        adapter: The adapter that answers; None is the bare base.
    """

    def ask(conversations: Sequence[Sequence[Message]], letters: Sequence[str], keep: Keep) -> list[str]:
        sampling = Sampling(max_tokens=_LETTER_TOKENS, guide=Guide("choice", json.dumps(list(letters))))
        pieces = generator.generate(
            [Request(messages=turns, adapter=adapter, sampling=sampling) for turns in conversations]
        )
        for number, piece in enumerate(pieces):
            keep(number, piece.text)
        return [piece.text for piece in pieces]

    return Judge(name, digest, ask, {"temperature": 0, "max_tokens": _LETTER_TOKENS, "guide": "choice"})


def remote_judge(model: RemoteModel) -> Judge:
    """A model behind a URL as judge."""
    return Judge(
        f"{model.model} at {model.base_url}",
        model.digest,
        lambda conversations, letters, keep: model.answer(conversations, keep),
        dict(model.settings),
    )


def ask_all(
    judge: Judge,
    questions: Sequence[str],
    letters: Sequence[str],
    cache: Path | None,
    *,
    round: int = 0,
    progress: Callable[[int], None] = lambda done: None,
) -> list[str | None]:
    """Asks a judge for one of several letters.

    Args:
        judge: Who is asked.
        questions: One user's turn each.
        letters: What may be said.
        cache: A folder of earlier answers; None for none. Equal questions are asked once in any case.
        round: Which of several times that the same is asked.
        progress: Called with how many are answered.

    Returns:
        A letter for each question; None where the answer is none.

    Raises:
        LaminaError: The judge does not answer; what it had answered is in the cache.
    """
    keys = [_key(judge, question, letters, round) for question in questions]
    known: dict[str, str] = {}
    asked: dict[str, str] = {}
    for key, question in zip(keys, questions, strict=True):
        found = None if cache is None else _read(cache, key)
        if found is not None:
            known[key] = found
        elif key not in known:
            asked[key] = question
    order = list(asked)
    for first in range(0, len(order), _TOGETHER):
        lot = order[first : first + _TOGETHER]

        def keep(number: int, text: str, lot: list[str] = lot) -> None:
            known[lot[number]] = text
            if cache is not None:
                files.write_json(_place(cache, lot[number]), {"judge": judge.digest, "answer": text})
            progress(len(known))

        answers = judge.ask([[Message("user", asked[key])] for key in lot], letters, keep)
        for number, text in enumerate(answers):
            if lot[number] not in known:
                keep(number, text)
    progress(len(questions))
    return [read_letter(known[key], letters) for key in keys]


def read_letter(text: str, letters: Sequence[str]) -> str | None:
    """The letter that an answer gives: alone, in double brackets, or after its last `verdict` or `answer`; else None.

    >>> read_letter(" B.", "ABC"), read_letter("Both fail. [[A]]", "ABC"), read_letter("A is as good as B", "ABC")
    ('B', 'A', None)
    """
    either = "|".join(re.escape(letter) for letter in letters)
    alone = re.fullmatch(rf"\W*({either})\W*", text.strip())
    if alone:
        return alone[1]
    marked = re.findall(rf"\[\[({either})\]\]", text)
    if marked:
        return marked[-1] if len(set(marked)) == 1 else None
    named = re.findall(rf"(?i:verdict|answer|score)(?i:\s+is)?\W*\b({either})\b(?!\s+\w)", text)
    return named[-1] if named and len(set(named)) == 1 else None


def _key(judge: Judge, question: str, letters: Sequence[str], round: int) -> str:
    facts = [judge.digest, dict(judge.settings), question, list(letters), round]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _place(cache: Path, key: str) -> Path:
    return cache / key[:2] / f"{key[2:]}.json"


def _read(cache: Path, key: str) -> str | None:
    try:
        found = json.loads(_place(cache, key).read_text(encoding="utf-8"))["answer"]
    except (OSError, ValueError, LookupError, TypeError):
        return None  # not asked, or the file is damaged: it is asked again
    return found if isinstance(found, str) else None
