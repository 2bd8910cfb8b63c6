"""How tokens are chosen, and when an answer ends: the settings that the back end honors, each checked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from lamina.errors import ConfigError, Problem

DEFAULT_MAX_TOKENS = 256

# Above it, torch's generators take none.
_LARGEST_SEED = 2**64 - 1


@dataclass(frozen=True)
class Sampling:
    """How an answer is drawn. Every field acts: there is none that a generator may pass over.

    Attributes:
        temperature: A token is drawn from softmax(logits / temperature); 0 takes the most probable one.
        max_tokens: Longest answer, the token that ends it included.
        seed: Of the draws; None for other draws each time. Requests of one call that are sampled alike share its draws.
        stop_token_ids: Tokens that end an answer beside those that end it anyway.
        logit_bias: What is added to the logits of tokens, by their ids.
    """

    temperature: float = 0.0
    max_tokens: int = DEFAULT_MAX_TOKENS
    seed: int | None = None
    stop_token_ids: tuple[int, ...] = ()
    logit_bias: Mapping[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """
        Raises:
            ConfigError: A value is not allowed.
        """
        problems = []
        if not self.temperature >= 0:
            problems.append(Problem("sampling.temperature", f"{self.temperature} is not 0 or more", "use 0 for greedy"))
        if not self.max_tokens >= 1:
            problems.append(Problem("sampling.max_tokens", f"{self.max_tokens} is not 1 or more", "use at least 1"))
        if self.seed is not None and not 0 <= self.seed <= _LARGEST_SEED:
            message = f"{self.seed} is not between 0 and {_LARGEST_SEED}"
            problems.append(Problem("sampling.seed", message, "use such a number, or None for other draws each time"))
        problems += [
            Problem("sampling.logit_bias", f"the bias of token {token} is {bias}", "use a finite number")
            for token, bias in self.logit_bias.items()
            if not math.isfinite(bias)
        ]
        if problems:
            raise ConfigError(problems)
