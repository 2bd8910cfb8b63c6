"""`Sequence`: one request on its way: its tokens, its place in the cache, and what it has been answered so far."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from lamina.engine.blocks import Key, first_key, next_key
from lamina.engine.detokenizer import Detokenizer
from lamina.engine.generator import Piece, PromptFacts, TokenLogprobs
from lamina.engine.guides import GuideState
from lamina.engine.sampling import Sampling

BITS = 53


@dataclass(frozen=True)
class Voice:
    """Whose numbers a sequence gets.

    Attributes:
        digest: Of the adapter; None for the bare base.
        weights: What the runner knows the adapter by.
        virtual_tokens: Positions before the sequence that it takes.
        release: Called once, when the sequence is over.
    """

    digest: str | None = None
    weights: Any = None
    virtual_tokens: int = 0
    release: Callable[[], None] = lambda: None


class Sequence:
    """One request on its way.

    Attributes:
        tokens: The prompt and the answer.
        prompt_tokens: How many of them are the prompt.
        voice: Whose numbers it gets.
        sampling: How it is drawn.
        limit: Tokens of the answer, at most.
        stop_ids: Tokens that end it.
        computed: Positions whose keys and values are in the cache; virtual tokens count.
        blocks: The cache blocks of its positions.
        cached: Tokens of the prompt that were found in the cache.
        is_over: Whether nothing more is computed for it.
        wants: Positions of the tokens whose logits are kept in `logits` instead of an answer; None for an answer.
        targets: For each of them the token that follows; with them `prompt_logprobs` is kept instead of logits.
    """

    def __init__(
        self,
        tokens: list[int],
        voice: Voice,
        sampling: Sampling,
        *,
        limit: int,
        stop_ids: frozenset[int],
        tokenizer: Any,
        deliver: Callable[[Piece], None],
        fail: Callable[[BaseException], None],
        choice: int = 0,
        salt: str = "",
        guide: GuideState | None = None,
        streams: bool = False,
        wants: list[int] | None = None,
        targets: list[int] | None = None,
    ) -> None:
        self.tokens, self.prompt_tokens = tokens, len(tokens)
        self.voice, self.sampling, self.limit, self.stop_ids = voice, sampling, limit, stop_ids
        self.guide, self.wants, self.targets = guide, wants, targets
        self.computed = self.cached = 0
        self.blocks: list[int] = []
        self.is_over = False
        self.preempted = 0
        self._deliver, self._fail = deliver, fail
        self._tokenizer, self._streams = tokenizer, streams
        self._text = Detokenizer(tokenizer, sampling.stop, sampling.min_tokens) if streams or sampling.stop else None
        seed = int.from_bytes(os.urandom(8), "little") if sampling.seed is None else sampling.seed
        self._seed = seed.to_bytes(8, "little") + choice.to_bytes(8, "little")
        self._first = first_key(voice.digest, salt)
        self._keys: list[Key] = []
        self._pending: list[int] = []
        self._logprobs: list[TokenLogprobs] = []
        self.prompt_logprobs: list[TokenLogprobs] = []
        self._told_prompt = False
        self.counts: Counter[int] = Counter()
        self.logits: list[torch.Tensor] = []

    @property
    def positions(self) -> int:
        """Positions of all tokens that are known, virtual ones included."""
        return self.voice.virtual_tokens + len(self.tokens)

    @property
    def answer_tokens(self) -> int:
        """Tokens of the answer so far."""
        return len(self.tokens) - self.prompt_tokens

    @property
    def wants_prompt(self) -> bool:
        """Whether logits of positions within the prompt are wanted, so that none may come from the cache."""
        return self.wants is not None or self.sampling.prompt_logprobs is not None

    @property
    def shareable(self) -> int:
        """Positions from the start, virtual ones too, that may come from the cache: those before any wanted logits."""
        if self.targets is not None and self.wants:
            return self.voice.virtual_tokens + self.wants[0]
        return 0 if self.wants_prompt else self.positions - 1

    def most_at_once(self, count: int, logits: int) -> int:
        """How many of the next `count` positions a step may take so that it holds at most so many logits."""
        if self.targets is not None:
            return min(count, max(self.shareable - self.computed, 0) + logits)
        return min(count, logits) if self.wants_prompt else count

    def random_bits(self) -> int:
        """53 random bits for the next token, from the seed, the choice and the position alone."""
        position = len(self.tokens).to_bytes(8, "little")
        return int.from_bytes(hashlib.blake2b(self._seed + position, digest_size=8).digest(), "little") >> (64 - BITS)

    def keys(self, blocks: int, size: int) -> list[Key]:
        """The keys of the first full blocks of `size` positions."""
        virtual = self.voice.virtual_tokens
        while len(self._keys) < blocks:
            begin = len(self._keys) * size
            held = [
                -1 - place if place < virtual else self.tokens[place - virtual] for place in range(begin, begin + size)
            ]
            self._keys.append(next_key(self._keys[-1] if self._keys else self._first, held))
        return self._keys[:blocks]

    def take(self, token: int, logprobs: TokenLogprobs | None) -> None:
        """Goes on by a token, and delivers what can be told."""
        self.tokens.append(token)
        self.counts[token] += 1
        self._pending.append(token)
        if logprobs is not None:
            self._logprobs.append(logprobs)
        stops = token in self.stop_ids and self.answer_tokens >= self.sampling.min_tokens
        if self.guide is not None and not stops:
            self.guide.take(token)
            stops = self.guide.is_ended
        if self._text is not None and not stops:
            self._text.add(token)
        if stops:
            self._finish("stop", token)
        elif self._text is not None and self._text.stopped_by is not None:
            self._finish("stop", self._text.stopped_by)
        elif self.answer_tokens >= self.limit:
            self._finish("length", None)
        elif self.guide is not None and self.guide.is_over:
            self._finish("stop", None)
        elif self._streams:
            assert self._text is not None
            self._tell(self._text.take(is_over=False), None, None)

    def restart(self) -> None:
        """Begins to be computed anew; what was answered stays."""
        self.computed = self.cached = 0
        self.preempted += 1
        self.logits = []
        if not self.answer_tokens:
            self.prompt_logprobs = []

    def end(self) -> None:
        """Ends without a word: it was cancelled."""
        if not self.is_over:
            self.is_over = True
            self.voice.release()

    def give_up(self, error: BaseException) -> None:
        """Ends with an error, which is this sequence's alone."""
        if not self.is_over:
            self.end()
            self._fail(error)

    def finish_logits(self) -> None:
        """Ends a sequence that was asked for logits."""
        self.end()
        self._deliver(Piece("", (), "stop"))

    def _finish(self, reason: Any, by: str | int | None) -> None:
        if self._text is not None:
            self._text.finish()
            if reason == "length" and self._text.stopped_by is not None:
                reason, by = "stop", self._text.stopped_by
            text = self._text.take(is_over=True)
        else:
            answer = self.tokens[self.prompt_tokens :]
            told = answer[:-1] if isinstance(by, int) else answer
            text = str(self._tokenizer.decode(told, clean_up_tokenization_spaces=False)) if told else ""
        self.is_over = True
        self.voice.release()
        self._tell(text, reason, by)

    def _tell(self, text: str, reason: Any, by: str | int | None) -> None:
        facts = None
        if not self._told_prompt:
            prompt = tuple(self.tokens[: self.prompt_tokens])
            facts, self._told_prompt = PromptFacts(prompt, self.cached, tuple(self.prompt_logprobs)), True
        piece = Piece(text, tuple(self._pending), reason, tuple(self._logprobs), facts, by, self.voice.digest)
        self._pending, self._logprobs = [], []
        self._deliver(piece)
