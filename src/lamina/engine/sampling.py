"""How tokens are chosen, and when an answer ends: the settings of a request, each checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

from lamina.engine.guides import Guide
from lamina.errors import ConfigError, Problem

DEFAULT_MAX_TOKENS = 256

LARGEST_SEED = 2**64 - 1

# Tokens of whose log-probabilities a request may ask at each position.
MOST_LOGPROBS = 20

# Largest number of tokens, and largest id of one: 32 bits, which everything that computes with them has room for.
_MOST = 2**31 - 1

# Largest value of what is added to logits or divides them, well within float32.
_LARGEST = 1e38


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
        min_tokens: No token ends the answer before it has that many, and no stop string that is complete before.
        stop: Strings that end an answer, or one; it is cut before them. Always a tuple once it is set.
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
    stop: tuple[str, ...] | str = ()
    ignore_stop_tokens: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    guide: Guide | None = None

    def __post_init__(self) -> None:
        """
        Raises:
            ConfigError: A value is not allowed.
        """
        object.__setattr__(self, "stop", (self.stop,) if isinstance(self.stop, str) else tuple(self.stop))
        problems = [
            Problem(f"sampling.{name}", f"{getattr(self, name)!r} is not {allowed}", fix)
            for name, is_allowed, allowed, fix in _RULES
            if not is_allowed(getattr(self, name))
        ]
        for name, tokens in (("stop_token_ids", self.stop_token_ids), ("logit_bias", self.logit_bias)):
            problems += [
                Problem(f"sampling.{name}", f"{token!r} is not the id of a token: {_IDS}", "use such numbers")
                for token in tokens
                if not _is_id(token)
            ]
        problems += [
            Problem(
                "sampling.logit_bias",
                f"the bias of token {token} is {bias!r}, which is not a finite number of at most {_LARGEST:g}",
                "use such a number",
            )
            for token, bias in self.logit_bias.items()
            if not _is_moderate(bias)
        ]
        for text in self.stop:
            if not isinstance(text, str):
                problems.append(Problem("sampling.stop", f"{text!r} is not a string", "give strings alone"))
            elif not text:
                problems.append(Problem("sampling.stop", "one of the strings is empty", "leave it out"))
        if not problems and self.min_tokens > self.max_tokens:
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


def _is_id(value: Any) -> bool:
    return _between(0, _MOST)(value)


def _between(least: int, most: int) -> Callable[[Any], bool]:
    """Tells whether a value is an integer between two; True and False are none."""
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _is_moderate(value: Any) -> bool:
    return _is_number(value) and -_LARGEST <= value <= _LARGEST


_IDS = f"an integer between 0 and {_MOST}"

_RULES = (
    (
        "temperature",
        lambda value: _is_moderate(value) and value >= 0,
        f"a number between 0 and {_LARGEST:g}",
        "use 0 for greedy",
    ),
    ("max_tokens", _between(1, _MOST), f"an integer between 1 and {_MOST}", "use such a number"),
    (
        "seed",
        lambda value: value is None or _between(0, LARGEST_SEED)(value),
        f"an integer between 0 and {LARGEST_SEED}",
        "use such a number, or None for other draws each time",
    ),
    ("top_k", _between(0, _MOST), _IDS, "use 0 for all tokens"),
    (
        "top_p",
        lambda value: _is_number(value) and 0 < value <= 1,
        "a number above 0 and at most 1",
        "use 1 for all tokens",
    ),
    ("min_p", lambda value: _is_number(value) and 0 <= value <= 1, "a number between 0 and 1", "use 0 for all tokens"),
    (
        "repetition_penalty",
        lambda value: _is_moderate(value) and value > 0,
        f"a number above 0 and at most {_LARGEST:g}",
        "use 1 for none",
    ),
    *(
        (name, _is_moderate, f"a number between -{_LARGEST:g} and {_LARGEST:g}", "use 0 for none")
        for name in ("presence_penalty", "frequency_penalty")
    ),
    ("min_tokens", _between(0, _MOST), _IDS, "use 0 for none"),
    *(
        (
            name,
            lambda value: value is None or _between(0, MOST_LOGPROBS)(value),
            f"an integer between 0 and {MOST_LOGPROBS}",
            "use such a number, or None for none",
        )
        for name in ("logprobs", "prompt_logprobs")
    ),
)
