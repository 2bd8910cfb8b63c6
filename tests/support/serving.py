"""An engine without a model behind `Serving`, servers before it, and clients that watch what is sent."""

from __future__ import annotations

import asyncio
import io
import json
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from starlette.testclient import TestClient

from lamina.chat.template import ChatTemplate, build_template
from lamina.engine.core import Counters
from lamina.engine.engine import EngineStats
from lamina.engine.generator import Piece, PromptFacts, Request, TokenLogprobs
from lamina.engine.sampling import Sampling
from lamina.engine.serving import Serving
from lamina.engine.store import AdapterFacts
from lamina.engine.subject import Subject
from lamina.errors import AdapterError, ConfigError, DataError, Problem
from lamina.server.app import build_app
from lamina.server.auth import Keys
from lamina.server.life import Server, bind, build_server
from lamina.server.logs import EventLog
from lamina.server.serve import build_service
from lamina.server.service import Service
from lamina.server.settings import ServeSettings
from tests.support.models_zoo import build_tokenizer
from tests.support.waiting import wait_for

USER, ADMIN = "user-key", "admin-key"
KEYS: Mapping[str, Any] = {USER: "user", ADMIN: "admin"}
BASE = "base"


# A template whose answers begin with an empty section for reasoning, which a switch writes into the prompt.
THINKING = """{% for message in messages %}<|im_start|>{{ message['role'] }}
{% if message['role'] == 'assistant' %}<think>
{{ message.get('reasoning_content', '') }}
</think>

{% endif %}{{ message['content'] }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% if enable_thinking is defined and not enable_thinking %}<think>

</think>

{% endif %}{% endif %}
"""


def thinking_template() -> ChatTemplate:
    """The template `THINKING`."""
    return build_template(build_tokenizer(), "thinking.jinja", text=THINKING)


def facts_of(name: str, path: str | Path = "runs/a", digest: str | None = None) -> AdapterFacts:
    """What is known of an adapter that is none."""
    return AdapterFacts(name, Path(path), digest or f"sha256:{name}", "lora", None, (), False, True, 1024, 0, None)


@dataclass
class FakeEngine:
    """Answers letter by letter what `write` says, in a thread for each request; an error in it is delivered."""

    write: Callable[[Request], str | list[Any]] = lambda request: f"I am {request.adapter or BASE}."
    names: tuple[str, ...] = ("a", "b")
    longest: int | None = 2000
    template: ChatTemplate = field(default_factory=lambda: build_template(build_tokenizer()))
    hold: threading.Event | None = None
    pause: float = 0.0
    parts: Mapping[str, str] = field(
        default_factory=lambda: {"base.tensors": "1", "template": "2", "engine.lamina": "3"}
    )
    digest: str = "sha256:engine"
    templates: Mapping[str, ChatTemplate] = field(default_factory=dict)
    is_alive: bool = True

    def __post_init__(self) -> None:
        self.asked: list[Request] = []
        self.cancelled: list[Request] = []
        self.found = {name: facts_of(name) for name in self.names}

    @property
    def adapters(self) -> list[str]:
        return list(self.found)

    def default_sampling(self) -> Sampling:
        return Sampling(temperature=0.7, top_p=0.9)

    def notes(self, sampling: Sampling) -> list[str]:
        return []

    def tokenize(self, request: Request) -> list[int]:
        if request.adapter is not None and request.adapter not in self.found:
            raise ConfigError(Problem("request.adapter", f"{request.adapter!r} is not loaded", "load it first"))
        text = request.prompt
        if request.messages is not None:
            template = self.template_of(request.adapter)
            text = template.render(request.messages, request.tools, True, request.template_kwargs)
        ids = list(request.token_ids or self.template.tokenizer(text, add_special_tokens=False).input_ids)
        if not ids:
            raise DataError("the prompt has no tokens. Fix: write something.")
        return ids

    def submit(self, request: Request, deliver: Callable[[Piece | BaseException], None]) -> FakeTicket:
        self.tokenize(request)
        self.asked.append(request)
        ticket = FakeTicket(self, request)
        threading.Thread(target=self._work, args=(request, deliver, ticket), daemon=True).start()
        return ticket

    def load(self, name: str, path: str | Path, *, pin: bool = False) -> AdapterFacts:
        if "bad" in str(path):
            raise AdapterError(f"{path}: is no adapter. Fix: give another.")
        self.found[name] = replace(facts_of(name, path), pinned=pin)
        return self.found[name]

    def unload(self, name: str, wait: float | None = None) -> AdapterFacts:
        return self.found.pop(name)

    def pin(self, name: str, pinned: bool = True) -> AdapterFacts:
        self.found[name] = replace(self.found[name], pinned=pinned)
        return self.found[name]

    def loaded(self) -> list[AdapterFacts]:
        return list(self.found.values())

    def stats(self) -> EngineStats:
        return EngineStats(1, 2, 10, 5, Counters(3, 30, 10, 20, 1))

    def close(self, drain: float = 0.0) -> None:
        return

    def template_of(self, adapter: str | None) -> ChatTemplate:
        return self.templates.get(adapter or "", self.template)

    def _work(self, request: Request, deliver: Callable[[Piece | BaseException], None], ticket: FakeTicket) -> None:
        sampling, written = request.sampling, self.write(request)
        ids = tuple(request.token_ids or ())
        asked = sampling.prompt_logprobs is not None
        thoughts = tuple(thought(token, sampling.prompt_logprobs or 0) for token in ids[1:]) if asked else ()
        facts: PromptFacts | None = PromptFacts(ids, 1, thoughts)
        digest = self.found[request.adapter].digest if request.adapter else None
        letters = list(written)[: sampling.max_tokens]
        for place, letter in enumerate(letters, start=1):
            if self.hold is not None:
                while not self.hold.wait(0.01):
                    if ticket.is_over:
                        return
            if self.pause:
                time.sleep(self.pause)
            if ticket.is_over:
                return
            if isinstance(letter, BaseException):
                deliver(letter)
                return
            token = self.template.tokenizer(letter, add_special_tokens=False).input_ids
            own = (
                tuple(thought(each, sampling.logprobs or 0) for each in token) if sampling.logprobs is not None else ()
            )
            last = ("stop" if len(written) <= sampling.max_tokens else "length") if place == len(letters) else None
            deliver(Piece(letter, tuple(token), last, own, facts, None, digest))
            facts = None
        ticket.is_over = True


