"""From a request to the body that vLLM is asked with, and from its chunks back to pieces.

Prompts go as token ids, so that the template is lamina's own, and text is made of token ids, as by lamina's engine.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from lamina.engine.detokenizer import Detokenizer
from lamina.engine.generator import Piece, PromptFacts, TokenLogprobs
from lamina.engine.guides import Guide
from lamina.engine.sampling import Sampling
from lamina.errors import ConfigError, Problem
from lamina.server.vllm.client import Unreachable, token_number

# What vLLM changes without a word, or refuses.
_RANGES = (
    ("temperature", lambda value: value == 0 or 0.01 <= value <= 2, "0, or between 0.01 and 2"),
    ("presence_penalty", lambda value: -2 <= value <= 2, "between -2 and 2"),
    ("frequency_penalty", lambda value: -2 <= value <= 2, "between -2 and 2"),
)


def check_sampling(sampling: Sampling) -> None:
    """Checks that vLLM draws as a request says.

    Raises:
        ConfigError: It does not.
    """
    problems = [
        Problem(
            f"sampling.{name}", f"{getattr(sampling, name)} is not {allowed}, which vLLM takes", "use such a number"
        )
        for name, is_allowed, allowed in _RANGES
        if not is_allowed(getattr(sampling, name))
    ]
    problems += [
        Problem("sampling.logit_bias", f"the bias of token {token} is {bias}; vLLM takes -100 to 100", "use less")
        for token, bias in sampling.logit_bias.items()
        if not -100 <= bias <= 100
    ]
    if problems:
        raise ConfigError(problems)


def body(
    model: str, ids: Sequence[int], sampling: Sampling, *, limit: int, stop_ids: Sequence[int], choice: int, salt: str
) -> dict[str, Any]:
    """The body for `/v1/completions`. Every field is given, so that no default of a server's acts.

    Args:
        model: What the server calls the adapter, or its base.
        ids: The prompt.
        sampling: How to draw.
        limit: Tokens of the answer, at most.
        stop_ids: Tokens that end it: these alone, whatever the server's own files say.
        choice: Which of several answers this is.
        salt: Cached prefixes are shared within it.
    """
    asked: dict[str, Any] = {
        "model": model,
        "prompt": list(ids),
        "max_tokens": limit,
        "min_tokens": min(sampling.min_tokens, limit),
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
        "repetition_penalty": sampling.repetition_penalty,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "stop": list(sampling.stop),
        "stop_token_ids": sorted(stop_ids),
        "ignore_eos": True,
        "skip_special_tokens": False,
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
        "logprobs": sampling.logprobs,
        "stream": sampling.prompt_logprobs is None,  # vLLM streams no log-probabilities of prompts
    }
    if sampling.prompt_logprobs is not None:
        asked["prompt_logprobs"] = sampling.prompt_logprobs
    if sampling.logit_bias:
        asked["logit_bias"] = {str(token): bias for token, bias in sampling.logit_bias.items()}
    if sampling.seed is not None:
        asked["seed"] = seed_of(sampling.seed, choice)
    if sampling.guide is not None:
        asked["structured_outputs"] = structured(sampling.guide)
    if salt:
        asked["cache_salt"] = salt
    return asked


def seed_of(seed: int, choice: int) -> int:
    """A seed of 63 bits for one of several answers."""
    digest = hashlib.blake2b(f"{seed} {choice}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def structured(guide: Guide) -> dict[str, Any]:
    """vLLM's words for a guide, which has been compiled here before."""
    if guide.kind == "json_object":
        return {"json_object": True}
    if guide.kind == "json_schema":
        return {"json": json.loads(guide.text)}
    if guide.kind == "choice":
        return {"choice": json.loads(guide.text)}
    return {guide.kind: guide.text}


class PieceReader:
    """Makes pieces of one answer's chunks.

    Attributes:
        is_over: Whether the last piece was made.
    """

    def __init__(self, ids: Sequence[int], sampling: Sampling, tokenizer: Any, digest: str | None) -> None:
        """
        Args:
            ids: The prompt.
            sampling: What was asked for.
            tokenizer: The base's.
            digest: Of the adapter that answers.
        """
        self._ids, self._sampling, self._digest = tuple(ids), sampling, digest
        self._text = Detokenizer(tokenizer, sampling.stop)
        self._told_prompt = False
        self.is_over = False

    def take(self, chunk: Mapping[str, Any]) -> Piece | None:
        """The piece that a chunk is; None for one without an answer.

        Raises:
            Unreachable: It is not as vLLM's are, or the server gave up.
        """
        try:
            choices = chunk["choices"]
            return self._piece(choices[0]) if choices else None
        except (IndexError, KeyError, TypeError, ValueError) as error:
            raise Unreachable(f"vLLM's answer is not as it should be ({error!r}).") from None

    def _piece(self, choice: Mapping[str, Any]) -> Piece:
        ids, reason, by = list(choice["token_ids"] or ()), choice.get("finish_reason"), choice.get("stop_reason")
        if reason not in (None, "stop", "length"):
            raise Unreachable(f"vLLM ended an answer with {reason!r}.")
        for token in ids[:-1] if isinstance(by, int) else ids:
            self._text.add(token)
        if reason is not None and self._text.stopped_by is None:
            self._text.finish()
        if self._text.stopped_by is not None:
            reason, by = "stop", self._text.stopped_by
        self.is_over = reason is not None
        facts = None
        if not self._told_prompt:
            facts = PromptFacts(self._ids, 0, self._of_prompt(choice.get("prompt_logprobs")))
            self._told_prompt = True
        return Piece(
            self._text.take(self.is_over),
            tuple(ids),
            reason,
            self._logprobs(ids, choice.get("logprobs")),
            facts,
            by if self.is_over else None,
            self._digest,
        )

    def _logprobs(self, ids: Sequence[int], given: Any) -> tuple[TokenLogprobs, ...]:
        most = self._sampling.logprobs
        if most is None:
            return ()
        rows = given["top_logprobs"]
        return tuple(
            _token({token_number(name): value for name, value in row.items()}, token, own, most)
            for token, own, row in zip(ids, given["token_logprobs"], rows, strict=True)
        )

    def _of_prompt(self, given: Any) -> tuple[TokenLogprobs, ...]:
        most = self._sampling.prompt_logprobs
        if most is None:
            return ()
        rows = [{int(name): value["logprob"] for name, value in row.items()} for row in given[1:]]
        return tuple(_token(row, token, row[token], most) for token, row in zip(self._ids[1:], rows, strict=True))


def _token(row: Mapping[int, float], token: int, own: float, most: int) -> TokenLogprobs:
    best = sorted(row.items(), key=lambda item: -item[1])[:most]
    return TokenLogprobs(token, float(own), tuple((each, float(value)) for each, value in best))
