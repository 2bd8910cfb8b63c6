"""lamina's own engine behind the server: official clients, replacement of adapters, logs that can be replayed."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

import lamina
from lamina.chat.message import Message
from lamina.engine.engine import Engine
from lamina.engine.generator import Request
from lamina.engine.sampling import Sampling
from lamina.engine.subject import Subject, find_subject
from lamina.errors import DataError
from lamina.server.auth import Keys
from lamina.server.logs import EventLog
from lamina.server.replay import read_log, replay, replay_on
from lamina.server.serve import build_service
from lamina.server.settings import ServeSettings
from tests.support.serving import ADMIN, KEYS, USER, events_of, listening
from tests.support.training import settings
from tests.support.waiting import wait_for

ASKED: Any = [{"role": "user", "content": "red green 1"}]


@pytest.fixture(scope="module")
def engine(model_folder: Path, trained: Path) -> Iterator[Engine]:
    with Engine(str(model_folder), {"support": trained}, dtype="float32") as engine:
        yield engine


@pytest.fixture(scope="module")
def log_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("log") / "requests.jsonl"


@pytest.fixture(scope="module")
def url(engine: Engine, log_file: Path, trained: Path, model_folder: Path) -> Iterator[str]:
    """A server before the engine."""
    settings = ServeSettings(port=0, adapter_root=str(trained.parent), log_requests=str(log_file), dtype="float32")
    service = build_service(engine, Subject(str(model_folder), "tiny"), settings, Keys(KEYS), EventLog(io.StringIO()))
    with listening(service) as (url, _):
        yield url


@pytest.fixture(scope="module")
def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key=USER, max_retries=0, timeout=30)


def test_the_official_client_gets_the_engines_answers(client: openai.OpenAI, engine: Engine) -> None:
    prints = []
    for model, adapter in (("support", "support"), ("tiny", None)):
        fields: Any = {"temperature": 1.5, "max_tokens": 12, "seed": 1}
        answer = client.chat.completions.create(model=model, messages=ASKED, logprobs=True, **fields)
        sampling = Sampling(logprobs=0, **fields)
        asked = Request(messages=[Message("user", "red green 1")], adapter=adapter, sampling=sampling)
        (own,) = engine.generate([asked])
        assert answer.choices[0].message.content == engine.template.voice.read(own.text)
        assert answer.usage is not None and answer.usage.completion_tokens == len(own.token_ids)
        assert answer.choices[0].logprobs is not None and answer.choices[0].logprobs.content
        logprob = answer.choices[0].logprobs.content[0].logprob
        assert logprob == pytest.approx(own.logprobs[0].logprob, abs=1e-5)
        prints.append((answer.system_fingerprint, logprob))
    assert prints[0][0] != prints[1][0] and prints[0][1] != prints[1][1]


def test_a_stream_of_the_official_client_is_the_whole_answer(client: openai.OpenAI) -> None:
    fields: Any = {"model": "support", "messages": ASKED, "temperature": 1.5, "max_tokens": 20, "seed": 7}
    whole = client.chat.completions.create(**fields)
    chunks = list(client.chat.completions.create(**fields, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage is not None and whole.usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert chunks[0].system_fingerprint == whole.system_fingerprint
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason


def test_several_answers_with_logprobs(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="support", messages=ASKED, n=3, temperature=1.0, max_tokens=5, logprobs=True, top_logprobs=2, seed=3
    )
    assert len({choice.message.content for choice in answer.choices}) > 1
    for choice in answer.choices:
        assert choice.logprobs is not None and choice.logprobs.content
        for entry in choice.logprobs.content:
            assert len(entry.top_logprobs) == 2
            assert entry.logprob <= entry.top_logprobs[0].logprob <= 0
            assert entry.bytes


def test_completions_score_prompts_as_they_score_answers(client: openai.OpenAI) -> None:
    prompt = [40, 50, 60]
    answer = client.completions.create(model="support", prompt=prompt, temperature=0, max_tokens=4, logprobs=1)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None and logprobs.token_logprobs and logprobs.top_logprobs
    written = json.loads(answer.model_dump_json())["choices"][0]["logprobs"]["tokens"]
    again = client.completions.create(
        model="support", prompt=prompt, temperature=0, max_tokens=1, logprobs=1, echo=True, seed=1
    )
    scored = again.choices[0].logprobs
    assert scored is not None and scored.token_logprobs
    assert scored.tokens and scored.tokens[3] == written[0]
    assert scored.token_logprobs[3] == pytest.approx(logprobs.token_logprobs[0], abs=1e-5)
    assert scored.top_logprobs and max(scored.top_logprobs[3].values()) == scored.token_logprobs[3]


def test_errors_are_the_official_clients_own(client: openai.OpenAI, url: str) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="nobody", messages=ASKED)
    assert missing.value.code == "model_not_found" and missing.value.request_id
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model="support", messages=ASKED, temperature=9)
    assert bad.value.param == "temperature"
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{url}/v1", api_key="wrong", max_retries=0).models.list()
    assert [model.id for model in client.models.list()] == ["tiny", "support"]
    assert client.models.retrieve("support").id == "support"


def test_answers_keep_to_a_schema(client: openai.OpenAI, engine: Engine) -> None:
    blanks: Any = engine.template.tokenizer(" \n\t\r", add_special_tokens=False).input_ids
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}
    answer = client.chat.completions.create(
        model="support",
        messages=ASKED,
        max_tokens=40,
        temperature=0,
        logit_bias={str(token): -100 for token in blanks},  # which JSON allows without end
        response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
    )
    assert json.loads(answer.choices[0].message.content or "")["a"] in (1, 2)
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(
            model="support",
            messages=ASKED,
            response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "no type"}}},
        )
    assert bad.value.param == "response_format"


@pytest.mark.parametrize("stream", [False, True])
def test_what_an_answer_must_be_is_told_by_the_field_that_says_it(client: openai.OpenAI, stream: bool) -> None:
    for path, asked in (("chat", {"messages": ASKED}), ("text", {"prompt": "x"})):
        create: Any = client.chat.completions.create if path == "chat" else client.completions.create
        with pytest.raises(openai.BadRequestError) as bad:
            create(model="support", stream=stream, extra_body={"structured_outputs": {"regex": "(a"}}, **asked)
        assert bad.value.param == "structured_outputs"
        assert "structured_outputs: the regex is not one" in bad.value.message


def test_special_tokens_in_a_turn_are_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model="support", messages=[{"role": "user", "content": "<|im_end|>"}])
    assert bad.value.param == "messages"
    with pytest.raises(openai.BadRequestError) as bad:
        client.completions.create(model="support", prompt=[10**6])
    assert bad.value.param == "prompt"


def test_an_adapter_comes_and_goes_with_its_certificate(url: str, trained: Path) -> None:
    admin = httpx.Client(base_url=url, headers={"authorization": f"Bearer {ADMIN}"})
    loaded = admin.post("/v1/adapters", json={"name": "second", "path": trained.name})
    assert loaded.status_code == 200, loaded.text
    assert loaded.json()["certificate"]["passed"] is True
    assert loaded.json()["digest"].startswith("sha256:")
    body = {"model": "second", "messages": ASKED, "max_tokens": 2}
    assert admin.post("/v1/chat/completions", json=body).status_code == 200
    assert admin.delete("/v1/adapters/second").json()["deleted"] is True
    assert admin.post("/v1/chat/completions", json=body).status_code == 404
    (trained.parent / "empty").mkdir(exist_ok=True)
    refused = admin.post("/v1/adapters", json={"name": "second", "path": "empty"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "adapter_refused")


def test_clients_that_come_and_leave_at_once_hold_nothing_in_the_end(url: str, engine: Engine) -> None:
    fields: Any = {"messages": ASKED, "max_tokens": 30, "temperature": 0, "ignore_eos": True}
    headers = {"authorization": f"Bearer {USER}"}

    def act(number: int) -> str | None:
        model, stream = ("support", "tiny")[number % 2], number % 3 == 0
        try:
            with httpx.stream(
                "POST",
                f"{url}/v1/chat/completions",
                json={**fields, "model": model, "stream": stream},
                headers=headers,
                timeout=0.03 if number % 5 == 0 else 30,
            ) as response:
                if number % 4 == 0:
                    next(response.iter_bytes())
                    return None
                text = response.read().decode()
                parts = (
                    [event["choices"][0]["delta"].get("content", "") for event in events_of(text)] if stream else None
                )
                return "".join(parts) if parts else response.json()["choices"][0]["message"]["content"]
        except httpx.TimeoutException:
            return None

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(act, range(60)))
    for number in (0, 1):
        assert len({text for text in found[number::2] if text is not None}) == 1
    wait_for(lambda: engine.stats().running == engine.stats().waiting == engine.stats().used_blocks == 0)
    assert [facts.requests for facts in engine.loaded()] == [0]


def test_logged_answers_are_had_again(
    client: openai.OpenAI, log_file: Path, trained: Path, engine: Engine, model_folder: Path
) -> None:
    for fields in ({"temperature": 1.2, "n": 2}, {"temperature": 0.0, "stop": "zz", "logit_bias": {"5": 1}}):
        client.chat.completions.create(model="support", messages=ASKED, max_tokens=10, **fields)  # type: ignore[call-overload]
    last = client.completions.create(model="tiny", prompt=["a", "b"], max_tokens=5, temperature=1)
    wait_for(lambda: last.id in log_file.read_text())
    log = read_log(log_file, 3)
    assert len(log.answers) == 3
    result = replay(log_file, limit=3)
    assert result.is_same and not result.parts
    assert result.as_json()["same"] == 3
    assert list(result.lines()) == ["3 of 3 requests gave the same answers"]
    # What is not what it was is named.
    changed = json.loads(json.dumps(log.answers[0]))
    changed["sampling"]["temperature"] = 0.3
    moved = {**log.server, "parts": {**log.server["parts"], "base.tensors": "sha256:other"}}
    other = json.loads(json.dumps(log.answers[0]))
    for answer in other["answers"]:
        answer["digest"] = "sha256:other"
        answer["token_ids"] = [token + 1 for token in answer["token_ids"]]
    gone = json.loads(json.dumps(log.answers[0]))
    gone["adapter"] = {"name": "gone", "path": None}
    wrong = json.loads(json.dumps(log.answers[0]))
    wrong["answers"][0]["token_ids"][-1] += 1
    cases = {
        "sampling": (log.server, changed),
        "base": (moved, wrong),
        "adapter": (log.server, other),
        "engine": (log.server, wrong),
    }
    for name, (server, record) in cases.items():
        (replayed,) = replay_on(engine, type(log)(server, [record]), {}).answers
        assert name in replayed.differs
        assert name == "sampling" or not replayed.is_same
    (replayed,) = replay_on(engine, type(log)(log.server, [gone]), {}).answers
    assert replayed.differs == ("adapter",) and "cannot be loaded" in replayed.reason
    (replayed,) = replay_on(engine, type(log)(log.server, [{"id": "x"}]), {}).answers
    assert "cannot be read" in replayed.reason
    lines = list(replay_on(engine, type(log)(moved, [wrong]), {}).lines())
    assert lines[0].startswith("base.tensors differs: it was sha256:other, and is sha256:")
    assert lines[1].endswith("base differs from then")


def test_a_name_that_stood_for_several_adapters_is_replayed_with_each(
    engine: Engine, trained: Path, model_folder: Path, tmp_path: Path
) -> None:
    train = {"max_steps": 3, "learning_rate": 0.1}
    other = lamina.train(settings(trained.parent, model_folder, "other", train=train)).path
    log_file = tmp_path / "log.jsonl"
    chosen = ServeSettings(port=0, adapter_root=str(trained.parent), log_requests=str(log_file), dtype="float32")
    service = build_service(engine, Subject(str(model_folder), "tiny"), chosen, Keys(KEYS), EventLog(io.StringIO()))
    body = {"model": "changing", "messages": ASKED, "max_tokens": 8, "temperature": 0}
    with listening(service) as (url, _):
        admin = httpx.Client(base_url=url, headers={"authorization": f"Bearer {ADMIN}"}, timeout=30)
        for folder in (trained, other, trained):
            assert admin.post("/v1/adapters", json={"name": "changing", "path": folder.name}).status_code == 200
            assert admin.post("/v1/chat/completions", json=body).status_code == 200
        assert admin.delete("/v1/adapters/changing").status_code == 200
    result = replay(log_file)
    assert result.is_same and [answer.differs for answer in result.answers] == [(), (), ()]
    # A folder that is given now takes the place of the one whose digest it has, and of one that is gone.
    log = read_log(log_file)
    assert [Path(answer["adapter"]["path"]).parent for answer in log.answers] == [trained, other, trained]
    assert all(again.is_same for again in replay_on(engine, log, {"changing": str(other)}).answers)
    gone = json.loads(json.dumps(log.answers[0]))
    gone["adapter"]["path"] = str(tmp_path / "gone")
    (again,) = replay_on(engine, type(log)(log.server, [gone]), {"changing": str(other)}).answers
    assert again.differs == ("adapter",)
    engine.unload("changing"), engine.unload("changing#2")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "does not say what answered"),
        ('{"type": "answer"}\n', "does not say what answered"),
        ('no\n{"type": "server"}\n', "line 1 is no line of a request log"),
        ('{"type": "server"}\n', "its server line|server line cannot be read"),
    ],
)
def test_logs_that_are_none(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text(text)
    with pytest.raises(DataError, match=words):
        replay(tmp_path / "log.jsonl")
    with pytest.raises(DataError, match="cannot be read"):
        replay(tmp_path / "none.jsonl")


def test_a_line_that_was_cut_off_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"type": "server"}\n{"type": "answer"}\n{"type": "ans')
    assert len(read_log(tmp_path / "log.jsonl").answers) == 1


def test_what_a_server_is_asked_to_serve(model_folder: Path, trained: Path, tmp_path: Path) -> None:
    base = find_subject(str(model_folder))
    assert (base.base, base.name, base.adapter) == (str(model_folder), model_folder.name, None)
    assert find_subject("smollm2-135m").name == "smollm2-135m"
    assert find_subject("org/model").name == "org/model"
    for place, name in ((trained, "support"), (trained / "adapter", "support")):
        found = find_subject(str(place))
        assert found.adapter == (name, place)
        assert (found.name, found.dtype, found.quantization) == (model_folder.name, "float32", None)
    strange = tmp_path / ".-ein Name"
    strange.symlink_to(model_folder, target_is_directory=True)
    assert find_subject(str(strange)).name == model_folder.name
