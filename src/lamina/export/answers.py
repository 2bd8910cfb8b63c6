"""Compares the answers of a merged folder, loaded in plain transformers from its own files, with those of the adapter.

Logits show that the weights are right. The other files decide whether prompts are rendered as in training, and whether
answers stop: chat template, tokenizer, and three lists of stop tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedModel

from lamina.adapters.certificate import Answers, Certificate
from lamina.adapters.logits import Logits
from lamina.chat.jinja import mentions_date
from lamina.chat.message import Message
from lamina.chat.template import ChatTemplate
from lamina.chat.tokenizer import fingerprint_tokenizer
from lamina.engine.generator import ADAPTER, Generator, Piece, Request
from lamina.engine.sampling import Sampling
from lamina.machine.quiet import quiet_transformers
from lamina.models.remote_code import is_allowed

# Tokens of the longest answer. Every token reads all of the weights, so a large model gets fewer.
_LONGEST, _SHORTEST = 48, 4
_BYTES_TO_READ = 200e9

# Makes a token the most probable one, whatever its logit.
_FORCED = 1e9


@dataclass(frozen=True)
class AdapterAnswers:
    """The adapter's answers.

    Attributes:
        prompts: User turns.
        rendered: The prompts' token ids, as in training.
        answers: The adapter's greedy answers.
        longest: Maximum number of tokens of an answer.
    """

    prompts: list[str]
    rendered: list[list[int]]
    answers: list[Piece]
    longest: int


def longest_answer(model: PreTrainedModel) -> int:
    """Computes the maximum number of tokens of an answer; fewer for a large model."""
    size = sum(parameter.nbytes for parameter in model.parameters())
    return int(min(_LONGEST, max(_SHORTEST, _BYTES_TO_READ // max(1, size))))


def answer_prompts(generator: Generator, prompts: Sequence[str], longest: int) -> AdapterAnswers:
    """Generates the adapter's answers.

    Args:
        generator: Answers for `ADAPTER`.
        prompts: User turns.
        longest: Maximum number of tokens of an answer.
    """
    template = generator.template
    texts = [template.render([Message("user", prompt)], add_generation_prompt=True) for prompt in prompts]
    rendered: list[list[int]] = [template.tokenizer(text, add_special_tokens=False).input_ids for text in texts]
    answers = _greedy(generator, rendered, Sampling(max_tokens=longest), ADAPTER)
    return AdapterAnswers(list(prompts), rendered, answers, longest)


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
    folder: Path,
    generator: Generator,
    logits: Logits,
    template: ChatTemplate,
    expected: AdapterAnswers,
    tolerance: float,
) -> Seen:
    """Generates the answers of a saved folder and compares them with the adapter's.

    Args:
        folder: The folder.
        generator: Generates from the folder's own files, with its stop tokens.
        logits: The folder's logits.
        template: The chat template that the adapter was trained with.
        expected: The adapter's answers.
        tolerance: How much rounding may change a logit.
    """
    with quiet_transformers():
        tokenizer: Any = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=is_allowed(folder)
        )
    notes, reasons = [], []
    if fingerprint_tokenizer(tokenizer) != template.tokenizer_digest:
        reasons.append("its tokenizer gives different ids than in training")
    if _rendered(tokenizer, expected.prompts) != expected.rendered:
        if mentions_date(template.source):
            notes.append("the chat template writes the current date, which was fixed or left out in training")
        else:
            reasons.append("its chat template renders different prompts than in training")
    answers = _greedy(generator, expected.rendered, Sampling(max_tokens=expected.longest))
    stopped = undecided = 0
    for number, (answer, wanted) in enumerate(zip(answers, expected.answers, strict=True)):
        ours, theirs = answer.token_ids, wanted.token_ids
        first = next((place for place, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]), None)
        if first is not None:
            gap = _gap(logits, [*expected.rendered[number], *theirs[:first]], theirs[first])
            if gap <= 2 * tolerance:
                undecided += 1
            else:
                reasons.append(f"it answers {expected.prompts[number]!r} differently, by a logit of {gap:.3g}")
        elif len(ours) != len(theirs):
            token = tokenizer.convert_ids_to_tokens((theirs if len(ours) > len(theirs) else ours)[-1])
            what = f"continues after {token}" if len(ours) > len(theirs) else f"stops at {token}"
            reasons.append(f"it {what}, but the adapter does not")
        elif wanted.finish_reason == "stop":
            stopped += 1
    for stop in template.stop_token_ids:
        forced = Sampling(max_tokens=3, logit_bias={stop: _FORCED})
        if len(_greedy(generator, expected.rendered[:1], forced)[0].token_ids) != 1:
            reasons.append(f"it continues after {tokenizer.convert_ids_to_tokens(stop)}, which ends an answer")
    return Seen(Answers(len(answers), expected.longest, stopped, undecided, len(reasons)), notes, reasons)


def _greedy(
    generator: Generator, prompts: Sequence[list[int]], sampling: Sampling, adapter: str | None = None
) -> list[Piece]:
    return generator.generate([Request(token_ids=ids, adapter=adapter, sampling=sampling) for ids in prompts])


def _gap(logits: Logits, ids: Sequence[int], token: int) -> float:
    """How far the token lies below the best one that may follow `ids`."""
    (scores,) = logits(ids, [len(ids) - 1])
    return float(scores.max() - scores[token])


def _rendered(tokenizer: Any, prompts: Sequence[str]) -> list[list[int]] | None:
    """Renders prompts to token ids with transformers; None if it cannot."""
    turns = [[{"role": "user", "content": prompt}] for prompt in prompts]
    try:
        return [tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_dict=False) for turn in turns]
    except Exception:  # of any kind, from the template or the sandbox that it runs in
        return None
