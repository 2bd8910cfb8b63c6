"""`VllmClient`: one vLLM server over HTTP. Calls that change it block; answers stream in an event loop."""

from __future__ import annotations

import importlib
import json
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any

from lamina.errors import ConfigError, LaminaError, Problem

# Seconds: to connect, for small questions, and for what loads or computes.
_CONNECT = 5.0
_SHORT = 10.0
_LONG = 300.0

# Log-probabilities at each position of a probe: what vLLM gives unless it is told otherwise (`--max-logprobs`).
_MOST_LOGPROBS = 20


class Unreachable(LaminaError):
    """A server that does not answer, fails, or breaks off: another one may do it."""


class Refused(LaminaError):
    """A server that says no: another one would say the same.

    Attributes:
        url: The server's.
        status: HTTP status.
        reason: In the server's words.
    """

    def __init__(self, url: str, status: int, reason: str) -> None:
        self.url, self.status, self.reason = url, status, reason
        super().__init__(f"vLLM at {url} refused ({status}): {reason}")


@dataclass(frozen=True)
class Served:
    """What a server has.

    Attributes:
        base: What it calls its base.
        longest: Tokens of a prompt and its answer together.
        adapters: What it calls its adapters.
    """

    base: str
    longest: int
    adapters: frozenset[str]


