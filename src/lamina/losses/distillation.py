"""Distillation: L = D(teacher || student) at each token of the answers, a mean over those of the whole optimizer step.

D is the generalized Jensen-Shannon divergence of `compute/ops/divergence.py`: the forward KL for beta = 0, the reverse
KL for beta = 1. The teacher is another model with the same tokenizer, or the same base with the adapter off. With a
`teacher_prompt`, the teacher reads more than the student, who learns to do without it: context distillation (Snell et
al. 2022, arXiv:2209.15189).

Agarwal et al. 2023, "On-Policy Distillation of Language Models: Learning from Self-Generated Mistakes",
arXiv:2306.13649; here on the answers of the data (its lambda = 0).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from lamina.chat.message import ROLES, Message
from lamina.compute.fusion import model_inputs, predicting_states, token_rows
from lamina.compute.ops.divergence import TeacherLogits, chunked_divergence, chunked_divergence_autograd, divergence
from lamina.config.losses.distillation import DistillationConfig
from lamina.data.batch import Batch, Layout, build_batch
from lamina.data.example import EncodedExample, Example, Kind
from lamina.data.sequences import Sequences
from lamina.errors import ConfigError, Problem
from lamina.losses.answers import has_plain_head
from lamina.losses.base import Loss, LossSum
from lamina.methods.shared.base import Injection
from lamina.models.load import Base, load_base
from lamina.progress import Notify
from lamina.structure.head import Head, find_head

# How another model runs: its own code, one document at a time.
_ALONE = Layout(together=False, own_attention=True)

FIELD = "loss.teacher_prompt"


@dataclass(frozen=True)
class Teacher:
    """The teacher.

    Attributes:
        model: Its model: another one, or the student's own.
        head: Its parts.
        injection: The adapter that is off while it teaches; None for another model.
    """

    model: PreTrainedModel
    head: Head
    injection: Injection | None

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Makes the model the teacher inside the block, in evaluation mode and without gradients."""
        training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad(), self.injection.disabled() if self.injection else contextlib.nullcontext():
                yield
        finally:
            self.model.train(training)


