"""Records an adapter's probes: a few prompts, what it answers, and the logits that it and the bare base give there.

The prompts are lamina's own, so an adapter carries none of its training data. Where it trained a few rows of the
embedding, one more probe holds those tokens, which no prompt may have.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from transformers import PreTrainedModel

from lamina.adapters.logits import bare_logits, model_logits
from lamina.adapters.probes import LayerRecord, Probe
from lamina.chat.message import Message
from lamina.chat.template import ChatTemplate
from lamina.compute.ops.adapter import AdapterModule
from lamina.engine.asking import stop_tokens
from lamina.engine.generator import ADAPTER, Generator, Request
from lamina.engine.local import LocalGenerator
from lamina.engine.sampling import Sampling
from lamina.methods.shared.base import Injection
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

# The decoder layer of a module: its name up to the first number.
_LAYER = re.compile(r"(?:[^.]+\.)*?\d+(?=\.)")

# Of a logit in the record of layers, which is for dtypes whose rounding is larger than what is cut off.
_DIGITS = 4


@torch.no_grad()
def record_probes(
    injection: Injection,
    template: ChatTemplate,
    prompts: Sequence[str] = PROMPTS,
    generator: Generator | None = None,
    in_lockstep: bool = False,
    by_layer: bool = False,
) -> list[Probe]:
    """Records what the adapter, and the bare base, say to each prompt.

    Args:
        injection: The adapter, on a model in evaluation mode.
        template: What it was trained with.
        prompts: User turns.
        generator: Answers for `ADAPTER`; by default the model itself.
        in_lockstep: Whether several processes share the model's weights, and all of them must run it as often.
        by_layer: Also record the adapter with each layer left out, which runs the model once more for each.
    """
    rendered = [_prompt_ids(injection.model, template, prompt) for prompt in prompts]
    rows = _trained_rows(injection, {token for ids in rendered for token in ids})
    asked = [*zip(prompts, rendered, strict=True), *([("", rendered[0][:1] + rows + rendered[0][1:])] if rows else [])]
    if in_lockstep:
        answers = [_greedy_answer(injection.model, template, ids) for _, ids in asked]
    else:
        generator = generator or LocalGenerator(injection.model, template, injection)
        sampling = Sampling(max_tokens=ANSWER_TOKENS)
        # All at once: the weights of a quantized base are dequantized anew for every token.
        pieces = generator.generate([Request(token_ids=ids, adapter=ADAPTER, sampling=sampling) for _, ids in asked])
        answers = [list(piece.token_ids) for piece in pieces]
    probes = [_record(injection, prompt, ids, answer) for (prompt, ids), answer in zip(asked, answers, strict=True)]
    return _with_layers_left_out(injection, probes) if by_layer else probes


def _greedy_answer(model: PreTrainedModel, template: ChatTemplate, ids: Sequence[int]) -> list[int]:
    """An answer by the model's own code, which runs the same number of times whatever the answer is."""
    logits, answer = model_logits(model), list[int]()
    for _ in range(ANSWER_TOKENS):
        answer.append(int(logits([*ids, *answer], [len(ids) + len(answer) - 1]).argmax()))
    stops = stop_tokens(model, template)
    return answer[: next((place for place, token in enumerate(answer, 1) if token in stops), None)]


def _prompt_ids(model: PreTrainedModel, template: ChatTemplate, prompt: str) -> list[int]:
    """A user's turn; its words alone where the base has no rows for what the template writes, as with plain text."""
    rows, tokenizer = embedding_rows(model), template.tokenizer
    text = template.render([Message("user", prompt)], add_generation_prompt=True)
    ids: list[int] = tokenizer(text, add_special_tokens=False).input_ids
    return ids if rows is None or max(ids) < rows else tokenizer(prompt, add_special_tokens=False).input_ids


def _record(injection: Injection, prompt: str, ids: list[int], answer: list[int]) -> Probe:
    probe = Probe(prompt, ids + answer, list(range(len(ids) - 1, len(ids) + len(answer) - 1)), [], [], [])
    adapter = model_logits(injection.model)(probe.input_ids, probe.positions)
    base = bare_logits(injection)(probe.input_ids, probe.positions)
    chosen = adapter.topk(min(TOP, adapter.shape[-1]), dim=-1).indices
    if torch.equal(adapter.gather(1, chosen), base.gather(1, chosen)):  # rows of the head that are no likely answers
        change = (adapter - base).abs().scatter(1, chosen[:, :2], -1.0)
        chosen = torch.cat([chosen[:, :2], change.topk(chosen.shape[1] - 2, dim=-1).indices], dim=1)
    logits = (adapter.gather(1, chosen), base.gather(1, chosen))
    return replace(probe, token_ids=chosen.tolist(), adapter_logits=logits[0].tolist(), base_logits=logits[1].tolist())


def _with_layers_left_out(injection: Injection, probes: Sequence[Probe]) -> list[Probe]:
    """Adds what the adapter gives when one decoder layer has no part of it, so that a missing layer can be told."""
    parts = defaultdict[str, list[AdapterModule]](list)
    for name, module in injection.layers.items():
        layer = _LAYER.match(name)
        if layer:
            parts[layer.group()].append(module)
    if len(parts) < 2:
        return list(probes)
    # Cut to one length, they are one batch without padding, which any model takes.
    length = min(len(probe.input_ids) for probe in probes)
    ids = torch.tensor([probe.input_ids[:length] for probe in probes], device=injection.model.device)

    def logits() -> torch.Tensor:
        return injection.model(input_ids=ids, use_cache=False).logits

    given = logits()
    chosen = given.topk(min(TOP, given.shape[-1]), dim=-1).indices

    def taken(given: torch.Tensor) -> list[list[list[float]]]:
        found = given.gather(2, chosen).float().tolist()
        return [[[float(f"{value:.{_DIGITS}g}") for value in values] for values in rows] for rows in found]

    whole, without = taken(given), dict[str, list[list[list[float]]]]()
    for layer, modules in parts.items():
        states = [module.enabled for module in modules]
        try:
            for module in modules:
                module.enabled = False
            without[layer] = taken(logits())
        finally:
            for module, state in zip(modules, states, strict=True):
                module.enabled = state
    places, tokens = list(range(length)), chosen.tolist()
    return [
        replace(probe, layers=LayerRecord(places, tokens[n], whole[n], {name: own[n] for name, own in without.items()}))
        for n, probe in enumerate(probes)
    ]


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
