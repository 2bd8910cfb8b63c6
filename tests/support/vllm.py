"""A small vLLM in this process: the endpoints that lamina uses, over a two-layer model, with faults; and adapters."""

from __future__ import annotations

import contextlib
import json
import math
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from lamina.adapters.adapter import read_adapter, save_adapter
from lamina.adapters.fit import fit
from lamina.adapters.lock import build_lock
from lamina.chat.template import build_template
from lamina.config.methods.lora import LoraConfig
from lamina.engine.probes import record_probes
from lamina.methods.shared.base import inject
from lamina.models.copies import shared_copy
from lamina.models.load import Base, load_base

LONGEST = 200
# Fields of `/v1/completions` that vLLM 0.32 has and lamina uses.
FIELDS = {
    "model",
    "prompt",
    "max_tokens",
    "min_tokens",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "stop",
    "stop_token_ids",
    "ignore_eos",
    "skip_special_tokens",
    "return_token_ids",
    "return_tokens_as_token_ids",
    "logprobs",
    "stream",
    "prompt_logprobs",
    "logit_bias",
    "seed",
    "structured_outputs",
    "cache_salt",
}


def write_adapter(folder: Path, model_folder: Path, seed: int = 5, **config: Any) -> Path:
    """A LoRA adapter with probes, whose B is drawn rather than trained."""
    base = load_base(str(model_folder), "float32")
    template = build_template(base.tokenizer)
    injection = inject(base.model, LoraConfig(**{"r": 4, "lora_alpha": 8, **config}), seed=0)
    injection.model.eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in injection.tensors().items():
            if "lora_B" in name:
                tensor.normal_(0.0, 0.15, generator=generator)
    probes = record_probes(injection, template)
    save_adapter(folder, injection, base, build_lock(base, template, []), probes)
    return folder


@cache
def _base(folder: Path) -> Base:
    return load_base(str(folder), "float32")