class VllmClient:
    """One server.

    Attributes:
        url: Where it is, without a slash at the end.
    """

    def __init__(self, url: str, key: str | None = None) -> None:
        """
        Args:
            url: As `http://127.0.0.1:8000`.
            key: Its API key.

        Raises:
            ConfigError: httpx is not installed, or the URL is none.
        """
        self.url = url.rstrip("/").removesuffix("/v1")
        if not self.url.startswith(("http://", "https://")):
            raise ConfigError(Problem("--vllm-url", f"{url!r} is not a URL", "write http://HOST:PORT"))
        http = _library()
        self._errors: tuple[type[Exception], ...] = (http.HTTPError, http.InvalidURL, http.StreamError)
        self._headers = {"authorization": f"Bearer {key}"} if key else {}
        limits = http.Limits(max_connections=None, max_keepalive_connections=64)
        # Proxies of the environment are for other hosts than those that are named here.
        self._http = http.Client(headers=self._headers, timeout=_LONG, trust_env=False)
        timeout = http.Timeout(None, connect=_CONNECT)
        self._stream = http.AsyncClient(headers=self._headers, timeout=timeout, limits=limits, trust_env=False)

    async def is_alive(self, seconds: float) -> bool:
        """Whether the server says that it is well, within that many seconds."""
        try:
            return (await self._stream.get(f"{self.url}/health", timeout=seconds)).status_code == 200
        except self._errors:
            return False

    def version(self) -> str:
        """vLLM's version.

        Raises:
            Refused, Unreachable: It does not say.
        """
        return str(self._call("GET", "/version", None, _SHORT).get("version", "unknown"))

    def served(self) -> Served:
        """What it has.

        Raises:
            Refused, Unreachable: It does not say, or not as vLLM does.
        """
        models = self._call("GET", "/v1/models", None, _SHORT).get("data") or []
        bases = [model for model in models if not model.get("parent")]
        if not bases or not isinstance(bases[0].get("max_model_len"), int):
            raise Refused(self.url, 200, "/v1/models names no base with its max_model_len, as vLLM's does")
        adapters = frozenset(str(model["id"]) for model in models if model.get("parent"))
        return Served(str(bases[0]["id"]), bases[0]["max_model_len"], adapters)

    def load(self, name: str, path: str) -> None:
        """Loads an adapter.

        Raises:
            Refused: The server does not take it.
            Unreachable: It does not answer.
        """
        # What is wrong with an adapter comes with status 500, too.
        self._call("POST", "/v1/load_lora_adapter", {"lora_name": name, "lora_path": path}, _LONG, refusals=500)

    def unload(self, name: str) -> None:
        """Takes an adapter away.

        Raises:
            Refused, Unreachable: It was not there, or there is no answer.
        """
        self._call("POST", "/v1/unload_lora_adapter", {"lora_name": name}, _SHORT)

    def logprobs(self, model: str, ids: Sequence[int]) -> list[dict[int, float]]:
        """At each position of `ids`, the highest log-probabilities of the token that may follow, by its id.

        Raises:
            Refused, Unreachable: The server does not give them.
        """
        body: dict[str, Any] = {"model": model, "prompt": list(ids), "max_tokens": 1, "temperature": 0.0}
        body |= {"prompt_logprobs": _MOST_LOGPROBS, "logprobs": _MOST_LOGPROBS}
        body |= {"return_token_ids": True, "return_tokens_as_token_ids": True}
        answer = self._call("POST", "/v1/completions", body, _LONG)
        try:
            choice = answer["choices"][0]
            rows = [
                {int(token): float(value["logprob"]) for token, value in row.items()}
                for row in choice["prompt_logprobs"][1:]
            ]
            last = choice["logprobs"]["top_logprobs"][0]
            rows.append({token_number(token): float(value) for token, value in last.items()})
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise Refused(self.url, 200, f"its log-probabilities are not as vLLM gives them ({error!r})") from None
        if len(rows) != len(ids):
            raise Refused(self.url, 200, f"log-probabilities of {len(rows)} positions came for {len(ids)} tokens")
        return rows

    async def chunks(self, body: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """The parts of an answer: those of a stream, or the one of a body without `stream`.

        Raises:
            Refused: The server does not answer this.
            Unreachable: It fails, or breaks off.
        """
        target = f"{self.url}/v1/completions"
        try:
            async with self._stream.stream("POST", target, json=body) as response:
                if response.status_code != 200:
                    raise self._error(response.status_code, await response.aread())
                if not body.get("stream"):
                    yield _parsed(self.url, await response.aread())
                    return
                async for line in response.aiter_lines():
                    if not line.startswith("data:"):
                        continue
                    content = line[5:].strip()
                    if content == "[DONE]":
                        return
                    chunk = _parsed(self.url, content)
                    if "error" in chunk:
                        raise self._error(int(dict(chunk["error"] or {}).get("code") or 500), content)
                    yield chunk
        except self._errors as error:
            raise self._unreachable(error) from None
        raise Unreachable(f"vLLM at {self.url} broke off an answer.")

    def close(self) -> None:
        """Closes connections of calls that block."""
        self._http.close()

    async def aclose(self) -> None:
        """Closes connections of streams."""
        await self._stream.aclose()

    def _call(
        self, method: str, path: str, body: dict[str, Any] | None, seconds: float, refusals: int = 499
    ) -> dict[str, Any]:
        try:
            response = self._http.request(method, f"{self.url}{path}", json=body, timeout=seconds)
        except self._errors as error:
            raise self._unreachable(error) from None
        if response.status_code != 200:
            raise self._error(response.status_code, response.content, refusals)
        is_json = "json" in response.headers.get("content-type", "")
        return _parsed(self.url, response.content) if is_json else {}

    def _error(self, status: int, content: bytes | str, refusals: int = 499) -> LaminaError:
        reason = _reason(content)
        if 400 <= status <= refusals and status not in (408, 429):
            return Refused(self.url, status, reason)
        return Unreachable(f"vLLM at {self.url} failed ({status}): {reason}")

    def _unreachable(self, error: Exception) -> Unreachable:
        return Unreachable(f"vLLM at {self.url} does not answer: {str(error) or type(error).__name__}.")


def token_number(token: str) -> int:
    """The id of a token that vLLM writes as `token_id:N`.

    Raises:
        ValueError: It is written otherwise.
    """
    head, _, number = token.partition(":")
    if head != "token_id":
        raise ValueError(f"{token!r} is not token_id:N")
    return int(number)


def _parsed(url: str, content: bytes | str) -> dict[str, Any]:
    try:
        value = json.loads(content)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise Unreachable(f"vLLM at {url} answered what is no JSON object.")
    return value


def _reason(content: bytes | str) -> str:
    """What an error's body says."""
    text = content.decode(errors="replace") if isinstance(content, bytes) else content
    try:
        value = json.loads(text)
    except ValueError:
        return text.strip()[:500] or "without a word"
    error = value.get("error", value) if isinstance(value, dict) else value
    return str(error.get("message", error) if isinstance(error, dict) else error)[:500]


def _library() -> Any:
    try:
        return importlib.import_module("httpx")
    except ImportError as error:
        message = "the front of vLLM's servers needs the package httpx"
        raise ConfigError(Problem("--engine vllm", message, "pip install 'lamina[serve]'")) from error
