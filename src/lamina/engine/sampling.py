"""How tokens are chosen, and when an answer ends: the settings of a request, each checked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lamina.engine.guides import Guide
from lamina.errors import ConfigError, Problem

DEFAULT_MAX_TOKENS = 256

LARGEST_SEED = 2**64 - 1

# Tokens of whose log-probabilities a request may ask at each position.
MOST_LOGPROBS = 20


@dataclass(frozen=True)
class Sampling:
    """How an answer is drawn. Every field acts, on every base.

    The order is that of transformers: bias and penalties change the logits, then temperature, top_k, top_p and min_p
    choose what is drawn from.

    Attributes:
        temperature: A token is drawn from softmax(logits / temperature); 0 takes the most probable one.
        max_tokens: Longest answer, the token that ends it included.
        seed: Of the draws, which depend on it, on `Request.choice` and on the position alone; None for other draws each
            time.
        stop_token_ids: Tokens that end an answer beside those that end it anyway.
        logit_bias: What is added to the logits of tokens, by their ids.
        top_k: Draw from that many of the most probable tokens; 0 for all.
        top_p: Draw from the most probable tokens that together reach this probability.
        min_p: Draw from tokens at least this times as probable as the most probable one.
        repetition_penalty: Divides the positive logits of tokens that prompt or answer hold, and multiplies the
            negative ones.
        presence_penalty: Taken off the logits of tokens that the answer holds.
        frequency_penalty: Taken off them for each time.
        min_tokens: No token ends the answer before it has that many.
        stop: Strings that end an answer; it is cut before them.
        ignore_stop_tokens: Go on past the tokens that end an answer, up to `max_tokens`.
        logprobs: Report the log-probability of every token, and of that many of the most probable ones; None for none.
            They are the model's own, before bias, penalties and temperature.
        prompt_logprobs: The same of the prompt's tokens.
        guide: What the answer must be: JSON of a schema, or text of a regular expression, a choice or a grammar.
    """

    temperature: float = 0.0
    max_tokens: int = DEFAULT_MAX_TOKENS
    seed: int | None = None
    stop_token_ids: tuple[int, ...] = ()
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    ignore_stop_tokens: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    guide: Guide | None = None

    def __post_init__(self) -> None:
        """
        Raises:
            ConfigError: A value is not allowed.
        """
        problems = [
            Problem(f"sampling.{name}", f"{getattr(self, name)} is not {allowed}", fix)
            for name, is_allowed, allowed, fix in _RULES
            if not is_allowed(getattr(self, name))
        ]
        problems += [
            Problem("sampling.logit_bias", f"the bias of token {token} is {bias}", "use a finite number")
            for token, bias in self.logit_bias.items()
            if not math.isfinite(bias)
        ]
        if "" in self.stop:
            problems.append(Problem("sampling.stop", "one of the strings is empty", "leave it out"))
        if self.min_tokens > self.max_tokens:
            message = f"{self.min_tokens} is more than max_tokens, {self.max_tokens}"
            problems.append(Problem("sampling.min_tokens", message, "raise max_tokens"))
        if problems:
            raise ConfigError(problems)

    @property
    def changes_logits(self) -> bool:
        """Whether tokens are chosen from other logits than the model's own."""
        return bool(
            self.logit_bias
            or self.repetition_penalty != 1.0
            or self.presence_penalty
            or self.frequency_penalty
            or self.min_tokens
        )


def _at_least(least: float) -> Any:
    return lambda value: value >= least


_RULES = (
    ("temperature", _at_least(0), "0 or more", "use 0 for greedy"),
    ("max_tokens", _at_least(1), "1 or more", "use at least 1"),
    (
        "seed",
        lambda value: value is None or 0 <= value <= LARGEST_SEED,
        f"between 0 and {LARGEST_SEED}",
        "use such a number, or None for other draws each time",
    ),
    ("top_k", _at_least(0), "0 or more", "use 0 for all tokens"),
    ("top_p", lambda value: 0 < value <= 1, "above 0 and at most 1", "use 1 for all tokens"),
    ("min_p", lambda value: 0 <= value <= 1, "between 0 and 1", "use 0 for all tokens"),
    ("repetition_penalty", lambda value: 0 < value < math.inf, "above 0 and finite", "use 1 for none"),
    ("presence_penalty", math.isfinite, "a finite number", "use 0 for none"),
    ("frequency_penalty", math.isfinite, "a finite number", "use 0 for none"),
    ("min_tokens", _at_least(0), "0 or more", "use 0 for none"),
    *(
        (
            name,
            lambda value: value is None or 0 <= value <= MOST_LOGPROBS,
            f"between 0 and {MOST_LOGPROBS}",
            "use such a number, or None for none",
        )
        for name in ("logprobs", "prompt_logprobs")
    ),
)
