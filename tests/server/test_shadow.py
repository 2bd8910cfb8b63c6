"""Shadows: a copy goes to another adapter, both answers are stored, and nobody notices."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from lamina.server import shadow
from tests.support.serving import FakeEngine, ask_and_leave, build, chat_body, thinking_template


def shadowed(tmp_path: Path, body: dict[str, Any], engine: Any = None, **changes: Any) -> tuple[Any, list[Any]]:
    """The answer to a request, and what the shadows stored."""
    file = tmp_path / "shadow.jsonl"
    service = build(engine, shadow=[{"of": "a", "to": "b", "file": str(file), **changes}])

    async def ask() -> Any:
        from httpx import ASGITransport, AsyncClient

        from lamina.server.app import build_app
        from tests.support.serving import USER

        headers = {"authorization": f"Bearer {USER}"}
        transport = ASGITransport(build_app(service))
        async with AsyncClient(transport=transport, base_url="http://localhost", headers=headers) as client:
            response = await client.post("/v1/chat/completions", json=body)
            while service.tasks:
                await asyncio.wait(service.tasks)
            return response

    response = asyncio.run(ask())
    metrics = service.metrics.text().decode()
    service.close()
    assert service.admission.waiting == 0 and not service.admission.running
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    return (response, metrics), lines


@pytest.mark.parametrize("stream", [False, True])
def test_both_answers_are_stored(tmp_path: Path, stream: bool) -> None:
    engine = FakeEngine()
    (response, metrics), (line,) = shadowed(tmp_path, chat_body(stream=stream, n=2), engine)
    assert response.status_code == 200
    assert [answer["text"] for answer in line["answers"]] == ["I am a."] * 2
    assert [answer["text"] for answer in line["shadow"]["answers"]] == ["I am b."] * 2
    assert line["fingerprint"] != line["shadow"]["fingerprint"]
    assert (line["type"], line["model"], line["shadow"]["model"]) == ("shadow", "a", "b")
    first, copy = engine.asked[0], engine.asked[2]
    assert (first.token_ids, first.sampling, first.choice) == (copy.token_ids, copy.sampling, copy.choice)
    assert 'shadow_requests_total{outcome="answered"} 1.0' in metrics


@pytest.mark.parametrize("switched", [False, True])
def test_a_shadow_is_asked_as_its_own_template_renders(tmp_path: Path, switched: bool) -> None:
    messages = [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": "y"},
        {"role": "user", "content": "z"},
    ]
    engine = FakeEngine(templates={"a" if switched else "b": thinking_template()})
    kwargs = {"chat_template_kwargs": {"enable_thinking": False}} if switched else {}
    _, (line,) = shadowed(tmp_path, chat_body(messages=messages, **kwargs), engine)
    asked = {
        request.adapter: engine.template.tokenizer.decode(list(request.token_ids or ())) for request in engine.asked
    }
    thoughts = {adapter: text.count("<think>") for adapter, text in asked.items()}
    assert thoughts == ({"a": 2, "b": 0} if switched else {"a": 0, "b": 1})
    assert line["prompts"] == [list(engine.asked[0].token_ids or ())]
    assert line["shadow"]["prompts"] == [list(engine.asked[1].token_ids or ())]


def test_a_shadow_that_fails_is_stored_as_that(tmp_path: Path) -> None:
    engine = FakeEngine(write=lambda request: [ValueError("no")] if request.adapter == "b" else "fine")
    (response, metrics), (line,) = shadowed(tmp_path, chat_body(), engine)
    assert response.json()["choices"][0]["message"]["content"] == "fine"
    assert line["shadow"] == {"model": "b", "error": "no"}
    assert 'outcome="failed"' in metrics


def test_others_are_not_copied(tmp_path: Path) -> None:
    assert shadowed(tmp_path, chat_body(model="b"))[1] == []
    assert shadowed(tmp_path, chat_body(model="base"))[1] == []
    assert shadowed(tmp_path, chat_body(), share=1e-12)[1] == []


def test_copies_are_left_out_when_there_are_too_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shadow, "MOST_AT_ONCE", 0)
    (response, metrics), lines = shadowed(tmp_path, chat_body())
    assert response.status_code == 200
    assert lines == []
    assert 'outcome="left_out"' in metrics


def test_an_answer_that_nobody_waited_for_is_not_copied(tmp_path: Path) -> None:
    import threading

    file = tmp_path / "shadow.jsonl"
    service = build(FakeEngine(hold=threading.Event()), shadow=[{"of": "a", "to": "b", "file": str(file)}])
    ask_and_leave(service, "/v1/chat/completions", chat_body())
    service.close()
    assert file.read_text() == ""
