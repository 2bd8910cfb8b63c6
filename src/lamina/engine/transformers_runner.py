"""The runner for what the kernels do not run: a model's own forward, with transformers' own cache.

Sequences that join in the same step form a group: one batch, padded on the left, with one cache, until the last of them
is over. Groups run one after another, so a new request need not wait for an old one to end. A row that is over leaves
its group at once. Slower than the kernels, and in a padded batch a row's sums may run in another order than alone.

Not every model ignores padding. The first time that rows would be padded, it is tried once whether this one does; one
that does not gets groups of prompts of the same length alone.
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
from lamina.models.vocabulary import embedding_rows

# Tokens of padded prompts that go through a model at once: bounds its activations.
_TOKENS_AT_ONCE = 8192

# Two texts, each by its first token and its length, and how many tokens more, with which it is tried whether a model
# ignores padding.
_TRIED = ((11, 3), (5, 24))
_STEPS_TRIED = 2

# How far apart its logits may be then, as a share of the largest.
_ROUNDING = {torch.float32: 1e-4, torch.float16: 0.01, torch.bfloat16: 0.05}

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
        self._pads: bool | None = None

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
    def run(self, chunks: Many[Chunk]) -> list[torch.Tensor | Exception]:
        """As the contract says. A chunk is a whole prompt, or one token."""
        of = {id(chunk.sequence): chunk for chunk in chunks}
        found: dict[int, torch.Tensor | Exception] = {}
        for group in list(self._groups):
            asked = [of.pop(id(sequence)) for sequence in group.living]
            try:
                found |= self._next(group)
            except Exception:
                # Its cache may hold the token in some layers and not in others, so it is of no more use.
                self._groups.remove(group)
                group.cache = None
            else:
                continue
            found |= self._begin(asked)
        for new in self._alike(list(of.values())):
            found |= self._begin(new)
        return [found[id(chunk.sequence)] for chunk in chunks]

    def _begin(self, chunks: list[Chunk]) -> dict[int, torch.Tensor | Exception]:
        """Runs a new group: in parts, if it does not go as a whole, until each error is of one sequence alone."""
        try:
            return {**self._first(chunks)}
        except Exception as error:
            if len(chunks) == 1:
                return {id(chunks[0].sequence): error}
        half = len(chunks) // 2
        return self._begin(chunks[:half]) | self._begin(chunks[half:])

    def _first(self, chunks: list[Chunk]) -> dict[int, torch.Tensor]:
        """Runs the prompts of a new group."""
        ids, group = self._padded(
            chunks[0].sequence.voice.weights,
            [chunk.sequence.tokens for chunk in chunks],
            [chunk.sequence for chunk in chunks],
        )
        longest = ids.shape[1]
        wanted = [[place - longest for place in _places(chunk, longest)] for chunk in chunks]
        logits = _forward(group, ids, all(each == [-1] or not each for each in wanted))
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
        logits = _forward(group, ids, True)
        rows = enumerate(group.sequences)
        return {id(sequence): logits[row, -1:].float() for row, sequence in rows if sequence is not None}

    def _padded(self, way: Way, rows: Many[list[int]], sequences: Many[Sequence | None]) -> tuple[torch.Tensor, _Group]:
        """A new group, and its tokens, padded on the left."""
        longest, device = max(map(len, rows)), way.model.device
        ids = torch.tensor([[self._filler] * (longest - len(row)) + row for row in rows], device=device)
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=device)
        return ids, _Group(way, list(sequences), mask)

    def _alike(self, chunks: list[Chunk]) -> list[list[Chunk]]:
        """Groups prompts by way, the short ones apart from the long ones, with a bound on a group's padded tokens."""
        by_way: dict[int, list[Chunk]] = {}
        for chunk in chunks:
            by_way.setdefault(id(chunk.sequence.voice.weights), []).append(chunk)
        groups: list[list[Chunk]] = []
        for same in by_way.values():
            same.sort(key=lambda chunk: len(chunk.sequence.tokens))
            group: list[Chunk] = []
            for chunk in same:
                length = len(chunk.sequence.tokens)
                is_full = (len(group) + 1) * length > _TOKENS_AT_ONCE
                if group and (is_full or (length > len(group[0].sequence.tokens) and not self._may_pad(chunk))):
                    groups.append(group)
                    group = []
                group.append(chunk)
            groups.append(group)
        return groups

    def _may_pad(self, chunk: Chunk) -> bool:
        """Whether the model ignores padding; tried at the first call, with the model of a chunk."""
        if self._pads is None:
            try:
                self._pads = self._ignores_padding(chunk.sequence.voice.weights)
            except Exception:  # of the model's own code, which may refuse a batch in any way
                self._pads = False
        return self._pads

    def _ignores_padding(self, way: Way) -> bool:
        """Whether a short text beside a longer one gets the logits that it gets alone, but for rounding."""
        rows = embedding_rows(way.model) or way.model.config.get_text_config().vocab_size
        short, long = ([(7 * place + begin) % rows for place in range(length)] for begin, length in _TRIED)
        alone, beside = self._tried(way, [short]), self._tried(way, [short, long])
        return bool((beside - alone).abs().max() <= _ROUNDING.get(way.model.dtype, 1e-4) * alone.abs().max())

    def _tried(self, way: Way, rows: Many[list[int]]) -> torch.Tensor:
        """Logits of all tokens of the first row, and of some more, after which the cache is read."""
        ids, group = self._padded(way, rows, [None] * len(rows))
        found = [_forward(group, ids, False)[0, -len(rows[0]) :]]
        for place in range(0 if group.cache is None else _STEPS_TRIED):
            group.mask = torch.cat([group.mask, group.mask.new_ones(len(rows), 1)], 1)
            found.append(_forward(group, ids[:1, -1 - place : ids.shape[1] - place].repeat(len(rows), 1), True)[0, -1:])
        return torch.cat(found).float()


def _forward(group: _Group, ids: torch.Tensor, last_only: bool) -> torch.Tensor:
    """Runs tokens of a group."""
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
