"""What a merged folder answers in plain transformers, with nothing but its own files, beside what the adapter answers.

Logits say that the weights are right. Whether the model is asked as it was trained, and whether it stops, is decided by
the other files: chat template, tokenizer, and three lists of tokens that end an answer.
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

# Longest answer that is waited for. Every token reads all of the weights, so that of a large model it is less.
_LONGEST, _SHORTEST = 48, 4
_BYTES_TO_READ = 200e9


@dataclass(frozen=True)
class AdapterAnswers:
    """What the adapter answers.

    Attributes:
        prompts: User turns.
        rendered: Their token ids, as in training.
        answers: The adapter's greedy answers, with the token that ended them.
        stop_ids: What ends them.
        longest: Tokens that they might have.
    """

    prompts: list[str]
    rendered: list[list[int]]
    answers: list[list[int]]
    stop_ids: list[int]
    longest: int


def answer_prompts(model: PreTrainedModel, template: ChatTemplate, prompts: Sequence[str]) -> AdapterAnswers:
    """Lets a model with its adapter answer."""
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
    """What a written folder answers.

    Attributes:
        answers: In figures.
        notes: What a user should know.
        reasons: Why the folder does not do as the adapter does.
    """

    answers: Answers
    notes: list[str]
    reasons: list[str]

    def added_to(self, certificate: Certificate) -> Certificate:
        """A certificate with what was seen."""
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
    """Lets a written folder answer.

    Args:
        folder: The folder.
        model: As transformers loads it.
        template: What the adapter was trained with.
        expected: What the adapter answers.
        tolerance: How far rounding may move a logit.
    """
    with quiet_transformers():
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    notes, reasons = [], []
    if fingerprint_tokenizer(tokenizer) != template.tokenizer_digest:
        reasons.append("its tokenizer gives other ids than the one of training")
    if _rendered(tokenizer, expected.prompts) != expected.rendered:
        if mentions_date(template.source):
            notes.append("the chat template writes today's date, and in training it was given a fixed one or none")
        else:
            reasons.append("its chat template writes other prompts than in training")
    gaps = _Gaps(expected)
    answers = greedy_answers(model, expected.rendered, expected.longest, watch=gaps)
    stopped = undecided = 0
    for number, (ours, theirs) in enumerate(zip(answers, expected.answers, strict=True)):
        apart = next((place for place, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]), None)
        if apart is not None:
            gap = gaps.seen[number][apart]
            if gap <= 2 * tolerance:
                undecided += 1
            else:
                reasons.append(f"it answers {expected.prompts[number]!r} otherwise, by a logit of {gap:.3g}")
        elif len(ours) != len(theirs):
            token = tokenizer.convert_ids_to_tokens((theirs if len(ours) > len(theirs) else ours)[-1])
            what = f"goes on after {token}" if len(ours) > len(theirs) else f"stops at {token}"
            reasons.append(f"it {what}, where the adapter does not")
        elif ours[-1] in expected.stop_ids:
            stopped += 1
    for stop in template.stop_token_ids:
        if len(greedy_answers(model, expected.rendered[:1], 3, watch=_Forced(stop))[0]) != 1:
            reasons.append(f"it goes on after {tokenizer.convert_ids_to_tokens(stop)}, which ends an answer")
    return Seen(Answers(len(answers), expected.longest, stopped, undecided, len(reasons)), notes, reasons)


def _rendered(tokenizer: Any, prompts: Sequence[str]) -> list[list[int]] | None:
    """Token ids as transformers renders them; None where it cannot."""
    turns = [[{"role": "user", "content": prompt}] for prompt in prompts]
    try:
        return [tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_dict=False) for turn in turns]
    except Exception:  # whatever a template, and the sandbox that it runs in, may raise
        return None


class _Gaps(LogitsProcessor):
    """Notes at each step how far the adapter's token lies below the best one.

    Attributes:
        seen: By prompt, a number for each token of the adapter's answer.
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
    """Lets a model say one token only."""

    def __init__(self, token: int) -> None:
        self._token = token

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        forced = torch.full_like(scores, -torch.inf)
        forced[:, self._token] = 0.0
        return forced