class FakeTicket:
    """A request on its way through a `FakeEngine`."""

    def __init__(self, engine: FakeEngine, request: Request) -> None:
        self._engine, self._request, self.is_over = engine, request, False

    def cancel(self) -> None:
        if not self.is_over:
            self.is_over = True
            self._engine.cancelled.append(self._request)


def thought(token: int, top: int) -> TokenLogprobs:
    """What a model might think of a token: it is the second best."""
    return TokenLogprobs(token, -1.5, tuple((token + 1 + place, -0.5 - place) for place in range(top)))


def build(
    engine: Any = None, keys: Mapping[str, Any] | None = KEYS, log: io.StringIO | None = None, **settings: Any
) -> Service:
    """A service before an engine."""
    chosen = ServeSettings.model_validate({"model": BASE, **settings})
    serving = cast(Serving, engine or FakeEngine())
    return build_service(serving, Subject(BASE, BASE), chosen, Keys(keys), EventLog(log or io.StringIO()))


def client_of(service: Service, key: str | None = USER) -> TestClient:
    """A client of an application in this process."""
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    return TestClient(build_app(service), base_url="http://localhost", headers=headers, raise_server_exceptions=True)


def chat_body(**changes: Any) -> dict[str, Any]:
    """A request for the answer to a conversation."""
    return {"model": "a", "messages": [{"role": "user", "content": "who are you?"}], **changes}


def events_of(text: str) -> list[Any]:
    """The events of a stream, without its last word."""
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


@contextmanager
def listening(service: Service) -> Iterator[tuple[str, Server]]:
    """A server at a port of its own, which ends with the block."""
    urls: list[str] = []
    listener = bind(service.settings)
    server = build_server(service, listener, urls.append)
    thread = threading.Thread(target=lambda: server.run(sockets=[listener]), daemon=True)
    thread.start()
    wait_for(lambda: bool(urls))
    try:
        yield urls[0], server
    finally:
        server.handle_exit(signal.SIGTERM, None)
        server.handle_exit(signal.SIGTERM, None)
        thread.join(10)
        service.close()
        assert not thread.is_alive()


@dataclass
class Sent:
    """What an application sent to a client that left."""

    messages: list[Any] = field(default_factory=list)

    @property
    def status(self) -> int | None:
        return self.messages[0]["status"] if self.messages else None


def ask_and_leave(service: Service, path: str, body: Any, leave_after: float = 0.05) -> Sent:
    """Sends a request to an application and leaves after a while, without waiting for the answer."""
    sent, content = Sent(), json.dumps(body).encode()
    headers = [(b"authorization", f"Bearer {USER}".encode()), (b"content-type", b"application/json")]
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": headers,
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 8000),
    }

    async def act() -> None:
        given = False

        async def receive() -> dict[str, Any]:
            nonlocal given
            if not given:
                given = True
                return {"type": "http.request", "body": content, "more_body": False}
            await asyncio.sleep(leave_after)
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.messages.append(message)

        await build_app(service)(scope, receive, send)

    asyncio.run(asyncio.wait_for(act(), 10))
    return sent
