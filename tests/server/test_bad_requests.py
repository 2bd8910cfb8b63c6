"""Whatever is wrong with a request: one JSON error of the right status, which names the field."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.serving import build, client_of

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
GOOD: dict[str, dict[str, Any]] = {
    CHAT: {"model": "a", "messages": [{"role": "user", "content": "hm"}]},
    COMPLETIONS: {"model": "a", "prompt": "hm"},
}

# Field -> values that it may not have, whichever of the two routes it is sent to.
WRONG: dict[str, list[Any]] = {
    "model": [None, 1, "", "x" * 600, ["a"], "nobody", "../../etc/passwd", "\ud800", "a\0"],
    "temperature": [-1, 2.1, "0.5", True, [], {}],
    "top_p": [0, 1.5, "1", -0.5],
    "n": [0, -1, 9, 1.5, "1", 2**31, 10**30, True],
    "seed": [1.5, "x", 2**64, -(2**64), 10**30],
    "stop": ["\ud800", [""], "", ["a"] * 17, 5, [5], ["a", None], "x" * 2000],
    "stream": ["yes", 1, {}],
    "stream_options": [{}, {"include_usage": 1}, {"other": True}, True],
    "max_tokens": [-1, 0, 1.5, "1", 10**9, 2**63, 10**30, True],
    "presence_penalty": [2.5, -2.5, "0"],
    "frequency_penalty": [3, "x"],
    "logit_bias": [
        {"x": 1},
        {"5": 200},
        {"5": "1"},
        [],
        {"99999999": 1},
        {"9" * 11: 1},
        {"9" * 400: 1},
        {"-1": 1},
        {"1.5": 1},
    ],
    "user": [5, "x" * 600, "\udfff"],
    "top_k": [-2, 0.5, "1", 2**31, 2**63, 10**30],
    "min_p": [-0.1, 1.1],
    "repetition_penalty": [0, -1, 1000, "1"],
    "min_tokens": [-1, 10**6, 2**63, 10**30, "1"],
    "ignore_eos": [1, "true"],
    "stop_token_ids": [[-1], ["a"], [10**6], [2**40], [10**30], list(range(17))],
    "response_format": [
        "json",
        {"type": "xml"},
        {"type": "json_schema"},
        {"type": "json_schema", "json_schema": {"name": "x"}},
        {"type": "text", "json_schema": {"name": "x", "schema": {}}},
        {"type": "json_object", "extra": 1},
    ],
    "structured_outputs": [{}, {"regex": 5}, {"regex": "a", "grammar": "b"}, {"choice": []}, {"pattern": "a"}],
    "cache_salt": ["", 5, "x" * 300, "\ud800"],
    "include_stop_str_in_output": [True],
    "skip_special_tokens": [False],
    "temprature": [0.5],
    "prompt_logprobs": [1],
    "use_beam_search": [True],
    "chat_template": ["{{ 7 * 7 }}"],
    "__class__": ["x"],
}
OF_CHAT: dict[str, list[Any]] = {
    "messages": [
        None,
        [],
        {},
        "hm",
        [5],
        [{}],
        [{"role": "user"}],
        [{"role": "robot", "content": "x"}],
        [{"role": "user", "content": 5}],
        [{"role": "user", "content": None}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}],
        [{"role": "user", "content": [{"type": "text"}]}],
        [{"role": "user", "content": "x", "colour": "red"}],
        [{"role": "user", "content": "x", "name": "me"}],
        [{"role": "user", "content": "x", "tool_call_id": "1"}],
        [{"role": "user", "content": "x", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "{}"}}]}],
        [{"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "no"}}]}],
        [{"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "[]"}}]}],
        [{"role": "assistant", "content": "x", "function_call": {"name": "f"}}],
        [{"role": "assistant", "content": "x", "audio": {"id": "1"}}],
        [{"role": "user", "content": "x<|im_end|>y"}],
        [{"role": "user", "content": "\ud800"}],
    ],
    "max_completion_tokens": [0, "1", 10**9, 2**63, 10**30],
    "logprobs": [1, "true"],
    "top_logprobs": [21, 10**30, -1, 2],
    "tools": [
        [5],
        {},
        [{"type": "browser"}],
        [{"type": "function"}],
        [{"type": "function", "function": {"name": "a b"}}],
        [{"type": "function", "function": {"name": "a", "strict": True}}],
    ],
    "tool_choice": ["required", "auto", {"type": "function", "function": {"name": "f"}}],
    "parallel_tool_calls": [False],
    "chat_template_kwargs": [{"messages": []}, {"enable_thinking": 1}, {"enable_thinking": True}],
    "metadata": [{"a": 1}, [], {str(n): "x" for n in range(17)}],
    "store": [True],
    "service_tier": ["flex"],
    "modalities": [["audio"], ["text", "audio"], "text"],
    "audio": [{"voice": "x"}],
    "functions": [[]],
    "function_call": ["auto"],
    "prediction": [{"type": "content"}],
    "reasoning_effort": ["low"],
    "verbosity": ["high"],
    "web_search_options": [{}],
    "prompt": ["hm"],
}
OF_COMPLETIONS: dict[str, list[Any]] = {
    "prompt": [
        None,
        [],
        [[]],
        5,
        {},
        [5, "a"],
        ["a", 5],
        [-1],
        [[1], [-1]],
        [1.5],
        [[1], "a"],
        ["a"] * 300,
        [2**40],
        "",
    ],
    "echo": [1, "yes"],
    "logprobs": [21, 10**30, -1, True, "1"],
    "best_of": [2, 0, 10**30],
    "suffix": ["x"],
    "messages": [[{"role": "user", "content": "x"}]],
    "tools": [[]],
}
CASES = [
    (path, field, value)
    for path, wrong in ((CHAT, {**WRONG, **OF_CHAT}), (COMPLETIONS, {**WRONG, **OF_COMPLETIONS}))
    for field, values in wrong.items()
    for value in values
]
# An error may name the field by which a value reaches the engine.
ALSO = {"max_completion_tokens": {"max_tokens"}, "top_logprobs": {"logprobs"}, "tool_choice": {"tools"}}
CLIENT = client_of(build())


def test_there_are_enough_of_them() -> None:
    assert len(CASES) >= 200


@pytest.mark.parametrize(
    ("path", "field", "value"), CASES, ids=[f"{place}-{field}" for place, (_, field, _) in enumerate(CASES)]
)
def test_a_wrong_value_is_one_error_that_names_its_field(path: str, field: str, value: Any) -> None:
    body = {**GOOD[path], field: value}
    response = CLIENT.post(path, content=json.dumps(body), headers={"content-type": "application/json"})
    error = response.json()["error"]
    assert response.json().keys() == {"error"}
    assert response.status_code == (404 if error["code"] == "model_not_found" else 400), response.text
    assert error["type"] == "invalid_request_error"
    assert error["param"].split(".")[0] in {field, *ALSO.get(field, ())}, error
    assert error["message"] and "Traceback" not in error["message"]
    assert response.headers["x-request-id"]


@pytest.mark.parametrize("path", GOOD)
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"null",
        b"[]",
        b'"text"',
        b"5",
        b"{",
        b"{'model': 1}",
        b"\xff\xfe\x00",
        b"[" * 100_000,
        b'{"model": ' + b"9" * 5000 + b"}",
        b'{"model": "a", "messages": ' + b'{"a":' * 50_000,
        b"{}",
        b'{"temperature": NaN}',
        b'{"model": "a", "temperature": Infinity, "prompt": "x", "messages": []}',
    ],
    ids=lambda content: content[:12].decode("latin1"),
)
def test_a_body_that_is_none_is_one_error(path: str, content: bytes) -> None:
    response = CLIENT.post(path, content=content, headers={"content-type": "application/json"})
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_a_body_must_say_that_it_is_json(kind: str) -> None:
    """What a page in a browser could send to a server of this machine without asking it first is refused."""
    response = CLIENT.post(CHAT, content=json.dumps(GOOD[CHAT]), headers={"content-type": kind})
    assert response.status_code == 400
    assert "application/json" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/v1", 404),
        ("GET", "/v1/nothing", 404),
        ("POST", "/v1/chat/completions/", 404),
        ("GET", "/docs", 404),
        ("GET", "/v1/chat/completions", 405),
        ("PUT", "/v1/models", 405),
        ("DELETE", "/health", 405),
    ],
)
def test_other_paths_and_methods(method: str, path: str, status: int) -> None:
    response = CLIENT.request(method, path)
    assert response.status_code == status
    assert set(response.json()) == {"error"}
    assert status != 405 or response.headers["allow"]


def test_the_first_of_many_errors_is_told_without_collecting_the_rest() -> None:
    body = {**GOOD[COMPLETIONS], "prompt": ["x" if n % 2 else 5 for n in range(200_000)]}
    assert CLIENT.post(COMPLETIONS, json=body).status_code == 400
    unknown = {f"field{n}": n for n in range(100_000)}
    response = CLIENT.post(COMPLETIONS, json={**GOOD[COMPLETIONS], **unknown})
    assert response.json()["error"]["param"] == "field0"


def test_two_fields_that_say_the_same_differently() -> None:
    both = {"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}}
    assert CLIENT.post(CHAT, json={**GOOD[CHAT], **both}).json()["error"]["param"] == "structured_outputs"
    lengths = {"max_tokens": 5, "max_completion_tokens": 6}
    assert CLIENT.post(CHAT, json={**GOOD[CHAT], **lengths}).json()["error"]["param"] == "max_tokens"
    schema = {"type": "object", "description": "x" * 100_001}
    for path in GOOD:
        long = CLIENT.post(path, json={**GOOD[path], "structured_outputs": {"json": schema}}).json()["error"]
        assert long["param"] == "structured_outputs"
        assert long["message"].startswith("structured_outputs: the json_schema has ")


def test_no_integer_is_without_an_end() -> None:
    """What the engine cannot count ends no request, and certainly not the engine."""
    schemas = CLIENT.get("/openapi.json").json()["components"]["schemas"]
    for name in ("ChatBody", "CompletionBody"):
        for field, value in schemas[name]["properties"].items():
            for kind in value.get("anyOf", [value]):
                assert kind.get("type") != "integer" or kind["maximum"] <= 2**64, field


def test_unknown_fields_have_a_hint() -> None:
    response = CLIENT.post(CHAT, json={**GOOD[CHAT], "max_token": 5})
    assert "Did you mean 'max_tokens'?" in response.json()["error"]["message"]
    inner = CLIENT.post(CHAT, json={**GOOD[CHAT], "stream": True, "stream_options": {"include_usages": True}})
    assert inner.json()["error"]["param"] == "stream_options.include_usages"


def test_more_than_the_room_is_refused_with_the_numbers() -> None:
    client = client_of(build(limits={"context": 50}))
    for path, field, changes in (
        (CHAT, "messages", {"messages": [{"role": "user", "content": "x" * 60}]}),
        (COMPLETIONS, "prompt", {"prompt": "x" * 50}),
        (COMPLETIONS, "max_tokens", {"max_tokens": 49}),
    ):
        error = client.post(path, json={**GOOD[path], **changes}).json()["error"]
        assert (error["param"], error["code"]) == (field, "context_length_exceeded")
        assert "50" in error["message"]
    assert client.post(COMPLETIONS, json={**GOOD[COMPLETIONS], "max_tokens": 48}).status_code == 200
