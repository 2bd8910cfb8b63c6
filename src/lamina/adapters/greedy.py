"""Greedy answers to several prompts at once, which is how probes, merging and its certificate make a model speak."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedModel

from lamina.models.vocabulary import embedding_rows


@torch.no_grad()
def greedy_answers(
    model: PreTrainedModel,
    prompts: Sequence[list[int]],
    max_new_tokens: int,
    stop_ids: Sequence[int] | None = None,
    watch: LogitsProcessor | None = None,
) -> list[list[int]]:
    """Each prompt's greedy answer, found at once: a quantized base is turned back for every token.

    Args:
        model: In evaluation mode.
        prompts: Token ids.
        max_new_tokens: Longest answer.
        stop_ids: What ends an answer; by default what the model itself ends with.
        watch: Sees the scores of every step, and may change them.

    Returns:
        New tokens, the one that ended the answer included.
    """
    own: Any = model.generation_config
    ends = list(stop_ids or _as_list(own.eos_token_id if own else None))
    longest = max(map(len, prompts))
    rows, filler = embedding_rows(model), ends[0] if ends else 0  # where no token is looked at
    filler = filler if rows is None or filler < rows else 0
    padded = [[filler] * (longest - len(ids)) + ids for ids in prompts]
    seen = [[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompts]
    with contiguous_head_input(model):
        output = model.generate(  # pyright: ignore[reportCallIssue]
            torch.tensor(padded, device=model.device),
            attention_mask=torch.tensor(seen, device=model.device),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            pad_token_id=filler,
            logits_processor=LogitsProcessorList([watch] if watch else []),
            **({"eos_token_id": ends} if stop_ids else {}),
        ).tolist()
    return [_until_end(row[longest:], ends) for row in output]


@contextlib.contextmanager
def contiguous_head_input(model: PreTrainedModel) -> Iterator[None]:
    """Lets the head see a contiguous input inside the block.

    After the prompt, transformers hands it the last position of each sequence as a strided view, and torch's linear on
    such a batch copies the head's weight once for each sequence: seconds, and gigabytes.
    """
    head = model.get_output_embeddings()
    if head is None:
        yield
        return
    handle = head.register_forward_pre_hook(lambda module, inputs: (inputs[0].contiguous(),))
    try:
        yield
    finally:
        handle.remove()


def _until_end(ids: list[int], ends: Sequence[int]) -> list[int]:
    end = next((place for place, token in enumerate(ids, 1) if token in ends), len(ids))
    return ids[:end]


def _as_list(ids: int | list[int] | None) -> list[int]:
    return [] if ids is None else ids if isinstance(ids, list) else [ids]
