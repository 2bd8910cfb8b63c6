"""Chooses the next tokens of many sequences at once, each by its own settings and its own random numbers."""

from __future__ import annotations

from collections.abc import Sequence as Many

import numpy as np
import torch

from lamina.compute.decoding.choose import choose_tokens, log_normalizers
from lamina.engine.generator import TokenLogprobs
from lamina.engine.sequence import Sequence


@torch.no_grad()
def sample(sequences: Many[Sequence], logits: torch.Tensor) -> tuple[list[int], list[TokenLogprobs | None]]:
    """Chooses a token for each sequence.

    Args:
        sequences: Whose tokens follow.
        logits: The model's own, (sequences, vocabulary), float32; overwritten, unless this raises.

    Returns:
        The tokens, -1 where none is allowed; and what the model thought of them, where that was asked for.
    """
    settings = [sequence.sampling for sequence in sequences]
    asked = [row for row, each in enumerate(settings) if each.logprobs is not None]
    own = logits[asked].clone() if asked else logits[:0]
    before = {row: logits[row].clone() for row, each in enumerate(settings) if each.changes_logits}
    try:
        for row in before:
            change_logits(sequences[row], logits[row])
        tokens = choose_tokens(
            logits,
            torch.tensor([each.temperature for each in settings], dtype=torch.float32),
            torch.tensor([each.top_k for each in settings]),
            torch.tensor([each.top_p for each in settings], dtype=torch.float32),
            torch.tensor([each.min_p for each in settings], dtype=torch.float32),
            torch.tensor([sequence.random_bits() if sequence.sampling.temperature else 0 for sequence in sequences]),
            _masks(sequences),
        ).tolist()
        thoughts: list[TokenLogprobs | None] = [None] * len(sequences)
        if asked:
            found = token_logprobs(own, [tokens[row] for row in asked], [settings[row].logprobs or 0 for row in asked])
            for row, each in zip(asked, found, strict=True):
                thoughts[row] = each
    except Exception:
        for row, each in before.items():  # so that each row can be tried again by itself
            logits[row] = each
        raise
    return tokens, thoughts


def token_logprobs(logits: torch.Tensor, tokens: Many[int], tops: Many[int]) -> list[TokenLogprobs]:
    """What a model thought of tokens: logits (T, V), a token and how many of the best for each."""
    if not len(logits):
        return []
    normalizers = log_normalizers(logits)
    chosen = logits.cpu().gather(1, torch.tensor(tokens).clamp_min(0)[:, None])[:, 0] - normalizers
    most = max(tops)
    if most == 1:  # much faster than topk, and of equal logits it takes the first too
        values, ids = logits.max(dim=-1, keepdim=True)
    else:
        values, ids = logits.topk(most, dim=-1) if most else (logits[:, :0], logits[:, :0].long())
    best = (values.cpu() - normalizers[:, None]).tolist()
    return [
        TokenLogprobs(token, logprob, tuple(zip(row_ids[:top], row[:top], strict=True)))
        for token, logprob, row_ids, row, top in zip(tokens, chosen.tolist(), ids.tolist(), best, tops, strict=True)
    ]


def change_logits(sequence: Sequence, logits: torch.Tensor) -> None:
    """Applies bias and penalties, in place, and forbids what would end an answer too early."""
    sampling = sequence.sampling
    vocabulary = len(logits)
    if sampling.logit_bias:  # before the penalties, as transformers has it
        known = [token for token in sampling.logit_bias if 0 <= token < vocabulary]
        biases = torch.tensor([sampling.logit_bias[token] for token in known], dtype=logits.dtype, device=logits.device)
        logits[known] += biases
    if sampling.repetition_penalty != 1.0:
        seen = torch.from_numpy(np.unique(np.array(sequence.tokens, dtype=np.int64))).to(logits.device)
        values = logits[seen]
        penalty = sampling.repetition_penalty
        logits[seen] = torch.where(values > 0, values / penalty, values * penalty)
    if (sampling.presence_penalty or sampling.frequency_penalty) and sequence.counts:
        seen = torch.tensor(list(sequence.counts), device=logits.device)
        counts = torch.tensor(list(sequence.counts.values()), dtype=logits.dtype, device=logits.device)
        logits[seen] -= sampling.presence_penalty + sampling.frequency_penalty * counts
    if sequence.answer_tokens < sampling.min_tokens:
        logits[[token for token in sequence.stop_ids if token < vocabulary]] = -torch.inf


def _masks(sequences: Many[Sequence]) -> torch.Tensor | None:
    """Bits of the tokens that guides allow; None where nobody follows one."""
    words = next((sequence.guide.words for sequence in sequences if sequence.guide is not None), None)
    if words is None:
        return None
    mask = torch.full((len(sequences), words), -1, dtype=torch.int32)
    for row, sequence in zip(mask, sequences, strict=True):
        if sequence.guide is not None:
            sequence.guide.fill(row)
    return mask
