"""The runner for what the kernels do not run: a model's own forward, with transformers' own cache.

Sequences that join in the same step form a group: one batch, padded on the left, with one cache, until the last of them
is over. Groups run one after another, so a new request need not wait for an old one to end. A row that is over leaves
its
group at once. Slower than the kernels, and in a padded batch a row's sums may run in another order than alone.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable
from collections.abc import Sequence as Many
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from lamina.engine.blocks import Blocks
from lamina.engine.runner import Chunk
from lamina.engine.sequence import Sequence

# Tokens of padded prompts that go through a model at once: bounds its activations.
_TOKENS_AT_ONCE = 8192

# transformers' caches that let go of rows; those of recurrent models, and models' own, do not.
_SELECTABLE = {"DynamicCache", "DynamicLayer", "DynamicSlidingWindowLayer"}


@dataclass(frozen=True)
class Way:
    """A model as it is for one adapter, or bare.

    Attributes:
        model: In evaluation mode.
        switched: What the model is inside of while it runs.
    """

    model: PreTrainedModel
    switched: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext


@dataclass
class _Group:
    """Sequences that are computed together.

    Attributes:
        way: Whose numbers they get.
        sequences: In the order of the rows; None for a row that is over and could not be taken out.
        mask: (rows, tokens so far), 0 for padding.
        cache: The model's own; None before its first run, or where it keeps none.
    """

    way: Way
    sequences: list[Sequence | None]
    mask: torch.Tensor
    cache: Any = None

    @property
    def living(self) -> list[Sequence]:
        """Those that are not over."""
        return [sequence for sequence in self.sequences if sequence is not None]


class TransformersRunner:
    """Runs models by their own code. A sequence's `Voice.weights` is its `Way`."""

    blocks: Blocks | None = None
    block_size: int = 1

    def __init__(self, filler: int = 0, most_running: int = 32) -> None:
        """
        Args:
            filler: A token that fills up short prompts, and is not looked at.
            most_running: Sequences at once.
        """
        self.most_running = most_running
        self.prompt_chunk = (_TOKENS_AT_ONCE, _TOKENS_AT_ONCE)
        self._filler = filler
        self._groups: list[_Group] = []

    def begin(self, sequence: Sequence) -> None:
        """Nothing is to be prepared: the model puts its virtual tokens in by itself."""

    def forget(self, sequence: Sequence) -> None:
        """Takes a sequence's row out of its group."""
        for group in self._groups:
            if sequence in group.sequences:
                group.sequences = [None if each is sequence else each for each in group.sequences]
                _take_out(group)
        self._groups = [group for group in self._groups if group.living]

    @torch.no_grad()
    def run(self, chunks: Many[Chunk]) -> list[torch.Tensor]:
        """As the contract says. A chunk is a whole prompt, or one token."""
        of = {id(chunk.sequence): chunk for chunk in chunks}
        found: dict[int, torch.Tensor] = {}
        old = list(self._groups)
        joined = {id(sequence) for group in old for sequence in group.living}
        for group in old:
            if all(id(sequence) in of for sequence in group.living):
                found |= self._next(group)
        for new in _alike([chunk for chunk in chunks if id(chunk.sequence) not in joined]):
            found |= self._first(new)
        return [found[id(chunk.sequence)] for chunk in chunks]

    def _first(self, chunks: list[Chunk]) -> dict[int, torch.Tensor]:
        """Runs the prompts of a new group."""
        way: Way = chunks[0].sequence.voice.weights
        device = way.model.device
        ids = [chunk.sequence.tokens for chunk in chunks]
        longest = max(map(len, ids))
        padded = torch.tensor([[self._filler] * (longest - len(each)) + each for each in ids], device=device)
        mask = torch.tensor([[0] * (longest - len(each)) + [1] * len(each) for each in ids], device=device)
        wanted = [[place - longest for place in _places(chunk, longest)] for chunk in chunks]
        last_only = all(each == [-1] or not each for each in wanted)
        group = _Group(way, [chunk.sequence for chunk in chunks], mask)
        try:
            logits = self._forward(group, padded, last_only)
        except torch.OutOfMemoryError:
            if len(chunks) == 1:
                raise
            half = len(chunks) // 2
            return self._first(chunks[:half]) | self._first(chunks[half:])
        self._groups.append(group)
        return {
            id(chunk.sequence): logits[row, places].float()
            for row, (chunk, places) in enumerate(zip(chunks, wanted, strict=True))
        }

    def _next(self, group: _Group) -> dict[int, torch.Tensor]:
        """Runs one more token of a group."""
        tokens = [[self._filler] if each is None else each.tokens for each in group.sequences]
        ids = torch.tensor([own[-1:] for own in tokens], device=group.mask.device)
        group.mask = torch.cat([group.mask, group.mask.new_ones(len(ids), 1)], 1)
        if group.cache is None:
            longest = group.mask.shape[1]
            every = [[self._filler] * (longest - len(own)) + own for own in tokens]
            ids = torch.tensor(every, device=group.mask.device)
        logits = self._forward(group, ids, True)
        rows = enumerate(group.sequences)
        return {id(sequence): logits[row, -1:].float() for row, sequence in rows if sequence is not None}

    def _forward(self, group: _Group, ids: torch.Tensor, last_only: bool) -> torch.Tensor:
        model = group.way.model
        takes = inspect.signature(model.forward).parameters
        keeps = _keeps_cache(model)
        call: dict[str, Any] = {"input_ids": ids}
        if "use_cache" in takes:
            call["use_cache"] = keeps
        if len(group.sequences) > 1 or group.mask.shape[1] > ids.shape[1]:
            call["attention_mask"] = group.mask
        if "position_ids" in takes:
            places = group.mask.long().cumsum(1) - 1
            call["position_ids"] = places.clamp_min(0)[:, -ids.shape[1] :]
        if group.cache is not None:
            call["past_key_values"] = group.cache
        if last_only and "logits_to_keep" in takes:
            call["logits_to_keep"] = 1
        with group.way.switched(), _contiguous_head_input(model):
            output = model(**call)
        group.cache = output.get("past_key_values") if keeps else None
        return output.logits