class Distillation(Loss):
    """Distillation on given answers; the formula is at the top of the file."""

    def __init__(self, config: DistillationConfig) -> None:
        self.config = config
        turns = read_prompt(Path(config.teacher_prompt)) if config.teacher_prompt else ()
        self.prompted = bool(turns)
        self.sequences = _sequences(turns)
        self._teacher: Teacher | None = None

    def count(self, examples: Sequence[EncodedExample]) -> float:
        return float(sum(example.sequence(0).supervised_tokens for example in examples))

    def attach(self, injection: Injection, base: Base, seed: int, notify: Notify) -> Injection:
        if self.config.teacher is None:
            self._teacher = Teacher(base.model, find_head(base.model), injection)
            return injection
        notify(f"Loading the teacher {self.config.teacher} ...")
        dtype = "float32" if base.dtype == torch.float32 else "auto"
        other = load_base(self.config.teacher, dtype, base.model.device)
        rows = [model.config.get_text_config().vocab_size for model in (other.model, base.model)]
        if other.tokenizer.get_vocab() != base.tokenizer.get_vocab() or rows[0] != rows[1]:
            message = (
                f"{self.config.teacher} has another vocabulary than {base.source.ref} ({rows[0]} and {rows[1]} rows)."
            )
            raise ConfigError(Problem("loss.teacher", message, "name a model of the same family"))
        self._teacher = Teacher(other.model, find_head(other.model), None)
        return injection

    def compute(self, model: PreTrainedModel, head: Head, batches: Sequence[Batch]) -> LossSum:
        layout, examples = batches[0].layout, batches[0].examples
        student = batches[0]
        if self.prompted and layout.shared:
            student = build_batch([example.sequence(0) for example in examples], layout).to(model.device)
        number = 1 if self.prompted else 0
        taught = [example.sequence(number) for example in examples]
        teacher_logits_of, teacher_hidden_ND = self._taught(taught, layout, model.device)
        settings = (self.config.beta, self.config.temperature)
        if head.whole_model:
            logits_NV = self._whole_logits(model, student)
            each_N = chunked_divergence_autograd(
                logits_NV, teacher_hidden_ND, lambda logits: logits, teacher_logits_of, *settings, logits_NV.shape[1]
            )
            return LossSum(each_N.double().sum().float())
        hidden_ND = predicting_states(head.decoder, student)
        if has_plain_head(head):
            assert isinstance(head.linear, nn.Linear)
            parts = (head.linear, head.transform, teacher_logits_of)
            each_N = chunked_divergence(hidden_ND, teacher_hidden_ND, *parts, *settings)
        else:
            vocabulary = model.config.get_text_config().vocab_size
            logits_of = lambda hidden_CD: head.transform(head.linear(hidden_CD))  # noqa: E731
            each_N = chunked_divergence_autograd(
                hidden_ND, teacher_hidden_ND, logits_of, teacher_logits_of, *settings, vocabulary
            )
        return LossSum(each_N.double().sum().float())

    def formula(self, logits: Sequence[torch.Tensor], example: EncodedExample) -> torch.Tensor:
        teacher = self._bound
        taught = example.sequence(1 if self.prompted else 0)
        ids = torch.from_numpy(taught.input_ids).long().to(logits[0].device)[None]
        with teacher.active():
            theirs = teacher.model(input_ids=ids, use_cache=False).logits[0].to(logits[0].dtype)
        temperature = self.config.temperature
        student, other = (
            (one[:-1][torch.from_numpy(sequence.supervised[1:]).to(one.device)] / temperature).log_softmax(-1)
            for one, sequence in ((logits[0], example.sequence(0)), (theirs, taught))
        )
        return divergence(student, other, self.config.beta).sum()

    @property
    def _bound(self) -> Teacher:
        assert self._teacher is not None, "`attach` comes first"
        return self._teacher

    def _taught(
        self, examples: Sequence[EncodedExample], layout: Layout, device: torch.device
    ) -> tuple[TeacherLogits, torch.Tensor]:
        """How to compute the teacher's logits, and the hidden states (N, width) to compute them from."""
        teacher = self._bound
        layout = layout if teacher.injection else _ALONE
        groups = [examples] if layout.shared else [[example] for example in examples]
        batches = [build_batch(group, layout).to(device) for group in groups]
        with teacher.active():
            if teacher.head.whole_model:
                hidden_ND = torch.cat([self._whole_logits(teacher.model, batch) for batch in batches])
            else:
                hidden_ND = torch.cat([predicting_states(teacher.head.decoder, batch) for batch in batches])
        return partial(_teacher_logits, teacher), hidden_ND

    @staticmethod
    def _whole_logits(model: PreTrainedModel, batch: Batch) -> torch.Tensor:
        return token_rows(batch, model(**model_inputs(batch)).logits).index_select(0, batch.predicting)


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
    try:
        turns = tuple(Message(str(turn["role"]), str(turn["content"])) for turn in json.loads(text))
    except (ValueError, TypeError, KeyError) as error:
        fix = 'write [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]'
        raise ConfigError(Problem(FIELD, f"{path} is not a list of turns ({error!r}).", fix)) from None
    wrong = next((turn.role for turn in turns if turn.role not in ROLES), None)
    if wrong is not None or not turns:
        message = f"{path} has the role {wrong!r}." if turns else f"{path} has no turns."
        raise ConfigError(Problem(FIELD, message, f"use {', '.join(ROLES)}"))
    return turns


def _sequences(turns: tuple[Message, ...]) -> Sequences:
    if not turns:
        kinds, key = frozenset({Kind.CONVERSATION, Kind.TEXT}), {"distillation": 1}
        return Sequences(kinds, key=key, learns="answers and plain text", whole_rows=True)
    said = json.dumps([[turn.role, turn.content] for turn in turns])
    key = {"distillation": hashlib.sha256(said.encode()).hexdigest()}
    of = partial(_with_and_without, turns=turns)
    kinds = frozenset({Kind.CONVERSATION})
    return Sequences(kinds, of, key=key, learns="conversations", whole_rows=True, unfit=_unlike_answers)


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


def _teacher_logits(teacher: Teacher, hidden_CD: torch.Tensor) -> torch.Tensor:
    if teacher.head.whole_model:
        return hidden_CD  # they are logits
    with teacher.active():
        return teacher.head.transform(teacher.head.linear(hidden_CD))