@dataclass
class FakeVllm:
    """One server. Faults may be set while it runs.

    Attributes:
        folder: The base.
        key: The API key that it asks for.
        ignores: Takes adapters and gives the base's answers.
        scaled: Applies adapters with a scaling that is off by the square root of the rank.
        zeroed: Leaves a layer out.
        stale: Loading what is called `NAME@...` keeps what was first loaded of that NAME.
        refuses: What loading is refused with.
        dies_after: Breaks the connection off after that many tokens of an answer.
        fails: Answers each request for tokens with status 500.
        hangs: Does not answer requests for tokens, nor looks at its health.
        pause: Seconds for a token.
        asked: Bodies of requests for tokens that stream, as they came.
        loads: What was loaded, in turn.
    """

    folder: Path
    key: str = ""
    port: int = 0
    ignores: bool = False
    scaled: bool = False
    zeroed: bool = False
    stale: bool = False
    refuses: tuple[int, str] | None = None
    dies_after: int | None = None
    fails: bool = False
    hangs: bool = False
    pause: float = 0.0
    asked: list[dict[str, Any]] = field(default_factory=list)
    loads: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        base = _base(self.folder)
        self.model, self.tokenizer = base.model, base.tokenizer
        self.vocabulary: int = base.model.config.vocab_size
        self.adapters: dict[str, PreTrainedModel] = {}
        self.first: dict[str, PreTrainedModel] = {}
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self.start()

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Starts it, again at the same port after `kill`, without adapters."""
        fake = self

        class Handler(_Handler):
            owner = fake

            def setup(self) -> None:
                fake._sockets.add(self.request)
                super().setup()

            def finish(self) -> None:
                with contextlib.suppress(OSError):
                    super().finish()
                fake._sockets.discard(self.request)

        self.adapters, self.first, self.is_dead = {}, {}, False
        self._server = _Server(("127.0.0.1", self.port), Handler)
        self._server.daemon_threads, self._server.block_on_close = True, False
        self._server.handle_error = lambda *given: None  # type: ignore[method-assign]
        self.port = self._server.server_address[1]
        threading.Thread(target=lambda: self._server.serve_forever(0.02), daemon=True).start()

    def kill(self) -> None:
        """Ends as a process that is killed: its port closes, and every connection breaks off."""
        self.is_dead = True
        self._server.shutdown()
        self._server.server_close()
        for each in list(self._sockets):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def load(self, name: str, path: str) -> None:
        """Loads an adapter, as far as its faults let it."""
        before = self.first.get(name.partition("@")[0])
        if before is not None and self.stale:
            self.adapters[name] = before
            return
        adapter = read_adapter(Path(path))
        injection = fit(adapter, shared_copy(self.model)).injection
        for place, layer in enumerate(injection.layers.values()):
            if self.scaled:
                layer.scaling *= math.sqrt(adapter.peft_config["r"])  # type: ignore[operator]
            layer.enabled = not self.ignores and not (self.zeroed and place < 7)
        self.adapters[name] = injection.model.eval()
        self.first.setdefault(name.partition("@")[0], injection.model)

    @torch.no_grad()
    def logprobs(self, name: str, ids: Sequence[int]) -> torch.Tensor:
        """Log-probabilities at every position, (positions, vocabulary)."""
        model = self.model if name == "base" else self.adapters[name]
        with self._lock:
            return model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0].float().log_softmax(-1)


class _Server(ThreadingHTTPServer):
    request_queue_size = 128


class _Handler(BaseHTTPRequestHandler):
    owner: FakeVllm

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._wait_if_hanging()
        if self.path == "/health":
            self._say(200, None)
        elif self.path == "/version":
            self._say(200, {"version": "0.32.0"})
        elif self._is_allowed():
            names = [("base", None, LONGEST), *((name, "base", None) for name in self.owner.adapters)]
            cards = [{"id": name, "parent": parent, "max_model_len": longest} for name, parent, longest in names]
            self._say(200, {"object": "list", "data": cards})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if not self._is_allowed():
            return
        fake, name = self.owner, body.get("lora_name", "")
        if self.path == "/v1/load_lora_adapter":
            if fake.refuses is not None:
                self._fail(*fake.refuses)
            elif name in fake.adapters:
                self._fail(400, f"The lora adapter '{name}' has already been loaded.")
            else:
                fake.load(name, body["lora_path"])
                fake.loads.append(name)
                self._say(200, None)
        elif self.path == "/v1/unload_lora_adapter":
            gone = fake.adapters.pop(name, None)
            self._say(200, None) if gone is not None else self._fail(404, f"'{name}' cannot be found.")
        else:
            self._answer(body)

    def _answer(self, body: dict[str, Any]) -> None:
        fake = self.owner
        unknown = sorted(body.keys() - FIELDS)
        if body.get("stream"):
            fake.asked.append(body)
        self._wait_if_hanging()
        if fake.fails:
            self._fail(500, "out of memory")
        elif unknown:
            self._fail(400, f"unknown fields: {unknown}")
        elif body["model"] != "base" and body["model"] not in fake.adapters:
            self._fail(404, f"The model `{body['model']}` does not exist.")
        elif max(body["prompt"]) >= fake.vocabulary:
            self._fail(400, "token ids are out of the vocabulary")
        else:
            self._generate(body)

    def _generate(self, body: dict[str, Any]) -> None:
        chunks = self._chunks(body)
        if not body.get("stream"):
            parts = list(chunks)
            whole = {**parts[-1], "token_ids": [token for part in parts for token in part["token_ids"]]}
            if whole["logprobs"] is not None:
                merged = [part["logprobs"] for part in parts]
                whole["logprobs"] = {name: [each for part in merged for each in part[name]] for name in merged[0]}
            whole["prompt_logprobs"] = self._of_prompt(body)
            self._say(200, {"choices": [whole]})
            return
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        for number, chunk in enumerate(chunks):
            if self.owner.is_dead or number == self.owner.dies_after:
                self.request.shutdown(socket.SHUT_RDWR)
                return
            self.wfile.write(f"data: {json.dumps({'choices': [chunk]})}\n\n".encode())
            self.wfile.flush()
        self.wfile.write(b'data: {"choices": [], "usage": {}}\n\ndata: [DONE]\n\n')

    def _chunks(self, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The most probable tokens, one at a time."""
        ids, text = list(body["prompt"]), ""
        for number in range(body["max_tokens"]):
            time.sleep(self.owner.pause)
            row = self.owner.logprobs(body["model"], ids)[-1]
            for token, bias in (body.get("logit_bias") or {}).items():
                row[int(token)] += bias
            token = int(row.argmax())
            ids.append(token)
            stops = token in body.get("stop_token_ids", ())
            text += "" if stops else str(self.owner.tokenizer.decode([token]))
            stop = next((each for each in body.get("stop", ()) if each in text), None)
            reason = "stop" if stops or stop else "length" if number + 1 == body["max_tokens"] else None
            most, given = body.get("logprobs"), None
            if most is not None:
                top = {f"token_id:{each}": value for each, value in _top(row, token, most).items()}
                given = {"token_logprobs": [float(row[token])], "top_logprobs": [top]}
            by = token if stops else stop
            yield {"token_ids": [token], "text": "", "finish_reason": reason, "stop_reason": by, "logprobs": given}
            if reason:
                return

    def _of_prompt(self, body: dict[str, Any]) -> list[Any] | None:
        most, ids = body.get("prompt_logprobs"), body["prompt"]
        if most is None:
            return None
        rows = self.owner.logprobs(body["model"], ids)
        found = [_top(row, token, most) for row, token in zip(rows, ids[1:], strict=False)]
        return [None, *({str(token): {"logprob": value} for token, value in row.items()} for row in found)]

    def _wait_if_hanging(self) -> None:
        while self.owner.hangs and not self.owner.is_dead:
            time.sleep(0.02)

    def _is_allowed(self) -> bool:
        allowed = not self.owner.key or self.headers.get("authorization") == f"Bearer {self.owner.key}"
        if not allowed:
            self._fail(401, "Unauthorized")
        return allowed

    def _fail(self, status: int, reason: str) -> None:
        self._say(status, {"error": {"message": reason, "code": status}})

    def _say(self, status: int, value: Any) -> None:
        content = b"" if value is None else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json" if value is not None else "text/plain")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def _top(row: torch.Tensor, token: int, most: int) -> dict[int, float]:
    """The token first, then the most probable ones, as vLLM lists them."""
    best = row.topk(min(most, len(row)))
    return {token: float(row[token]), **dict(zip(best.indices.tolist(), best.values.tolist(), strict=True))}
