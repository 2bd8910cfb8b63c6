"""The HTTP front before vLLM's servers: the same routes, names, aliases and errors as before lamina's engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from lamina.server.vllm.engine import VllmEngine
from tests.support.serving import ADMIN, BASE, build, chat_body, client_of, events_of
from tests.support.vllm import FakeVllm

Open = Callable[..., VllmEngine]


@pytest.fixture
def engine(opened: Open, written: dict[str, Path]) -> VllmEngine:
    return opened(written)


@pytest.fixture
def client(engine: VllmEngine, written: dict[str, Path]) -> Iterator[TestClient]:
    service = build(
        engine, adapter_root=str(written["one"].parent), aliases={"live": {"weights": {"one": 1.0}}}, name=BASE
    )
    with client_of(service, ADMIN) as client:
        yield client
    service.close()


def test_answers_streams_and_names(client: TestClient, engine: VllmEngine, fakes: list[FakeVllm]) -> None:
    models = {card["id"]: card for card in client.get("/v1/models").json()["data"]}
    assert models.keys() == {BASE, "one", "two", "live"} and models[BASE]["max_model_len"] == engine.longest
    said = {}
    for name in ("one", "two", BASE, "live"):
        asked = [{"role": "user", "content": "red green 1"}]
        body = chat_body(model=name, messages=asked, max_tokens=8, temperature=0)
        for fake in fakes:
            fake.asked.clear()
        answer = client.post("/v1/chat/completions", json=body)
        (asked_of,) = [sent["model"].partition("@")[0] for fake in fakes for sent in fake.asked]
        assert asked_of == ("one" if name == "live" else name)
        assert answer.status_code == 200, answer.text
        said[name] = answer.json()["choices"][0]["message"]["content"]
        events = events_of(client.post("/v1/chat/completions", json={**body, "stream": True}).text)
        parts = [choice["delta"].get("content") or "" for event in events for choice in event["choices"]]
        assert "".join(parts) == said[name]
        assert answer.json()["system_fingerprint"] == events[0]["system_fingerprint"]
    assert said["one"] == said["live"] != said[BASE]
    scored = {"model": "one", "prompt": "red green", "max_tokens": 1, "echo": True, "logprobs": 1}
    logprobs = client.post("/v1/completions", json=scored).json()["choices"][0]["logprobs"]
    assert logprobs["token_logprobs"][0] is None and all(value < 0 for value in logprobs["token_logprobs"][1:])


def test_adapters_come_and_go_over_http(
    client: TestClient, written: dict[str, Path], fakes: list[FakeVllm], engine: VllmEngine
) -> None:
    loaded = client.post("/v1/adapters", json={"name": "three", "path": str(written["two"])})
    assert loaded.status_code == 200 and loaded.json()["certificate"]["passed"], loaded.text
    for fake in fakes:
        fake.scaled = True
    refused = client.post("/v1/adapters", json={"name": "three", "path": str(written["one"])})
    assert refused.status_code == 400 and "certificate FAILED" in refused.json()["error"]["message"]
    assert [card["digest"] for card in engine_cards(client) if card["name"] == "three"] == [loaded.json()["digest"]]
    assert client.delete("/v1/adapters/three").status_code == 200 and "three" not in engine.adapters
    wrong = client.post("/v1/chat/completions", json=chat_body(model="one", temperature=0.001))
    assert wrong.status_code == 400 and wrong.json()["error"]["param"] == "temperature"
    assert "lamina:num_requests_running" in client.get("/metrics").text


def engine_cards(client: TestClient) -> list[dict[str, object]]:
    body = client.get("/v1/adapters").json()
    return body["data"] if isinstance(body, dict) else body