def _take_out(group: _Group) -> None:
    """Takes the rows that are over out of a group, if its cache can let go of them."""
    rows = [row for row, each in enumerate(group.sequences) if each is not None]
    if not rows:
        return
    kept = torch.tensor(rows, device=group.mask.device)
    if group.cache is not None:
        kinds = {type(part).__name__ for part in (group.cache, *getattr(group.cache, "layers", ()))}
        if not kinds <= _SELECTABLE:
            return  # they are computed with the others until the group is over
        group.cache.batch_select_indices(kept)
    group.mask = group.mask[kept]
    group.sequences = [group.sequences[row] for row in rows]


def _alike(chunks: list[Chunk]) -> list[list[Chunk]]:
    """Groups prompts by way; the padded tokens of a group are bounded, and short and long prompts are kept apart."""
    by_way: dict[int, list[Chunk]] = {}
    for chunk in chunks:
        by_way.setdefault(id(chunk.sequence.voice.weights), []).append(chunk)
    groups: list[list[Chunk]] = []
    for same in by_way.values():
        same.sort(key=lambda chunk: len(chunk.sequence.tokens))
        group: list[Chunk] = []
        for chunk in same:
            if group and (len(group) + 1) * len(chunk.sequence.tokens) > _TOKENS_AT_ONCE:
                groups.append(group)
                group = []
            group.append(chunk)
        groups.append(group)
    return groups


def _places(chunk: Chunk, longest: int) -> list[int]:
    """Where a chunk's wanted positions are in its padded row."""
    padding = longest - len(chunk.sequence.tokens)
    virtual = chunk.sequence.voice.virtual_tokens
    return [padding + place - virtual for place in chunk.wanted() if place >= virtual]


def _keeps_cache(model: PreTrainedModel) -> bool:
    """Whether a model takes transformers' cache; one that does not is run over the whole text anew."""
    takes = "past_key_values" in inspect.signature(model.forward).parameters
    return takes and not getattr(model, "_is_stateful", False)


@contextlib.contextmanager
def _contiguous_head_input(model: PreTrainedModel) -> Any:
    """Lets the head see a contiguous input inside the block.

    Models hand it the last position of each sequence as a strided view, and torch's linear on such a batch copies the
    head's weight once for each sequence: seconds, and gigabytes.
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
