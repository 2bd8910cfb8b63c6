"""A model behind a URL: what is asked, what is asked again, and what ends it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from lamina.chat.message import Message
from lamina.errors import ConfigError, LaminaError
from lamina.evaluation.judge import Pairing, judge_pairs, remote_judge
from lamina.evaluation.remote import RemoteError, RemoteModel

pytest.importorskip("httpx")


class Server:
    """A server that answers as it is told: a status and a body for each request in turn, then the last for ever."""

    def __init__(self) -> None:
        self.replies: list[tuple[int, Any, dict[str, str]]] = []
        self.seen: list[tuple[dict[str, Any], dict[str, str]]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                outer.seen.append((body, {name.lower(): value for name, value in self.headers.items()}))
                replies = outer.replies
                status, reply, headers = replies.pop(0) if len(replies) > 1 else replies[0]
                if callable(reply):
                    reply = reply(body)
                content = (reply if isinstance(reply, str) else json.dumps(reply)).encode()
                try:
                    self.send_response(status)
                    for name, value in {**headers, "content-length": str(len(content))}.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(content)
                except OSError:
                    pass  # it had waited long enough

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


def said(text: str) -> tuple[int, Any, dict[str, str]]:
    return 200, {"choices": [{"message": {"role": "assistant", "content": text}}]}, {}


def echo(body: dict[str, Any]) -> dict[str, Any]:
    return said(body["messages"][-1]["content"].upper())[1]


ASKED = [[Message("system", "s"), Message("user", f"q{n}")] for n in range(9)]


def test_answers_are_in_order_and_the_key_is_sent(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", "secret")
    server.replies = [(200, echo, {})]
    model = RemoteModel(server.url, "m", "SOME_KEY", settings={"temperature": 0})
    kept: dict[int, str] = {}
    assert model.answer(ASKED, kept.__setitem__) == [f"Q{n}" for n in range(9)] == [kept[n] for n in range(9)]
    body, headers = server.seen[0]
    assert body["model"] == "m" and body["temperature"] == 0 and len(body["messages"]) == 2
    assert headers["authorization"] == "Bearer secret"
    assert "secret" not in repr(model) and "secret" not in model.digest
    assert model.answer([]) == []


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_server_is_asked_again(server: Server, status: int) -> None:
    waits: list[float] = []
    server.replies = [(status, {"error": {"message": "busy"}}, {}), (status, "", {"retry-after": "7"}), said("yes")]
    model = RemoteModel(server.url, "m", at_once=1, sleep=waits.append)
    assert model.answer(ASKED[:1]) == ["yes"]
    assert len(server.seen) == 3 and 0.5 < waits[0] < 1.5 and waits[1] == 7.0


def test_what_was_answered_stays_when_it_goes_down(server: Server, tmp_path: Path) -> None:
    server.replies = [said("A")] * 5 + [(503, {"error": "gone"}, {})]
    model = RemoteModel(server.url, "m", retries=2, at_once=1, sleep=lambda seconds: None)
    given = [Pairing(f"p{n}", "one", "two") for n in range(6)]
    with pytest.raises(RemoteError, match=r"m gave no answer after 3 tries: it answered 503: gone\. Fix: .*kept"):
        judge_pairs(remote_judge(model), given, cache=tmp_path, again=0)
    assert len(list(tmp_path.rglob("*.json"))) == 5 and len(server.seen) == 5 + 3
    server.replies = [said("A")]
    assert judge_pairs(remote_judge(model), given, cache=tmp_path, again=0).bias == "prefers_first"
    assert len(server.seen) == 8 + 7


def test_a_slow_server_is_given_up(server: Server) -> None:
    server.replies = [(200, lambda body: time.sleep(0.6), {})]
    model = RemoteModel(server.url, "m", timeout=0.1, retries=1, sleep=lambda seconds: None)
    with pytest.raises(RemoteError, match=r"did not answer within 0\.1 seconds"):
        model.answer(ASKED[:1])


def test_a_server_that_is_not_there() -> None:
    model = RemoteModel("http://127.0.0.1:9/v1", "m", retries=1, sleep=lambda seconds: None)
    with pytest.raises(RemoteError, match="cannot be reached"):
        model.answer(ASKED[:2])


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        ((401, {"error": {"message": "no key"}}, {}), "refused a request to m with 401: no key.*OPENAI_API_KEY"),
        ((404, "nothing", {}), "404: nothing.*check the URL and the model's name"),
        ((400, {"error": "bad field"}, {}), "400: bad field"),
        ((200, "<html>", {}), "no chat completion: <html>"),
        ((200, {"choices": []}, {}), "no chat completion"),
        ((302, "", {"location": "http://elsewhere"}), "302"),
    ],
)
def test_a_refusal_is_told_at_once(server: Server, reply: Any, words: str) -> None:
    server.replies = [reply]
    with pytest.raises(LaminaError, match=words):
        RemoteModel(server.url, "m", at_once=1).answer(ASKED[:3])
    assert len(server.seen) == 1


@pytest.mark.parametrize(
    ("url", "model", "words"),
    [
        ("localhost:8000", "m", "is no URL"),
        ("ftp://x/v1", "m", "is no URL"),
        ("http://", "m", "is no URL"),
        ("https://me:pw@x/v1", "m", "holds a password"),
        ("http://x", "", "names no model"),
    ],
)
def test_a_wrong_address_is_told(url: str, model: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        RemoteModel(url, model)
