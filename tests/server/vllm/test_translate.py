"""What vLLM is asked, and how its chunks become pieces."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lamina.engine.guides import Guide
from lamina.engine.sampling import LARGEST_SEED, Sampling
from lamina.server.vllm.client import Unreachable, token_number
from lamina.server.vllm.translate import PieceReader, body, seed_of, structured
from tests.support.models_zoo import build_tokenizer

TOKENIZER = build_tokenizer()


def ids_of(text: str) -> list[int]:
    return list(TOKENIZER(text, add_special_tokens=False).input_ids)


def asked(sampling: Sampling, **changes: Any) -> dict[str, Any]:
    given = {"limit": 9, "stop_ids": [2, 1], "choice": 0, "salt": "", **changes}
    return body("m", [5, 6], sampling, **given)


def test_every_field_is_given() -> None:
    found = asked(Sampling())
    assert found["ignore_eos"] and found["stop_token_ids"] == [1, 2] and found["stream"] and found["max_tokens"] == 9
    assert (found["temperature"], found["top_p"], found["repetition_penalty"], found["logprobs"]) == (
        0.0,
        1.0,
        1.0,
        None,
    )
    assert not {"seed", "cache_salt", "logit_bias", "structured_outputs", "prompt_logprobs"} & found.keys()
    full = Sampling(seed=4, logit_bias={7: 1.5}, guide=Guide("regex", "a+"), prompt_logprobs=0, min_tokens=20)
    found = asked(full, salt="s")
    assert found["logit_bias"] == {"7": 1.5} and found["structured_outputs"] == {"regex": "a+"}
    assert found["cache_salt"] == "s" and not found["stream"] and found["min_tokens"] == 9
    json.dumps(found)


def test_seeds_fit_and_differ_by_choice() -> None:
    seeds = {seed_of(seed, choice) for seed in (0, 1, LARGEST_SEED) for choice in range(3)}
    assert len(seeds) == 9 and all(0 <= seed < 2**63 for seed in seeds) and seed_of(1, 2) == seed_of(1, 2)


def test_guides_in_vllm_s_words() -> None:
    assert structured(Guide("json_object")) == {"json_object": True}
    assert structured(Guide("json_schema", '{"type": "object"}')) == {"json": {"type": "object"}}
    assert structured(Guide("choice", '["a", "b"]')) == {"choice": ["a", "b"]}
    assert structured(Guide("grammar", "start: /a/")) == {"grammar": "start: /a/"}


def chunk(text: str, reason: str | None = None, by: Any = None, **more: Any) -> dict[str, Any]:
    ids = ids_of(text) + ([by] if isinstance(by, int) else [])
    return {"choices": [{"token_ids": ids, "finish_reason": reason, "stop_reason": by, **more}]}


def reader(**sampling: Any) -> PieceReader:
    return PieceReader([5, 6], Sampling(**sampling), TOKENIZER, "sha256:d")


def test_text_is_made_of_tokens_without_the_one_that_ends() -> None:
    read = reader()
    first, usage, last = read.take(chunk("ab")), read.take({"choices": []}), read.take(chunk("c", "stop", 2))
    assert first is not None and first.text == "ab" and first.prompt is not None and usage is None
    assert last is not None and (last.text, last.stopped_by, last.finish_reason) == ("c", 2, "stop")
    assert last.token_ids[-1] == 2 and last.prompt is None and last.digest == "sha256:d" and read.is_over


def test_stop_strings_are_cut_and_held_back() -> None:
    read = reader(stop=("cd",))
    first, last = read.take(chunk("abc")), read.take(chunk("de", "stop", "cd"))
    assert first is not None and last is not None
    assert (first.text + last.text, last.stopped_by, last.finish_reason) == ("ab", "cd", "stop")
    half = reader()
    a, b = (
        half.take({"choices": [{"token_ids": ids_of("é")[:1], "finish_reason": None}]}),
        half.take(chunk("", "length")),
    )
    assert a is not None and a.text == "" and b is not None and b.text == "\ufffd"


def test_log_probabilities_have_as_many_as_were_asked_for() -> None:
    ids = ids_of("a")
    given = {
        "token_logprobs": [-2.0],
        "top_logprobs": [{f"token_id:{ids[0]}": -2.0, "token_id:9": -0.1, "token_id:8": -1.0}],
    }
    rows = [None, {"6": {"logprob": -3.0}, "7": {"logprob": -0.5}}]
    piece = reader(logprobs=2, prompt_logprobs=1).take(chunk("a", "length", logprobs=given, prompt_logprobs=rows))
    assert piece is not None and piece.prompt is not None
    assert piece.logprobs[0].top == ((9, -0.1), (8, -1.0)) and piece.logprobs[0].logprob == -2.0
    assert piece.prompt.logprobs[0].token_id == 6 and piece.prompt.logprobs[0].top == ((7, -0.5),)


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"choices": [{}]},
        {"choices": [{"token_ids": [1], "finish_reason": "abort"}]},
        {"choices": [{"token_ids": [1], "finish_reason": None, "logprobs": None}]},
    ],
)
def test_what_is_no_answer_may_be_had_elsewhere(wrong: dict[str, Any]) -> None:
    with pytest.raises(Unreachable):
        reader(logprobs=1).take(wrong)
    with pytest.raises(ValueError, match="token_id:N"):
        token_number("hello")
