"""From a body to `Sampling`: OpenAI's and vLLM's fields over the model's own defaults, within the server's limits."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from lamina.engine.guides import Guide, Kind
from lamina.engine.sampling import LARGEST_SEED, Sampling
from lamina.server.errors import as_api_error, bad_request
from lamina.server.schemas.chat import ChatBody
from lamina.server.schemas.completions import CompletionBody
from lamina.server.schemas.sampling import ResponseFormat, SamplingBody, StructuredOutputs
from lamina.server.settings import LimitSettings

# Longest completion of a request that does not say, as OpenAI has it.
_COMPLETION_TOKENS = 16

_PLAIN = ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "min_tokens")


def sampling_of(body: ChatBody | CompletionBody, defaults: Sampling, limits: LimitSettings, tokens: int) -> Sampling:
    """How a request's answers are drawn, with a seed in any case.

    Args:
        body: The request.
        defaults: What is not asked for.
        limits: Of the server.
        tokens: How many tokens there are: ids below that are tokens.

    Raises:
        ApiError: A field is not allowed.
    """
    changes: dict[str, Any] = {name: getattr(body, name) for name in _PLAIN if getattr(body, name) is not None}
    if body.top_k is not None:
        changes["top_k"] = max(body.top_k, 0)
    if body.ignore_eos is not None:
        changes["ignore_stop_tokens"] = body.ignore_eos
    seed = int.from_bytes(os.urandom(7), "little") if body.seed is None else body.seed
    changes |= {
        "seed": seed % (LARGEST_SEED + 1),
        "max_tokens": _max_tokens(body, limits),
        "stop": _stop(body, limits),
        "stop_token_ids": tuple(_known(body.stop_token_ids or (), "stop_token_ids", tokens)),
        "logit_bias": _bias(body, tokens),
        "guide": _guide(body),
    } | _logprobs(body)
    try:
        return replace(defaults, **changes)
    except ValueError as error:
        raise as_api_error(error) from None


def answers_wanted(body: ChatBody | CompletionBody, limits: LimitSettings) -> int:
    """How many answers each prompt gets.

    Raises:
        ApiError: Too many, or `best_of` asks for others.
    """
    n = body.n or 1
    if n > limits.n:
        raise bad_request("n", f"got {n}; this server gives at most {limits.n} answers to a prompt")
    if isinstance(body, CompletionBody) and body.best_of not in (None, n):
        raise bad_request("best_of", f"got {body.best_of}; only the value of n, {n}, is supported. Leave it out")
    return n


def check_stream(body: SamplingBody) -> None:
    """Checks that options of a stream come with one.

    Raises:
        ApiError: They do not.
    """
    if body.stream_options is not None and not body.stream:
        raise bad_request("stream_options", "is for streams. Set stream to true, or leave it out")


def _max_tokens(body: ChatBody | CompletionBody, limits: LimitSettings) -> int:
    name, wanted = "max_tokens", body.max_tokens
    if isinstance(body, ChatBody) and body.max_completion_tokens is not None:
        if wanted not in (None, body.max_completion_tokens):
            raise bad_request("max_tokens", "differs from max_completion_tokens. Give one of them")
        name, wanted = "max_completion_tokens", body.max_completion_tokens
    if wanted is None:
        return limits.max_tokens if isinstance(body, ChatBody) else _COMPLETION_TOKENS
    if wanted > limits.max_tokens:
        raise bad_request(name, f"got {wanted}; this server's longest answer has {limits.max_tokens} tokens")
    if wanted == 0:
        if isinstance(body, ChatBody) or not body.echo:
            raise bad_request(name, "got 0; must be at least 1, but for a completion with echo")
        return 1
    return wanted


def _stop(body: SamplingBody, limits: LimitSettings) -> tuple[str, ...]:
    stop = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
    for name, given in (("stop", stop), ("stop_token_ids", body.stop_token_ids or ())):
        if len(given) > limits.stop:
            raise bad_request(name, f"has {len(given)} entries; at most {limits.stop} are allowed")
    return stop


def _bias(body: SamplingBody, tokens: int) -> dict[int, float]:
    found = {}
    for key, bias in (body.logit_bias or {}).items():
        if not (key.isascii() and key.isdigit() and len(key) < 12):
            raise bad_request("logit_bias", f"{key[:40]!r} is no token id. Use the ids that /tokenize gives")
        found[int(key)] = bias
    _known(found, "logit_bias", tokens)
    return found


def _known(ids: Iterable[int], name: str, tokens: int) -> list[int]:
    ids = list(ids)
    unknown = next((token for token in ids if token >= tokens), None)
    if unknown is not None:
        raise bad_request(name, f"the model has no token {unknown}; its ids are below {tokens}")
    return ids


def _logprobs(body: ChatBody | CompletionBody) -> dict[str, int | None]:
    if isinstance(body, CompletionBody):
        asked = body.logprobs
        return {"logprobs": asked, "prompt_logprobs": asked if body.echo else None}
    if body.top_logprobs and not body.logprobs:
        raise bad_request("top_logprobs", "needs logprobs. Set logprobs to true")
    return {"logprobs": (body.top_logprobs or 0) if body.logprobs else None, "prompt_logprobs": None}


def guide_field(body: SamplingBody) -> str:
    """Returns the field that says what the answer must be."""
    return "structured_outputs" if body.structured_outputs is not None else "response_format"


def _guide(body: SamplingBody) -> Guide | None:
    """What the answer must be, by whichever of the two fields says it."""
    asked = [_of_format(body.response_format), _of_structure(body.structured_outputs)]
    given = [guide for guide in asked if guide is not None]
    if len(given) > 1:
        raise bad_request("structured_outputs", "says the same as response_format. Give one of them")
    return given[0] if given else None


def _of_format(wanted: ResponseFormat | None) -> Guide | None:
    if wanted is None:
        return None
    if (wanted.json_schema is not None) != (wanted.type == "json_schema"):
        message = "is for the type json_schema" if wanted.json_schema else "is required with the type json_schema"
        raise bad_request("response_format.json_schema", message)
    if wanted.json_schema is not None:
        if wanted.json_schema.schema_ is None:
            raise bad_request("response_format.json_schema.schema", "is required")
        return _made("json_schema", json.dumps(wanted.json_schema.schema_), "response_format")
    return Guide("json_object") if wanted.type == "json_object" else None


def _of_structure(wanted: StructuredOutputs | None) -> Guide | None:
    if wanted is None:
        return None
    schema = wanted.json_
    texts: dict[Kind, str | None] = {
        "json_schema": json.dumps(schema) if isinstance(schema, dict) else schema,
        "regex": wanted.regex,
        "choice": None if wanted.choice is None else json.dumps(wanted.choice),
        "grammar": wanted.grammar,
        "json_object": "" if wanted.json_object else None,
    }
    given: list[tuple[Kind, str]] = [(kind, text) for kind, text in texts.items() if text is not None]
    if len(given) != 1:
        raise bad_request("structured_outputs", "needs one of json, regex, choice, grammar and json_object")
    return _made(*given[0], "structured_outputs")


def _made(kind: Kind, text: str, param: str) -> Guide:
    try:
        return Guide(kind, text)
    except ValueError as error:
        raise as_api_error(error, guide=param) from None
