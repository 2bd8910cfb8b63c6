"""The prompts of a load: a file's, or pieces of about 90 tokens of the quickstart's requests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from lamina.chat.message import Message
from lamina.chat.template import ChatTemplate
from lamina.errors import DataError
from lamina.quickstart.task import build_task

# Lengths of the built-in prompts.
SHORTEST, LONGEST = 80, 100

_ROWS_AT_ONCE = 680


def built_in_prompts(template: ChatTemplate, count: int, vocabulary: int, seed: int) -> list[list[int]]:
    """Cuts the quickstart's requests, one after another, into pieces without a common beginning.

    So no side gains by keeping a prefix, and none is asked the same twice.

    Args:
        template: Its tokenizer cuts.
        count: How many.
        vocabulary: Tokens are taken modulo this.
        seed: Of the requests and of the lengths.
    """
    lengths = np.random.default_rng(seed).integers(SHORTEST, LONGEST + 1, count).tolist()
    tokens: list[int] = []
    while len(tokens) < sum(lengths):
        requests = build_task(seed, _ROWS_AT_ONCE, 10).train
        text = "\n".join(request.text for request in requests)
        tokens += template.tokenizer(text, add_special_tokens=False).input_ids
        seed += 1
    ends = np.cumsum(lengths).tolist()
    return [
        [token % vocabulary for token in tokens[end - length : end]] for end, length in zip(ends, lengths, strict=True)
    ]


def read_prompts(path: Path, template: ChatTemplate, vocabulary: int) -> list[list[int]]:
    """Renders the prompts of a `.jsonl` file: on each line a string, or an object with `prompt` or `messages`.

    Raises:
        DataError: The file cannot be read, or a line is none of these; the error names the line.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise DataError(f"{path}: cannot be read ({reason}). Fix: name a .jsonl file.") from None
    prompts = [
        _render(_turns(f"{path}, line {number}", line), template, vocabulary)
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]
    if not prompts:
        raise DataError(f'{path}: has no prompts. Fix: write one a line, such as {{"prompt": "Hello"}}.')
    return prompts


def _turns(where: str, line: str) -> list[Message]:
    try:
        row: Any = json.loads(line)
        if isinstance(row, str):
            return [Message("user", row)]
        if "messages" in row:
            return [Message(str(turn["role"]), str(turn["content"])) for turn in row["messages"]]
        return [Message("user", str(row["prompt"]))]
    except (ValueError, KeyError, TypeError):
        fix = 'write a string, {"prompt": "..."} or {"messages": [...]}'
        raise DataError(f"{where}: is no prompt: {line[:80]!r}. Fix: {fix}.") from None


def _render(turns: list[Message], template: ChatTemplate, vocabulary: int) -> list[int]:
    text = template.render(turns, add_generation_prompt=True)
    ids: list[int] = template.tokenizer(text, add_special_tokens=False).input_ids
    return [token % vocabulary for token in ids]
