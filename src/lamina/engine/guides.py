"""Structured output: keeps an answer to a JSON schema, a regular expression, a choice or a grammar, with llguidance."""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from lamina.errors import ConfigError, Problem

if TYPE_CHECKING:
    import torch

Kind = Literal["json_schema", "json_object", "regex", "choice", "grammar"]

# Longest text of a guide: compiling one takes time and memory.
MOST_CHARACTERS = 100_000


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
            ConfigError: llguidance is not installed, or it cannot compile the guide.
        """
        library = _library()
        if self._built is None:
            hf = importlib.import_module("llguidance.hf")
            self._built = hf.from_tokenizer(self._tokenizer, n_vocab=self._vocabulary, eos_token=self._stops or None)
        matcher = library.LLMatcher
        try:
            grammar = _grammar(matcher, guide)
            state = matcher(self._built, grammar)
            error = state.get_error() if state.is_error() else ""
        except (ValueError, TypeError) as problem:
            error, state = str(problem), None
        if error or state is None:
            reason = error.strip().splitlines()[0] if error else "it cannot be compiled"
            raise ConfigError(Problem("sampling.guide", f"the {guide.kind} is not one: {reason}", "correct it"))
        return GuideState(state, self._vocabulary)


class GuideState:
    """Where an answer stands in its guide."""

    def __init__(self, matcher: Any, vocabulary: int) -> None:
        self._matcher = matcher
        self._words = -(-vocabulary // 32)

    @property
    def words(self) -> int:
        """Words of a mask."""
        return self._words

    def fill(self, mask: torch.Tensor) -> None:
        """Writes which tokens may follow into `mask`, (words,) int32, a bit for each."""
        self._matcher.unsafe_compute_mask_ptr(mask.data_ptr(), mask.numel() * 4)

    def take(self, token: int) -> None:
        """Goes on by a token that was allowed."""
        self._matcher.consume_token(token)

    @property
    def is_over(self) -> bool:
        """Whether nothing can follow."""
        return bool(self._matcher.is_stopped())


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
