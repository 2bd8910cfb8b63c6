"""Compares the answers of a merged folder, loaded in plain transformers from its own files, with those of the adapter.

Logits show that the weights are right. The other files decide whether prompts are rendered as in training, and whether
answers stop: chat template, tokenizer, and three lists of stop tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, LogitsProcessor, PreTrainedModel

from lamina.adapters.certificate import Answers, Certificate
from lamina.adapters.greedy import greedy_answers
from lamina.chat.jinja import mentions_date
from lamina.chat.message import Message
from lamina.chat.template import ChatTemplate
from lamina.chat.tokenizer import fingerprint_tokenizer
from lamina.machine.quiet import quiet_transformers
from lamina.models.stops import with_stop_ids

# Tokens of the longest answer. Every token reads all of the weights, so a large model gets fewer.
_LONGEST, _SHORTEST = 48, 4
_BYTES_TO_READ = 200e9


@dataclass(frozen=True)
class AdapterAnswers:
    """The adapter's answers.

    Attributes:
        prompts: User turns.
        rendered: The prompts' token ids, as in training.
        answers: The adapter's greedy answers, including the stop token.
        stop_ids: Ids of the stop tokens.
        longest: Maximum number of tokens of an answer.
    """

    prompts: list[str]
    rendered: list[list[int]]
    answers: list[list[int]]
    stop_ids: list[int]
    longest: int


def answer_prompts(model: PreTrainedModel, template: ChatTemplate, prompts: Sequence[str]) -> AdapterAnswers:
    """Generates the answers of a model with its adapter."""
    texts = [template.render([Message("user", prompt)], add_generation_prompt=True) for prompt in prompts]
    rendered: list[list[int]] = [template.tokenizer(text, add_special_tokens=False).input_ids for text in texts]
    own: Any = model.generation_config
    stop_ids = with_stop_ids(own.eos_token_id if own else None, template)
    size = sum(parameter.nbytes for parameter in model.parameters())
    longest = int(min(_LONGEST, max(_SHORTEST, _BYTES_TO_READ // max(1, size))))
    answers = greedy_answers(model, rendered, longest, stop_ids)
    return AdapterAnswers(list(prompts), rendered, answers, stop_ids, longest)


@dataclass(frozen=True)
class Seen:
    """The result of comparing a folder's answers.

    Attributes:
        answers: Counts of what was compared.
        notes: Notes for the user.
        reasons: How the folder's answers differ from the adapter's.
    """

    answers: Answers
    notes: list[str]
    reasons: list[str]

    def added_to(self, certificate: Certificate) -> Certificate:
        """Returns the certificate with this result added."""
        return replace(
            certificate,
            passed=certificate.passed and not self.reasons,
            answers=self.answers,
            notes=[*certificate.notes, *self.notes],
            reasons=[*certificate.reasons, *self.reasons],
        )


def check_answers(
    folder: Path, model: PreTrainedModel, template: ChatTemplate, expected: AdapterAnswers, tolerance: float
) -> Seen:
    """Generates the answers of a saved folder and compares them with the adapter's.

    Args:
        folder: The folder.
        model: The folder's model, loaded by transformers.
        template: The chat template that the adapter was trained with.
        expected: The adapter's answers.
        tolerance: How much rounding may change a logit.
    """
    with quiet_transformers():
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    notes, reasons = [], []
    if fingerprint_tokenizer(tokenizer) != template.tokenizer_digest:
        reasons.append("its tokenizer gives other ids than in training")
    if _rendered(tokenizer, expected.prompts) != expected.rendered:
        if mentions_date(template.source):
            notes.append("the chat template writes today's date, which was fixed or left out in training")
        else:
            reasons.append("its chat template renders other prompts than in training")
    gaps = _Gaps(expected)
    answers = greedy_answers(model, expected.rendered, expected.longest, watch=gaps)
    stopped = undecided = 0
    for number, (ours, theirs) in enumerate(zip(answers, expected.answers, strict=True)):
        first = next((place for place, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]), None)
        if first is not None:
            gap = gaps.seen[number][first]
            if gap <= 2 * tolerance:
                undecided += 1
            else:
                reasons.append(f"it answers {expected.prompts[number]!r} differently, by a logit of {gap:.3g}")
        elif len(ours) != len(theirs):
            token = tokenizer.convert_ids_to_tokens((theirs if len(ours) > len(theirs) else ours)[-1])
            what = f"continues after {token}" if len(ours) > len(theirs) else f"stops at {token}"
            reasons.append(f"it {what}, but the adapter does not")
        elif ours[-1] in expected.stop_ids:
            stopped += 1
    for stop in template.stop_token_ids:
        if len(greedy_answers(model, expected.rendered[:1], 3, watch=_Forced(stop))[0]) != 1:
            reasons.append(f"it continues after {tokenizer.convert_ids_to_tokens(stop)}, which ends an answer")
    return Seen(Answers(len(answers), expected.longest, stopped, undecided, len(reasons)), notes, reasons)


def _rendered(tokenizer: Any, prompts: Sequence[str]) -> list[list[int]] | None:
    """Renders prompts to token ids with transformers; None if it cannot."""
    turns = [[{"role": "user", "content": prompt}] for prompt in prompts]
    try:
        return [tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_dict=False) for turn in turns]
    except Exception:  # of any kind, from the template or the sandbox that it runs in
        return None


class _Gaps(LogitsProcessor):
    """Records at each step the difference between the best logit and that of the adapter's token.

    Attributes:
        seen: For each prompt, a difference for each token of the adapter's answer.
    """

    def __init__(self, expected: AdapterAnswers) -> None:
        self._answers = expected.answers
        self.seen: list[list[float]] = [[] for _ in expected.answers]

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        for row, answer in enumerate(self._answers):
            step = len(self.seen[row])
            if step < len(answer):
                self.seen[row].append(float(scores[row].max() - scores[row, answer[step]]))
        return scores


class _Forced(LogitsProcessor):
    """Forces a model to generate one given token."""

    def __init__(self, token: int) -> None:
        self._token = token

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        forced = torch.full_like(scores, -torch.inf)
        forced[:, self._token] = 0.0
        return forced
