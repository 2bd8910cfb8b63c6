"""Structured output: keeps an answer to a JSON schema, a regular expression, a choice or a grammar, with llguidance."""

from __future__ import annotations

import importlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from lamina.errors import ConfigError, DataError, Problem

if TYPE_CHECKING:
    import torch

Kind = Literal["json_schema", "json_object", "regex", "choice", "grammar"]

# Longest text of a guide: compiling one takes time and memory.
MOST_CHARACTERS = 100_000

# Seconds of a processor that a guide may take before its first token, in the thread of who asks.
_SECONDS_AT_START = 0.5

# Seconds that it may take in the engine's thread, where all other requests wait meanwhile: at all, and for each token.
# llguidance's own limits count items, and a small grammar can take seconds for each mask well below all of them.
_SECONDS, _SECONDS_PER_TOKEN = 1.0, 0.02


@dataclass(frozen=True)
class Guide:
    """What an answer must be.

    Attributes:
        kind: `json_schema`, `json_object`, `regex`, `choice`, or `grammar` in llguidance's variant of Lark.
        text: The schema as JSON, the expression, the choices as a JSON list, or the grammar; empty for `json_object`.
    """

    kind: Kind
    text: str = ""

    def __post_init__(self) -> None:
        """
        Raises:
            ConfigError: It is too long.
        """
        if len(self.text) > MOST_CHARACTERS:
            message = f"the {self.kind} has {len(self.text)} characters, and {MOST_CHARACTERS} are allowed"
            raise ConfigError(Problem("sampling.guide", message, "use a shorter one"))


class Guides:
    """Compiles guides for one tokenizer."""

    def __init__(self, tokenizer: Any, vocabulary: int, stops: Sequence[int]) -> None:
        """
        Args:
            tokenizer: A fast tokenizer of transformers.
            vocabulary: Rows of the head.
            stops: Tokens that end an answer.
        """
        self._tokenizer, self._vocabulary, self._stops = tokenizer, vocabulary, list(stops)
        self._built: Any = None

    def start(self, guide: Guide) -> GuideState:
        """Begins to follow a guide.

        Raises:
            ConfigError: llguidance is not installed; or it cannot compile the guide, or not follow it fast enough; or
                nothing satisfies the guide.
        """
        library = _library()
        if self._built is None:
            hf = importlib.import_module("llguidance.hf")
            self._built = hf.from_tokenizer(self._tokenizer, n_vocab=self._vocabulary, eos_token=self._stops or None)
        matcher = library.LLMatcher
        try:
            grammar = _grammar(matcher, guide)
            state = matcher(self._built, grammar, log_level=0)
            error = _error_of(state)
        except (ValueError, TypeError) as problem:
            error, state = _in_a_line(str(problem)), None
        if error or state is None:
            reason = error or "it cannot be compiled"
            raise ConfigError(Problem("sampling.guide", f"the {guide.kind} is not one: {reason}", "correct it"))
        begun = time.thread_time()
        state.compute_bitmask()  # a trial: what cannot be followed shows here, while nobody else waits
        seconds = time.thread_time() - begun
        if error := _error_of(state):
            message = f"llguidance finds no first token for the {guide.kind}, so nothing satisfies it: {error}"
            raise ConfigError(Problem("sampling.guide", message, "correct it"))
        if seconds > _SECONDS_AT_START:
            message = f"the {guide.kind} takes {seconds:.2g} s before a token, and {_SECONDS_AT_START:g} s are allowed"
            raise ConfigError(Problem("sampling.guide", message, _SIMPLER))
        return GuideState(state, self._vocabulary, guide.kind)


class GuideState:
    """Where an answer stands in its guide."""

    def __init__(self, matcher: Any, vocabulary: int, kind: Kind) -> None:
        self._matcher, self._kind = matcher, kind
        self._words = -(-vocabulary // 32)
        self._seconds, self._allowed = 0.0, _SECONDS

    @property
    def words(self) -> int:
        """Words of a mask."""
        return self._words

    def fill(self, mask: torch.Tensor) -> None:
        """Writes which tokens may follow into `mask`, (words,) int32, a bit for each.

        Raises:
            DataError: llguidance cannot follow the guide any further, or not fast enough.
        """
        begun = time.thread_time()
        self._matcher.unsafe_compute_mask_ptr(mask.data_ptr(), mask.numel() * 4)
        self._check(begun)

    def take(self, token: int) -> None:
        """Goes on by a token that was allowed.

        Raises:
            DataError: As `fill` says.
        """
        begun = time.thread_time()
        self._allowed += _SECONDS_PER_TOKEN
        self._matcher.consume_token(token)
        self._check(begun)

    @property
    def is_over(self) -> bool:
        """Whether nothing can follow."""
        return bool(self._matcher.is_stopped())

    @property
    def is_ended(self) -> bool:
        """Whether the last token was one that ends an answer, and is no part of its text."""
        return self._matcher.stop_reason() == "EndOfSentence"

    def _check(self, begun: float) -> None:
        # Of this thread's own time: a busy machine makes no guide harder.
        self._seconds += time.thread_time() - begun
        if error := _error_of(self._matcher):
            raise DataError(f"llguidance cannot follow the {self._kind} any further: {error}. Fix: {_SIMPLER}.")
        if self._seconds > self._allowed:
            raise DataError(
                f"the {self._kind} took {self._seconds:.2g} s so far, and {_SECONDS:g} s and {_SECONDS_PER_TOKEN:g} s "
                f"for each token are allowed, since all other requests wait meanwhile. Fix: {_SIMPLER}."
            )


# Characters of what llguidance says that an error has.
_LONGEST_REASON = 400

_SIMPLER = "use a simpler one, with fewer alternatives in one place"


def _error_of(matcher: Any) -> str:
    """What is wrong, in a line; empty for nothing."""
    if not matcher.is_error():
        return ""
    return _in_a_line(str(matcher.get_error())) or "it does not say why"


def _in_a_line(text: str) -> str:
    """Joins the lines of a message, whose cause is often in the second, and bounds its length."""
    return " ".join(text.split())[:_LONGEST_REASON].rstrip(".")


def _grammar(matcher: Any, guide: Guide) -> str:
    if guide.kind == "json_object":
        return matcher.grammar_from_json_schema('{"type": "object"}')
    if guide.kind == "json_schema":
        json.loads(guide.text)
        return matcher.grammar_from_json_schema(guide.text)
    if guide.kind == "regex":
        return matcher.grammar_from_regex(guide.text)
    if guide.kind == "choice":
        choices = json.loads(guide.text)
        if not isinstance(choices, list) or not choices or not all(isinstance(choice, str) for choice in choices):
            raise ValueError("it is no list of strings")
        return matcher.grammar_from_lark("start: " + " | ".join(json.dumps(choice) for choice in choices))
    return matcher.grammar_from_lark(guide.text)


def _library() -> Any:
    try:
        return importlib.import_module("llguidance")
    except ImportError as error:
        raise ConfigError(
            Problem("sampling.guide", "structured output needs the package llguidance", "pip install 'lamina[serve]'")
        ) from error
