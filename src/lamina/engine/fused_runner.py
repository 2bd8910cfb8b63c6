"""The fast runner: all rows of a step, with whatever adapters, in one call of the kernels."""

from __future__ import annotations

from collections.abc import Sequence as Many

import numpy as np
import torch
from torch.func import functional_call
from transformers import PreTrainedModel

from lamina.compute.decoding import AdapterForms, Decoder
from lamina.compute.decoding.decoder import Rows
from lamina.compute.decoding.layouts import BLOCK_TOKENS
from lamina.engine.blocks import Blocks
from lamina.engine.runner import Chunk
from lamina.engine.sequence import Sequence


class FusedRunner:
    """Runs a `Decoder`.

    Attributes:
        decoder: The decoder, with its cache.
        blocks: Who holds which block.
    """

    block_size = BLOCK_TOKENS
    # With answers under way a step takes few tokens of prompts, so that none of them waits much longer than for a step
    # of answers alone. The kernels are as fast for few rows as for many.
    prompt_chunk = (128, 1024)

    def __init__(self, model: PreTrainedModel, decoder: Decoder, cache_bytes: int, most_running: int = 128) -> None:
        """
        Args:
            model: The bare model that the decoder runs.
            decoder: Built from it.
            cache_bytes: Memory for keys and values.
            most_running: Sequences at once.
        """
        self.decoder = decoder
        self.most_running = most_running
        self._embedding = model.get_input_embeddings()
        count = max(2, cache_bytes // decoder.block_bytes())
        decoder.allocate(count)
        self.blocks = Blocks(count)

    def begin(self, sequence: Sequence) -> None:
        """Puts a prefix of keys and values into the first blocks, unless they were found there."""
        forms: AdapterForms | None = sequence.voice.weights
        if forms is None or forms.prefix is None or sequence.computed >= forms.virtual_tokens:
            return
        self.decoder.store(sequence.blocks, forms.prefix)
        sequence.computed = forms.virtual_tokens

    def forget(self, sequence: Sequence) -> None:
        """Nothing is kept beside the blocks."""

    @torch.no_grad()
    def run(self, chunks: Many[Chunk]) -> list[torch.Tensor]:
        """As the contract says."""
        order = sorted(range(len(chunks)), key=lambda number: id(chunks[number].sequence.voice.weights))
        ordered = [chunks[number] for number in order]
        counts = [chunk.count for chunk in ordered]
        starts = np.cumsum([0, *counts])
        positions = np.concatenate([np.arange(chunk.begin, chunk.end, dtype=np.int64) for chunk in ordered])
        tables = np.repeat(np.arange(len(ordered), dtype=np.int64), counts)
        most = max(len(chunk.sequence.blocks) for chunk in ordered)
        blocks = np.zeros((len(ordered), most), dtype=np.int32)
        for row, chunk in zip(blocks, ordered, strict=True):
            row[: len(chunk.sequence.blocks)] = chunk.sequence.blocks
        wanted = [
            [place - chunk.begin + start for place in chunk.wanted()]
            for chunk, start in zip(ordered, starts, strict=False)
        ]
        segments = _segments(ordered, starts.tolist())
        rows = Rows(
            self._embed(ordered, segments),
            positions,
            tables,
            blocks,
            segments,
            np.array([place for each in wanted for place in each], dtype=np.int64),
        )
        logits = self.decoder.step(rows)
        results: list[torch.Tensor] = [logits] * len(chunks)
        for number, part in zip(order, logits.split([len(each) for each in wanted]), strict=True):
            results[number] = part
        return results

    def _embed(self, chunks: Many[Chunk], segments: list[tuple[int, int, AdapterForms | None]]) -> torch.Tensor:
        ids = [_tokens(chunk) for chunk in chunks]
        x = self.decoder.embed(torch.tensor([token for each in ids for token in each], dtype=torch.long)).contiguous()
        for begin, end, forms in segments:
            if forms is not None and forms.embedding is not None:
                own = torch.tensor([token for each in ids for token in each][begin:end])
                x[begin:end] = functional_call(self._embedding, {"weight": forms.embedding}, (own,)).to(x.dtype)
        row = 0
        for chunk in chunks:
            forms = chunk.sequence.voice.weights
            if forms is not None and forms.soft_prompt is not None and chunk.begin < forms.virtual_tokens:
                end = min(chunk.end, forms.virtual_tokens)
                x[row : row + end - chunk.begin] = forms.soft_prompt[chunk.begin : end]
            row += chunk.count
        return x


def _tokens(chunk: Chunk) -> list[int]:
    """The tokens of a chunk; 0 for virtual ones."""
    virtual = chunk.sequence.voice.virtual_tokens
    if chunk.begin >= virtual:
        return chunk.sequence.tokens[chunk.begin - virtual : chunk.end - virtual]
    return [0] * (min(virtual, chunk.end) - chunk.begin) + chunk.sequence.tokens[: max(0, chunk.end - virtual)]


def _segments(chunks: Many[Chunk], starts: list[int]) -> list[tuple[int, int, AdapterForms | None]]:
    segments: list[tuple[int, int, AdapterForms | None]] = []
    for chunk, begin in zip(chunks, starts, strict=False):
        forms = chunk.sequence.voice.weights
        if segments and segments[-1][2] is forms:
            segments[-1] = (segments[-1][0], begin + chunk.count, forms)
        else:
            segments.append((begin, begin + chunk.count, forms))
    return segments
