"""Conversations and completions, whole and in pieces, as OpenAI's clients read them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lamina.engine.guides import Guide
from lamina.engine.sampling import Sampling
from tests.support.serving import BASE, FakeEngine, build, chat_body, client_of, events_of, thinking_template

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


def asked(path: str, body: dict[str, Any], engine: FakeEngine | None = None) -> tuple[Any, FakeEngine]:
    """The answer to a request, and the engine that was asked."""
    engine = engine or FakeEngine()
    response = client_of(build(engine)).post(path, json=body)
    assert response.status_code == 200, response.text
    return response, engine


def sampling_asked(path: str, **fields: Any) -> Sampling:
    body = chat_body(**fields) if path == CHAT else {"model": "a", "prompt": "hm", **fields}
    _, engine = asked(path, body)
    return engine.asked[0].sampling


def test_a_conversation_is_answered() -> None:
    response, engine = asked(CHAT, chat_body())
    body = response.json()
    assert body["object"] == "chat.completion"
    assert body["model"] == "a"
    assert body["system_fingerprint"].startswith("fp_") and len(body["system_fingerprint"]) == 19
    (choice,) = body["choices"]
    assert choice["message"] == {"role": "assistant", "content": "I am a.", "refusal": None}
    assert (choice["index"], choice["finish_reason"], choice["logprobs"]) == (0, "stop", None)
    prompt = len(engine.asked[0].token_ids or ())
    assert body["usage"] == {
        "prompt_tokens": prompt,
        "completion_tokens": 7,
        "total_tokens": prompt + 7,
        "prompt_tokens_details": {"cached_tokens": 1},
    }
    assert engine.template.tokenizer.decode(list(engine.asked[0].token_ids or ())) == (
        "<|im_start|>user\nwho are you?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert response.headers["x-request-id"]


def test_the_base_is_asked_by_its_name_and_defaults_are_the_models_own() -> None:
    response, engine = asked(CHAT, chat_body(model=BASE))
    assert response.json()["choices"][0]["message"]["content"] == "I am base."
    assert engine.asked[0].adapter is None
    sampling = engine.asked[0].sampling
    assert (sampling.temperature, sampling.top_p) == (0.7, 0.9)
    assert sampling.seed is not None
    assert sampling.max_tokens == 2000 - len(engine.asked[0].token_ids or ())


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"temperature": 0, "top_p": 0.5}, {"temperature": 0, "top_p": 0.5}),
        ({"temperature": None, "stop": None}, {"temperature": 0.7, "stop": ()}),
        ({"seed": 5}, {"seed": 5}),
        ({"seed": -1}, {"seed": 2**64 - 1}),
        ({"stop": "end"}, {"stop": ("end",)}),
        ({"stop": ["a", "b"]}, {"stop": ("a", "b")}),
        ({"max_tokens": 3}, {"max_tokens": 3}),
        ({"max_tokens": 9, "min_tokens": 2}, {"min_tokens": 2}),
        ({"presence_penalty": 1, "frequency_penalty": -0.5}, {"presence_penalty": 1, "frequency_penalty": -0.5}),
        ({"logit_bias": {"5": -100, "7": 2.5}}, {"logit_bias": {5: -100, 7: 2.5}}),
        ({"top_k": -1}, {"top_k": 0}),
        ({"top_k": 40, "min_p": 0.1, "repetition_penalty": 1.2}, {"top_k": 40, "min_p": 0.1}),
        ({"ignore_eos": True}, {"ignore_stop_tokens": True}),
        ({"stop_token_ids": [4, 5]}, {"stop_token_ids": (4, 5)}),
        ({"response_format": {"type": "text"}}, {"guide": None}),
        ({"response_format": {"type": "json_object"}}, {"guide": Guide("json_object")}),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}},
            {"guide": Guide("json_schema", '{"type": "object"}')},
        ),
        ({"structured_outputs": {"regex": "a+"}}, {"guide": Guide("regex", "a+")}),
        ({"structured_outputs": {"choice": ["a", "b"]}}, {"guide": Guide("choice", '["a", "b"]')}),
        ({"structured_outputs": {"json": {"type": "object"}}}, {"guide": Guide("json_schema", '{"type": "object"}')}),
        ({"structured_outputs": {"json_object": True}}, {"guide": Guide("json_object")}),
    ],
)
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_every_field_reaches_the_engine(path: str, fields: dict[str, Any], expected: dict[str, Any]) -> None:
    sampling = sampling_asked(path, **fields)
    assert {name: getattr(sampling, name) for name in expected} == expected


def test_fields_of_conversations_reach_the_engine() -> None:
    assert sampling_asked(CHAT, max_completion_tokens=4).max_tokens == 4
    assert sampling_asked(CHAT, max_completion_tokens=4, max_tokens=4).max_tokens == 4
    assert sampling_asked(CHAT, logprobs=True).logprobs == 0
    assert sampling_asked(CHAT, logprobs=True, top_logprobs=3).logprobs == 3
    assert sampling_asked(CHAT, logprobs=False).logprobs is None
    assert sampling_asked(COMPLETIONS).max_tokens == 16
    assert sampling_asked(COMPLETIONS, logprobs=2).logprobs == 2


def test_defaults_that_official_clients_may_send_are_accepted() -> None:
    harmless = {
        "n": 1,
        "user": "u",
        "metadata": {"a": "b"},
        "store": False,
        "service_tier": "auto",
        "modalities": ["text"],
        "parallel_tool_calls": True,
        "audio": None,
        "functions": None,
        "reasoning_effort": None,
        "stream": False,
        "stream_options": None,
        "safety_identifier": "s",
        "prompt_cache_key": "k",
        "skip_special_tokens": True,
        "add_generation_prompt": True,
    }
    asked(CHAT, chat_body(**harmless))
    asked(COMPLETIONS, {"model": "a", "prompt": "x", "best_of": 1, "suffix": None, "echo": False, "logprobs": None})


def test_several_answers_have_draws_of_their_own_and_share_a_seed() -> None:
    response, engine = asked(CHAT, chat_body(n=3))
    assert [choice["index"] for choice in response.json()["choices"]] == [0, 1, 2]
    assert sorted(request.choice for request in engine.asked) == [0, 1, 2]
    assert len({request.sampling.seed for request in engine.asked}) == 1
    usage = response.json()["usage"]
    assert usage["completion_tokens"] == 21
    assert usage["prompt_tokens"] == len(engine.asked[0].token_ids or ())


def test_a_stream_is_the_answer_in_pieces() -> None:
    response, _ = asked(CHAT, chat_body(stream=True, stream_options={"include_usage": True}))
    assert response.headers["content-type"].startswith("text/event-stream")
    events = events_of(response.text)
    assert {event["object"] for event in events} == {"chat.completion.chunk"}
    assert len({(event["id"], event["created"], event["system_fingerprint"]) for event in events}) == 1
    *chunks, usage = events
    assert usage["choices"] == [] and usage["usage"]["completion_tokens"] == 7
    assert all(chunk["usage"] is None for chunk in chunks)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert "".join(delta.get("content", "") for delta in deltas) == "I am a."
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks][-2:] == [None, "stop"]
    assert deltas[-1] == {}


def test_a_stream_of_several_answers_tells_them_apart() -> None:
    response, _ = asked(CHAT, chat_body(stream=True, n=2))
    texts = {0: "", 1: ""}
    for event in events_of(response.text):
        assert "usage" not in event
        (choice,) = event["choices"]
        texts[choice["index"]] += choice["delta"].get("content", "")
    assert texts == {0: "I am a.", 1: "I am a."}


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_of_a_conversation(stream: bool) -> None:
    response, _ = asked(CHAT, chat_body(logprobs=True, top_logprobs=2, max_tokens=2, stream=stream))
    choices = [e["choices"][0] for e in events_of(response.text)] if stream else response.json()["choices"]
    content = [entry for choice in choices if choice["logprobs"] for entry in choice["logprobs"]["content"]]
    assert [entry["token"] for entry in content] == ["I", " "]
    assert content[0]["logprob"] == -1.5
    assert content[0]["bytes"] == [73]
    assert [entry["token"] for entry in content[0]["top_logprobs"]] == ["J", "K"]
    assert choices[-1]["finish_reason"] == "length"


def test_a_completion_goes_on_from_texts_and_tokens() -> None:
    for prompt, count in (("hm", 1), (["a", "bc"], 2), ([5, 6], 1), ([[5, 6], [7]], 2)):
        response, engine = asked(COMPLETIONS, {"model": "a", "prompt": prompt, "n": 2})
        body = response.json()
        assert body["object"] == "text_completion"
        assert [choice["index"] for choice in body["choices"]] == list(range(2 * count))
        assert {choice["text"] for choice in body["choices"]} == {"I am a."}
        wanted = [len(p) for p in (prompt if isinstance(prompt[0], list) else [prompt] if count == 1 else prompt)]
        assert body["usage"]["prompt_tokens"] == sum(wanted)
        assert len(engine.asked) == 2 * count


def test_what_lm_eval_asks_for_is_given_as_it_reads_it() -> None:
    context, continuation = [10, 11, 12], [13, 14]
    body = {"model": "a", "prompt": [context + continuation], "temperature": 0, "max_tokens": 1, "logprobs": 1}
    response, engine = asked(COMPLETIONS, {**body, "seed": 1234, "echo": True})
    found = response.json()["choices"][0]["logprobs"]
    assert engine.asked[0].sampling.prompt_logprobs == 1
    assert len(found["tokens"]) == len(found["token_logprobs"]) == len(found["top_logprobs"]) == 6
    assert found["token_logprobs"][0] is found["top_logprobs"][0] is None
    assert found["token_logprobs"][len(context) : -1] == [-1.5, -1.5]
    assert [max(top.values()) for top in found["top_logprobs"][len(context) : -1]] == [-0.5, -0.5]
    assert found["text_offset"] == list(range(6))
    text = engine.template.tokenizer.decode(context + continuation)
    assert response.json()["choices"][0]["text"] == f"{text}I"


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_alone_is_echoed_with_no_answer(stream: bool) -> None:
    body = {"model": "a", "prompt": "abc", "echo": True, "logprobs": 0, "max_tokens": 0, "stream": stream}
    response, engine = asked(COMPLETIONS, {**body, **({"stream_options": {"include_usage": True}} if stream else {})})
    assert engine.asked[0].sampling.max_tokens == 1
    events = events_of(response.text) if stream else [response.json()]
    assert "".join(choice["text"] for event in events for choice in event["choices"]) == "abc"
    assert events[0]["choices"][0]["logprobs"]["tokens"] == ["a", "b", "c"]
    assert events[-1]["usage"]["completion_tokens"] == 0


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_alone_ends_for_length_whatever_the_model_would_say(stream: bool) -> None:
    body = {"model": "a", "prompt": "abc", "echo": True, "max_tokens": 0, "stream": stream}
    response, _ = asked(COMPLETIONS, body, FakeEngine(write=lambda request: "x"))
    last = (events_of(response.text) if stream else [response.json()])[-1]["choices"][0]
    assert last["finish_reason"] == "length"


@pytest.mark.parametrize("stream", [False, True])
def test_special_tokens_are_left_out_of_a_completions_text(stream: bool) -> None:
    written: list[Any] = ["a", "<|im_start|>", "b<", "|im_", "end|>", "c", "<"]
    body = {"model": "a", "prompt": "<|im_start|>x", "echo": True, "logprobs": 0, "skip_special_tokens": True}
    response, _ = asked(COMPLETIONS, {**body, "stream": stream}, FakeEngine(write=lambda request: written))
    choices = [event["choices"][0] for event in events_of(response.text)] if stream else response.json()["choices"]
    assert "".join(choice["text"] for choice in choices) == "<|im_start|>xabc<"
    found = {
        name: [each for choice in choices for each in choice["logprobs"][name]] for name in ("tokens", "text_offset")
    }
    # The prompt's has its place in the text, and the answer's has none.
    assert found["tokens"][:5] == ["<|im_start|>", "x", "a", "<|im_start|>", "b"]
    assert found["text_offset"][:5] == [0, 12, 13, 14, 14]
    response, _ = asked(
        COMPLETIONS,
        {"model": "a", "prompt": "x", "stream": stream, "structured_outputs": {"choice": ["<|im_start|>"]}},
        FakeEngine(write=lambda request: ["<|im_start|>"]),
    )
    choices = [event["choices"][0] for event in events_of(response.text)] if stream else response.json()["choices"]
    assert "".join(choice["text"] for choice in choices) == "<|im_start|>"


def test_a_completion_in_pieces_has_running_offsets() -> None:
    body = {"model": "a", "prompt": "abc", "echo": True, "logprobs": 1, "max_tokens": 3, "stream": True}
    response, _ = asked(COMPLETIONS, body)
    choices = [event["choices"][0] for event in events_of(response.text)]
    assert "".join(choice["text"] for choice in choices) == "abcI a"
    assert [offset for choice in choices for offset in choice["logprobs"]["text_offset"]] == list(range(6))
    assert choices[-1]["finish_reason"] == "length"


def test_tools_are_rendered_and_calls_are_read() -> None:
    tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
    call = '<tool_call>\n{"name": "weather", "arguments": {"city": "Bern"}}\n</tool_call>'
    engine = FakeEngine(write=lambda request: f"Well. {call}")
    response, _ = asked(CHAT, chat_body(tools=[tool], tool_choice="auto"), engine)
    (choice,) = response.json()["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] == "Well."
    (made,) = choice["message"]["tool_calls"]
    assert made["type"] == "function" and made["id"].startswith("call_")
    assert made["function"] == {"name": "weather", "arguments": '{"city": "Bern"}'}
    prompt = engine.template.tokenizer.decode(list(engine.asked[0].token_ids or ()))
    assert "weather" in prompt
    response, _ = asked(CHAT, chat_body(tools=[tool], stream=True), FakeEngine(write=lambda request: call))
    deltas = [event["choices"][0] for event in events_of(response.text)]
    assert [c["delta"]["tool_calls"][0]["index"] for c in deltas if "tool_calls" in c["delta"]] == [0]
    assert not any(choice["delta"].get("content") for choice in deltas)
    assert deltas[-1]["finish_reason"] == "tool_calls"
    # Without tools, or with none allowed, it is text.
    for fields in ({}, {"tools": [tool], "tool_choice": "none"}):
        response, engine = asked(CHAT, chat_body(**fields), FakeEngine(write=lambda request: call))
        assert response.json()["choices"][0]["message"]["content"] == call
        assert "weather" not in engine.template.tokenizer.decode(list(engine.asked[0].token_ids or ()))


def test_a_conversation_with_calls_and_results_is_rendered() -> None:
    messages = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "wea"}, {"type": "text", "text": "ther?"}]},
        {
            "role": "assistant",
            "content": None,
            "refusal": None,
            "tool_calls": [{"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"a": 1}'}}],
        },
        {"role": "tool", "tool_call_id": "1", "content": "sunny"},
    ]
    _, engine = asked(CHAT, {"model": "a", "messages": messages})
    prompt = engine.template.tokenizer.decode(list(engine.asked[0].token_ids or ()))
    for words in ("<|im_start|>system\nbe brief", "weather?", '{"name": "weather", "arguments": {"a": 1}}', "sunny"):
        assert words in prompt


def test_models_are_listed_with_their_parents() -> None:
    client = client_of(build(aliases={"both": {"weights": {"a": 1, "b": 1}}}))
    cards = {card["id"]: card for card in client.get("/v1/models").json()["data"]}
    assert list(cards) == [BASE, "a", "b", "both"]
    assert (cards[BASE]["parent"], cards["a"]["parent"]) == (None, BASE)
    assert cards["a"]["root"] == "runs/a"
    assert client.get("/v1/models/a").json() == cards["a"]
    missing = client.get("/v1/models/org/none")
    assert missing.status_code == 404
    assert missing.json()["error"]["code"] == "model_not_found"


def test_tokens_of_texts_and_conversations_are_given() -> None:
    client = client_of(build())
    found = client.post("/tokenize", json={"model": "a", "prompt": "ab", "return_token_strs": True}).json()
    assert found == {"count": 2, "max_model_len": 2000, "tokens": found["tokens"], "token_strs": ["a", "b"]}
    talked = client.post("/tokenize", json={"model": "a", "messages": [{"role": "user", "content": "x"}]}).json()
    assert talked["count"] > 10
    for body, param in (
        ({"model": "a"}, "prompt"),
        ({"model": "a", "prompt": "x", "tools": []}, "tools"),
        (
            {"model": "a", "messages": [{"role": "user", "content": "x"}], "add_special_tokens": True},
            "add_special_tokens",
        ),
        ({"model": "nobody", "prompt": "x"}, "model"),
        ({"model": "a", "prompt": ""}, "prompt"),
    ):
        refused = client.post("/tokenize", json=body)
        assert refused.status_code in (400, 404)
        assert refused.json()["error"]["param"] == param


def test_cached_prefixes_are_apart_for_each_key_and_each_salt() -> None:
    salts = []
    for isolate, fields in ((True, {}), (True, {"cache_salt": "x"}), (False, {}), (False, {"cache_salt": "x"})):
        engine = FakeEngine()
        service = build(engine, isolate_keys=isolate)
        for key in ("user-key", "admin-key"):
            client_of(service, key).post(CHAT, json=chat_body(**fields))
        salts.append([request.salt for request in engine.asked])
    for one, other in salts[:2]:
        assert one and other and one != other
    assert salts[2] == ["", ""]
    assert salts[3][0] == salts[3][1] != ""


def test_reasoning_is_switched_by_the_templates_own_variable_alone() -> None:
    client = client_of(build())
    refused = client.post(CHAT, json=chat_body(chat_template_kwargs={"enable_thinking": False}))
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "chat_template_kwargs.enable_thinking"
    assert client.post(CHAT, json=chat_body(chat_template_kwargs={})).status_code == 200


def test_each_adapter_is_read_and_switched_by_its_own_template() -> None:
    written = "<think>\n\n</think>\n\nhello"
    service = build(FakeEngine(write=lambda request: written, templates={"b": thinking_template()}))
    client = client_of(service)
    for model, expected in (("a", written), ("b", "hello"), (BASE, written)):
        body = chat_body(model=model)
        assert client.post(CHAT, json=body).json()["choices"][0]["message"]["content"] == expected
        events = events_of(client.post(CHAT, json={**body, "stream": True}).text)
        assert "".join(event["choices"][0]["delta"].get("content", "") for event in events) == expected
        switched = {**body, "chat_template_kwargs": {"enable_thinking": False}}
        assert client.post(CHAT, json=switched).status_code == (200 if model == "b" else 400)
        talked = {"model": model, "messages": body["messages"], "chat_template_kwargs": {"enable_thinking": False}}
        assert client.post("/tokenize", json=talked).status_code == (200 if model == "b" else 400)


def test_a_guided_answer_is_given_to_the_letter() -> None:
    for written in ("<|im_start|>", "<think>\n\n</think>\n\nhello"):
        service = build(FakeEngine(write=lambda request, it=written: [it], templates={"b": thinking_template()}))
        body = chat_body(model="b", structured_outputs={"choice": [written]})
        answer = client_of(service).post(CHAT, json=body).json()
        assert answer["choices"][0]["message"]["content"] == written
        events = events_of(client_of(service).post(CHAT, json={**body, "stream": True}).text)
        assert "".join(event["choices"][0]["delta"].get("content", "") for event in events) == written


def test_an_error_inside_a_request_ends_that_request_alone() -> None:
    engine = FakeEngine(write=lambda request: ["x", RuntimeError("secret words")] if request.adapter == "a" else "fine")
    service = build(engine)
    client = client_of(service)
    failed = client.post(CHAT, json=chat_body())
    assert failed.status_code == 500
    assert failed.json()["error"]["code"] == "internal"
    assert "secret" not in failed.text
    assert client.post(CHAT, json=chat_body(model="b")).status_code == 200
    streamed = client.post(CHAT, json=chat_body(stream=True))
    assert streamed.status_code == 200
    last = json.loads(streamed.text.strip().split("\n\n")[-1].removeprefix("data: "))
    assert last["error"]["type"] == "server_error"
    assert "[DONE]" not in streamed.text
    assert service.admission.waiting == 0 and not service.admission.running


def test_an_engine_without_an_end_answers_up_to_the_servers_own_limit() -> None:
    _, engine = asked(CHAT, chat_body(), FakeEngine(longest=None))
    assert engine.asked[0].sampling.max_tokens == 32_768
