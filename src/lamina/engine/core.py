"""`Core`: runs the steps of one or more runners, and hands out what they answer. For one thread."""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass

import torch

from lamina.engine.runner import Chunk, Runner
from lamina.engine.sampler import sample, token_logprobs
from lamina.engine.scheduler import Scheduler
from lamina.engine.sequence import Sequence
from lamina.errors import DataError


@dataclass
class Counters:
    """What was done since the start."""

    steps: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    answer_tokens: int = 0
    preemptions: int = 0


class Core:
    """Runs sequences to their end.

    Attributes:
        counters: What was done.
    """

    def __init__(self, runners: Many[Runner], shares_prefixes: bool = True) -> None:
        """
        Args:
            runners: One or more, each for the sequences that it is given.
            shares_prefixes: Whether a beginning that was computed before is taken from the cache.
        """
        self._lanes = {id(runner): (runner, Scheduler(runner, shares_prefixes)) for runner in runners}
        self.counters = Counters()

    def schedulers(self) -> list[Scheduler]:
        """The scheduler of each runner."""
        return [scheduler for _, scheduler in self._lanes.values()]

    def add(self, sequence: Sequence, runner: Runner) -> None:
        """Lets a sequence join."""
        self._lanes[id(runner)][1].add(sequence)

    def add_runner(self, runner: Runner) -> None:
        """Takes one more runner."""
        self._lanes.setdefault(id(runner), (runner, Scheduler(runner)))

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to compute."""
        return all(scheduler.is_idle for scheduler in self.schedulers())

    def step(self) -> bool:
        """Computes one step of each runner that has work.

        Returns:
            Whether there was any.
        """
        worked = False
        for runner, scheduler in list(self._lanes.values()):
            chunks = scheduler.plan()
            if chunks:
                worked = True
                self.counters.steps += 1
                self._run(runner, scheduler, chunks)
        self.counters.preemptions = sum(scheduler.preemptions for scheduler in self.schedulers())
        return worked

    def drop_all(self, error: BaseException) -> None:
        """Ends every sequence with an error."""
        begun = [(each, own) for own in self.schedulers() for each in (*own.running, *own.waiting)]
        for sequence, _ in begun:  # before anything else, which may fail where the engine is broken
            sequence.give_up(error)
        for sequence, scheduler in begun:
            scheduler.leave(sequence)
        for scheduler in self.schedulers():
            scheduler.waiting.clear()

    def _run(self, runner: Runner, scheduler: Scheduler, chunks: list[Chunk]) -> None:
        try:
            logits = runner.run(chunks)
        except Exception as error:
            if len(chunks) == 1:
                _give_up(scheduler, chunks[0].sequence, error)
                return
            for chunk in chunks:  # whose fault it is shows when each runs alone
                self._run(runner, scheduler, [chunk])
            return
        ready: list[Sequence] = []
        rows: list[torch.Tensor] = []
        for chunk, own in zip(chunks, logits, strict=True):
            try:
                if isinstance(own, Exception):
                    raise own
                if self._note(scheduler, chunk, own):
                    ready.append(chunk.sequence)
                    rows.append(own[-1:])
            except Exception as error:
                _give_up(scheduler, chunk.sequence, error)
        if ready:
            self._choose(scheduler, ready, rows)

    def _note(self, scheduler: Scheduler, chunk: Chunk, logits: torch.Tensor) -> bool:
        """Notes what was computed; returns whether a token is to be chosen."""
        sequence = chunk.sequence
        before = sequence.voice.virtual_tokens + sequence.prompt_tokens
        self.counters.prompt_tokens += max(0, min(chunk.end, before) - chunk.begin)
        if chunk.is_last and not sequence.preempted:
            self.counters.cached_tokens += sequence.cached if sequence.answer_tokens == 0 else 0
        scheduler.computed(chunk)
        if sequence.wants is not None:
            _note_wanted(sequence, logits)
            if chunk.is_last:
                sequence.finish_logits()
                scheduler.leave(sequence)
            return False
        if sequence.sampling.prompt_logprobs is not None and chunk.begin < before and not sequence.answer_tokens:
            _note_prompt(chunk, logits)
        return chunk.is_last

    def _choose(self, scheduler: Scheduler, sequences: list[Sequence], rows: list[torch.Tensor]) -> None:
        order = sorted(range(len(rows)), key=lambda number: rows[number].data_ptr())
        sequences, rows = [sequences[number] for number in order], [rows[number] for number in order]
        try:
            tokens, thoughts = sample(sequences, _stacked(rows))
        except Exception as error:
            if len(sequences) == 1:
                _give_up(scheduler, sequences[0], error)
                return
            for sequence, row in zip(sequences, rows, strict=True):  # whose fault it is shows when each is alone
                self._choose(scheduler, [sequence], [row])
            return
        self.counters.answer_tokens += len(tokens)
        for sequence, token, thought in zip(sequences, tokens, thoughts, strict=True):
            try:
                if token < 0:
                    raise DataError(
                        "no token may follow: what the request asks for forbids all of them, or the logits are not "
                        "finite. Fix: ask for less with logit_bias, min_tokens or structured output."
                    )
                if not sequence.is_over:
                    sequence.take(token, thought)
            except Exception as error:  # of any kind: it ends this request alone
                sequence.give_up(error)
            if sequence.is_over:
                scheduler.leave(sequence)


def _give_up(scheduler: Scheduler, sequence: Sequence, error: Exception) -> None:
    """Ends a sequence with an error, which is its own alone."""
    sequence.give_up(error)
    scheduler.leave(sequence)


def _stacked(rows: list[torch.Tensor]) -> torch.Tensor:
    """Rows (1, V) as one tensor; without a copy where they lie one after another in memory, as a step leaves them."""
    first, size = rows[0], rows[0].nbytes
    if all(row.data_ptr() == first.data_ptr() + number * size for number, row in enumerate(rows)) and len(rows) > 1:
        return first.as_strided((len(rows), first.shape[1]), (first.shape[1], 1))
    return first if len(rows) == 1 else torch.cat(rows)


def _note_wanted(sequence: Sequence, logits: torch.Tensor) -> None:
    """Keeps the logits that a sequence wants, or what they say of the tokens that follow."""
    if sequence.targets is None:
        sequence.logits += [logits] if len(logits) else []
        return
    done = len(sequence.prompt_logprobs)
    following = sequence.targets[done : done + len(logits)]
    sequence.prompt_logprobs += token_logprobs(logits, following, [1] * len(following))


def _note_prompt(chunk: Chunk, logits: torch.Tensor) -> None:
    """The log-probabilities of the prompt's tokens that follow the positions of a chunk."""
    sequence = chunk.sequence
    first = max(chunk.begin - sequence.voice.virtual_tokens, 0)
    following = sequence.tokens[first + 1 : min(first + 1 + len(logits), sequence.prompt_tokens)]
    tops = [sequence.sampling.prompt_logprobs or 0] * len(following)
    sequence.prompt_logprobs += token_logprobs(logits[: len(following)], following, tops)
