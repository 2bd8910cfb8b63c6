"""Probes: a few prompts with the logits that the adapter gave at the end of training, and that the bare base gave.

Replaying them on any model that claims to carry the adapter (loaded, merged, exported) shows whether it does
(`certificate.py`). The prompts are lamina's own, so an adapter carries none of its training data. Where it trained a
few rows of the embedding, one more probe holds those tokens, which no prompt may have.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import torch
from transformers import PreTrainedModel

from lamina.adapters.greedy import greedy_answers
from lamina.chat.message import Message
from lamina.chat.template import ChatTemplate
from lamina.errors import AdapterError, NewerVersionError
from lamina.methods.shared.base import Injection
from lamina.models.stops import with_stop_ids
from lamina.models.vocabulary import embedding_rows

PROMPTS = (
    "Write one sentence about the sea.",
    "My order has not arrived yet. What should I do?",
    "What is 17 plus 25?",
    "List three things to pack for a weekend in the mountains.",
)
ANSWER_TOKENS = 12
TOP = 8

# Trained rows of the embedding that the probe for them holds.
_MOST_ROWS = 8

# Rows of an embedding that are compared at once.
_ROWS_AT_ONCE = 16_384


@dataclass(frozen=True)
class Probe:
    """One prompt and what the model said.

    Attributes:
        prompt: The user's turn; empty for a probe that is no rendered prompt.
        input_ids: Rendered prompt and the adapter's own greedy answer.
        positions: Where in `input_ids` logits were taken (P of them).
        token_ids: (P, TOP) ids of the adapter's highest logits, in falling order. Where the adapter changes none of
            them, after the first two those that it changes the most.
        adapter_logits: (P, TOP) the adapter's logits of those ids.
        base_logits: (P, TOP) the bare base's logits of the same ids.
    """

    prompt: str
    input_ids: list[int]
    positions: list[int]
    token_ids: list[list[int]]
    adapter_logits: list[list[float]]
    base_logits: list[list[float]]

    def as_json(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Any) -> Probe:
        """Reads what `as_json` gave.

        Raises:
            AdapterError: A field is missing.
            NewerVersionError: A field is not known here.
        """
        unknown = sorted(value.keys() - {field.name for field in fields(cls)})
        if unknown:
            raise NewerVersionError("lamina.json", "", f"its probes have {', '.join(unknown)}, not known here")
        try:
            return cls(**value)
        except TypeError as error:
            raise AdapterError(
                f"lamina.json: a probe is not readable ({error}). Fix: copy the adapter again."
            ) from None


@torch.no_grad()
def record_probes(injection: Injection, template: ChatTemplate, prompts: Sequence[str] = PROMPTS) -> list[Probe]:
    """Records what the adapter, and the bare base, say to each prompt. The model must be in evaluation mode."""
    model = injection.model
    rendered = [_prompt_ids(model, template, prompt) for prompt in prompts]
    rows = _trained_rows(injection, {token for ids in rendered for token in ids})
    asked = [*zip(prompts, rendered, strict=True), *([("", rendered[0][:1] + rows + rendered[0][1:])] if rows else [])]
    own: Any = model.generation_config
    stops = with_stop_ids(own.eos_token_id if own else None, template)
    answers = greedy_answers(model, [ids for _, ids in asked], ANSWER_TOKENS, stops)
    return [_record(injection, prompt, ids, answer) for (prompt, ids), answer in zip(asked, answers, strict=True)]


def record_again(injection: Injection, probes: Sequence[Probe]) -> list[Probe]:
    """The same probes with the logits that adapter and base give as they are held now, in another dtype perhaps."""
    taken = []
    for probe in probes:
        ids = torch.tensor(probe.token_ids, device=injection.model.device)
        adapter = probe_logits(injection.model, probe).gather(1, ids)
        with injection.disabled():
            base = probe_logits(injection.model, probe).gather(1, ids)
        taken.append(replace(probe, adapter_logits=adapter.tolist(), base_logits=base.tolist()))
    return taken


def _prompt_ids(model: PreTrainedModel, template: ChatTemplate, prompt: str) -> list[int]:
    """A user's turn; its words alone where the base has no rows for what the template writes, as with plain text."""
    rows, tokenizer = embedding_rows(model), template.tokenizer
    text = template.render([Message("user", prompt)], add_generation_prompt=True)
    ids: list[int] = tokenizer(text, add_special_tokens=False).input_ids
    return ids if rows is None or max(ids) < rows else tokenizer(prompt, add_special_tokens=False).input_ids


@torch.no_grad()
def probe_logits(model: PreTrainedModel, probe: Probe) -> torch.Tensor:
    """float32 logits (positions, vocabulary) of a probe."""
    logits = model(input_ids=torch.tensor([probe.input_ids], device=model.device), use_cache=False).logits[0]
    return logits[torch.tensor(probe.positions, device=model.device)].float()


def _record(injection: Injection, prompt: str, ids: list[int], answer: list[int]) -> Probe:
    probe = Probe(prompt, ids + answer, list(range(len(ids) - 1, len(ids) + len(answer) - 1)), [], [], [])
    adapter = probe_logits(injection.model, probe)
    with injection.disabled():
        base = probe_logits(injection.model, probe)
    chosen = adapter.topk(min(TOP, adapter.shape[-1]), dim=-1).indices
    if torch.equal(adapter.gather(1, chosen), base.gather(1, chosen)):  # rows of the head that are no likely answers
        change = (adapter - base).abs().scatter(1, chosen[:, :2], -1.0)
        chosen = torch.cat([chosen[:, :2], change.topk(chosen.shape[1] - 2, dim=-1).indices], dim=1)
    logits = (adapter.gather(1, chosen), base.gather(1, chosen))
    return replace(probe, token_ids=chosen.tolist(), adapter_logits=logits[0].tolist(), base_logits=logits[1].tolist())


def _trained_rows(injection: Injection, seen: set[int]) -> list[int]:
    """Tokens not `seen` whose embeddings the adapter changes the most, if it changes those of a few tokens alone."""
    embedding: Any = injection.model.get_input_embeddings()
    if not any(injection.model.get_submodule(name) is embedding for name in injection.layers if name):
        return []
    count = int(embedding.weight.shape[0])
    device = injection.model.device
    changes = []
    for first in range(0, count, _ROWS_AT_ONCE):
        ids = torch.arange(first, min(first + _ROWS_AT_ONCE, count), device=device)
        rows = embedding(ids).float()
        with injection.disabled():
            changes.append((rows - embedding(ids).float()).norm(dim=-1))
    change = torch.cat(changes)
    trained = int((change > 0).sum())
    order = change.argsort(descending=True)[:trained].tolist()
    return [token for token in order if token not in seen][:_MOST_ROWS] if trained <= count // 2 else []
