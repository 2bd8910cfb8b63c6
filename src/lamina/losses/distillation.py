"""Distillation: L = D(teacher || student) at each token of the answers, a mean over those of the whole optimizer step.

D is the generalized Jensen-Shannon divergence of `compute/ops/divergence.py`: the forward KL for beta = 0, the reverse
KL for beta = 1. The teacher is another model with the same tokenizer, or the same base with the adapter off. With a
`teacher_prompt`, the teacher reads more than the student, who learns to do without it: context distillation (Snell et
al. 2022, arXiv:2209.15189).

Agarwal et al. 2023, "On-Policy Distillation of Language Models: Learning from Self-Generated Mistakes",
arXiv:2306.13649; here on the answers of the data (its lambda = 0).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

from lamina.chat.message import Message
from lamina.compute.ops.divergence import divergence
from lamina.config.losses.distillation import DistillationConfig
from lamina.data.batch import Batch, build_batch
from lamina.data.example import EncodedExample, Example, Kind
from lamina.data.formats._fields import RowError, message_list
from lamina.data.sequences import Sequences
from lamina.errors import ConfigError, Problem
from lamina.losses.answers import predictors, supervised_logits
from lamina.losses.base import Loss, LossSum
from lamina.losses.teacher import Teacher
from lamina.methods.shared.base import Injection
from lamina.models.load import Base, load_base
from lamina.progress import Notify
from lamina.structure.head import Head, find_head

FIELD = "loss.teacher_prompt"


class Distillation(Loss):
    """Distillation on given answers; the formula is at the top of the file."""

    def __init__(self, config: DistillationConfig) -> None:
        self.config = config
        turns = read_prompt(Path(config.teacher_prompt)) if config.teacher_prompt else ()
        self.prompted = bool(turns)
        self.sequences = _sequences(turns)
        self._teacher: Teacher | None = None
        self._facts = {"the teacher's prompt (loss.teacher_prompt)": _digest(turns)} if turns else {}

    def count(self, examples: Sequence[EncodedExample]) -> float:
        return float(sum(example.sequence(0).supervised_tokens for example in examples))

    def attach(self, injection: Injection, base: Base, seed: int, notify: Notify) -> Injection:
        if self.config.teacher is None:
            self._teacher = Teacher(base.model, find_head(base.model), injection)
            return injection
        notify(f"Loading the teacher {self.config.teacher} ...")
        dtype = "float32" if base.dtype == torch.float32 else "auto"
        try:
            other = load_base(self.config.teacher, dtype, base.model.device)
        except ConfigError as error:
            raise ConfigError([replace(each, field="loss.teacher") for each in error.problems]) from None
        rows = [model.config.get_text_config().vocab_size for model in (other.model, base.model)]
        if other.tokenizer.get_vocab() != base.tokenizer.get_vocab() or rows[0] != rows[1]:
            message = (
                f"{self.config.teacher} has another vocabulary than {base.source.ref} ({rows[0]} and {rows[1]} rows)."
            )
            raise ConfigError(Problem("loss.teacher", message, "name a model of the same family"))
        if other.fingerprint.tensors == base.fingerprint.tensors and not self.prompted:
            notify(
                "The teacher is the student's own base and reads the same prompts, so a new adapter has nothing to "
                "learn from it. Set loss.teacher to another model, or loss.teacher_prompt."
            )
        self._teacher = Teacher(other.model, find_head(other.model), None)
        self._facts["the teacher (loss.teacher)"] = other.fingerprint.tensors
        return injection

    def facts(self) -> dict[str, str]:
        return dict(self._facts)

    def compute(self, model: PreTrainedModel, head: Head, batches: Sequence[Batch]) -> LossSum:
        layout, examples = batches[0].layout, batches[0].examples
        student = batches[0]
        if self.prompted and layout.shared:
            student = build_batch([example.sequence(0) for example in examples], layout).to(model.device)
        teacher, number = self._bound, 1 if self.prompted else 0
        taught = teacher.predictors([example.sequence(number) for example in examples], layout, model.device)
        states = predictors(model, head, student)
        each_N = teacher.divergences(states, taught, model, head, self.config.beta, self.config.temperature)
        return LossSum(each_N.double().sum().float())

    def formula(self, logits: Sequence[torch.Tensor], example: EncodedExample) -> torch.Tensor:
        taught = example.sequence(1 if self.prompted else 0)
        theirs = self._bound.own_logits(taught, logits[0].device).to(logits[0].dtype)
        student, other = (
            (supervised_logits(one, sequence)[0] / self.config.temperature).log_softmax(-1)
            for one, sequence in ((logits[0], example.sequence(0)), (theirs, taught))
        )
        return divergence(student, other, self.config.beta).sum()

    @property
    def _bound(self) -> Teacher:
        assert self._teacher is not None, "`attach` comes first"
        return self._teacher


def build(config: DistillationConfig) -> Distillation:
    """Builds the loss of a `loss:` section.

    Raises:
        ConfigError: The teacher's prompt cannot be read.
    """
    return Distillation(config)


def read_prompt(path: Path) -> tuple[Message, ...]:
    """Reads the turns that the teacher alone reads.

    Raises:
        ConfigError: The file is missing, empty, or not a list of turns.
    """
    try:
        text = path.expanduser().read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(Problem(FIELD, f"{path} cannot be read ({error}).", "check the path")) from None
    if not text:
        raise ConfigError(Problem(FIELD, f"{path} is empty.", "write what the teacher is to read"))
    if path.suffix != ".json":
        return (Message("system", text),)
    fix = 'write [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]'
    try:
        turns = tuple(message_list(json.loads(text), "turns"))
    except (ValueError, RowError) as error:
        raise ConfigError(Problem(FIELD, f"{path} is not a list of turns: {error}.", fix)) from None
    if not turns:
        raise ConfigError(Problem(FIELD, f"{path} has no turns.", fix))
    return turns


def _sequences(turns: tuple[Message, ...]) -> Sequences:
    if not turns:
        kinds, key = frozenset({Kind.CONVERSATION, Kind.TEXT}), {"distillation": 1}
        return Sequences(kinds, key=key, learns="answers and plain text", whole_rows=True)
    key = {"distillation": _digest(turns)}
    of = partial(_with_and_without, turns=turns)
    kinds = frozenset({Kind.CONVERSATION})
    return Sequences(kinds, of, key=key, learns="conversations", whole_rows=True, unfit=_unlike_answers)


def _digest(turns: Sequence[Message]) -> str:
    said = json.dumps([asdict(turn) for turn in turns])
    return hashlib.sha256(said.encode()).hexdigest()


def _with_and_without(example: Example, turns: tuple[Message, ...]) -> list[Example]:
    """The row as the student reads it, and as the teacher does."""
    before, own = list(turns), list(example.messages)
    if own[0].role == "system":  # one system message, the teacher's first
        system = own.pop(0)
        if before[0].role == "system":
            before[0] = replace(before[0], content=f"{before[0].content}\n\n{system.content}")
        else:
            before.insert(0, system)
    context = [replace(turn, supervised=False) if turn.role == "assistant" else turn for turn in before]
    return [example, replace(example, messages=(*context, *own))]


def _unlike_answers(encoded: EncodedExample) -> str:
    """Why student and teacher cannot be compared: their answers are not the same tokens."""
    student, teacher = (encoded.sequence(number) for number in range(2))
    ours, theirs = student.input_ids[student.supervised], teacher.input_ids[teacher.supervised]
    return "" if np.array_equal(ours, theirs) else "answer_changed"
