"""The prompts of a load: a file's, or pieces of about 90 tokens of the quickstart's requests."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lamina.chat.template import ChatTemplate
from lamina.engine.batch import read_prompts, turns_of
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


def rendered_prompts(path: Path, template: ChatTemplate, vocabulary: int) -> list[list[int]]:
    """Renders the prompts of a `.jsonl` file, as `lamina generate --prompts` reads it; what it says of adapters is not.

    Raises:
        DataError: The file cannot be read, or a line is no prompt; the error names the line.
    """
    prompts = []
    for row in read_prompts(path):
        text = template.render(turns_of(row), add_generation_prompt=True)
        ids: list[int] = template.tokenizer(text, add_special_tokens=False).input_ids
        prompts.append([token % vocabulary for token in ids])
    return prompts
