"""One server over HTTP: what it has, what it refuses, and what is no vLLM."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from lamina.errors import ConfigError
from lamina.server.vllm.client import Refused, Unreachable, VllmClient
from tests.support.vllm import FakeVllm

Say = Callable[..., VllmClient]


@pytest.fixture
def say() -> Iterator[Say]:
    """A server that says one thing."""
    servers: list[ThreadingHTTPServer] = []

    def build(content: Any, status: int = 200, kind: str = "application/json") -> VllmClient:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.send_response(status)
                self.send_header("content-type", kind)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def do_GET(self) -> None:
                self.do_POST()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=lambda: server.serve_forever(0.02), daemon=True).start()
        return VllmClient(f"http://127.0.0.1:{server.server_address[1]}/v1/")

    yield build
    for server in servers:
        server.shutdown()
        server.server_close()


def all_of(client: VllmClient, stream: bool = True) -> list[dict[str, Any]]:
    async def read() -> list[dict[str, Any]]:
        return [chunk async for chunk in client.chunks({"stream": stream})]

    return asyncio.run(read())


def test_keys_and_names(model_folder: Path) -> None:
    fake = FakeVllm(model_folder, key="secret")
    client = VllmClient(fake.url, "secret")
    assert client.served().base == "base" and client.version() == "0.32.0"
    with pytest.raises(Refused, match=r"refused \(401\): Unauthorized"):
        VllmClient(fake.url).served()
    with pytest.raises(Refused, match=r"refused \(404\)"):
        client.unload("nobody")
    fake.kill()
    with pytest.raises(Unreachable, match="does not answer"):
        client.version()
    client.close()


def test_what_is_no_url_and_what_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="--vllm-url: 'host:1' is not a URL"):
        VllmClient("host:1")
    monkeypatch.setitem(sys.modules, "httpx", None)
    with pytest.raises(ConfigError, match="pip install 'lamina\\[serve\\]'"):
        VllmClient("http://host:1")


def test_what_is_no_vllm(say: Say) -> None:
    with pytest.raises(Refused, match="names no base"):
        say({"data": [{"id": "gpt", "max_model_len": None}]}).served()
    with pytest.raises(Unreachable, match="no JSON object"):
        say(b"<html>").served()
    with pytest.raises(Unreachable, match="no JSON object"):
        say([1]).served()
    with pytest.raises(Refused, match="not as vLLM gives them"):
        say({"choices": [{"prompt_logprobs": None}]}).logprobs("m", [1])
    row = {"prompt_logprobs": [None], "logprobs": {"top_logprobs": [{"token_id:1": -1.0}]}}
    assert say({"choices": [row]}).logprobs("m", [1]) == [{1: -1.0}]
    with pytest.raises(Refused, match="1 positions came for 2 tokens"):
        say({"choices": [row]}).logprobs("m", [1, 2])


def test_what_passes_and_what_does_not(say: Say) -> None:
    for status in (408, 429, 500, 503):
        with pytest.raises(Unreachable, match=rf"failed \({status}\): busy"):
            all_of(say({"error": {"message": "busy"}}, status))
    with pytest.raises(Refused, match=r"refused \(400\): no"):
        all_of(say({"error": "no"}, 400))
    with pytest.raises(Refused, match="without a word"):
        all_of(say(b"", 422))
    with pytest.raises(Refused, match=r"refused \(500\): bad adapter"):
        say({"error": {"message": "bad adapter"}}, 500).load("a", "path")


def test_streams(say: Say) -> None:
    lines = b': comment\n\ndata: {"choices": []}\n\ndata: [DONE]\n\n'
    assert all_of(say(lines, kind="text/event-stream")) == [{"choices": []}]
    assert all_of(say({"choices": []}), stream=False) == [{"choices": []}]
    with pytest.raises(Unreachable, match="broke off"):
        all_of(say(b'data: {"choices": []}\n\n'))
    with pytest.raises(Unreachable, match=r"failed \(500\): died"):
        all_of(say(b'data: {"error": {"message": "died", "code": 500}}\n\n'))
    with pytest.raises(Refused, match=r"refused \(400\): wrong"):
        all_of(say(b'data: {"error": {"message": "wrong", "code": 400}}\n\n'))
