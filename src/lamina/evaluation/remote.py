"""A model behind an OpenAI-compatible URL, as something that answers conversations.

A request that the server is too busy for, or that does not get through, is sent again after a while, several times;
then there is one clear error. The answers that came before it are handed over one by one, and stay.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any

from lamina.chat.message import Message
from lamina.errors import ConfigError, LaminaError, Problem

DEFAULT_KEY = "OPENAI_API_KEY"

# Statuses of a server that may answer the same request later.
_AGAIN = {408, 409, 425, 429, 500, 502, 503, 504, 529}
_LONGEST_WAIT = 60.0


class RemoteError(LaminaError, OSError):
    """A model behind a URL does not answer."""


@dataclass(frozen=True)
class RemoteModel:
    """A model behind an OpenAI-compatible URL.

    Attributes:
        base_url: Of the API, such as `https://api.example.org/v1`.
        model: What the server calls the model.
        key_variable: The environment variable with the API key. Where it is not set, none is sent.
        settings: Fields of every request, such as `temperature`; the server must know them.
        timeout: Seconds that one request may take.
        retries: How often one is sent again.
        at_once: Requests on their way at a time.
        sleep: Waits; tests replace it.
    """

    base_url: str
    model: str
    key_variable: str = DEFAULT_KEY
    settings: Mapping[str, Any] = field(default_factory=lambda: {"temperature": 0, "max_tokens": 1024})
    timeout: float = 120.0
    retries: int = 5
    at_once: int = 4
    sleep: Callable[[float], None] = field(default=time.sleep, repr=False, compare=False)

    def __post_init__(self) -> None:
        """
        Raises:
            ConfigError: The URL is none, or holds a password.
        """
        scheme, found, rest = self.base_url.partition("://")
        if scheme not in ("http", "https") or not found or not rest.strip("/"):
            message = f"{self.base_url!r} is no URL of an API"
            raise ConfigError(Problem("base_url", message, "write http://localhost:8000/v1 or the like"))
        if "@" in rest.partition("/")[0]:
            message = "holds a password, which would be written into results"
            raise ConfigError(Problem("base_url", message, f"set the key in {self.key_variable}"))
        if not self.model:
            raise ConfigError(Problem("model", "names no model of the server", "see its /models"))

    @property
    def digest(self) -> str:
        """SHA-256 of URL, name and settings; what answers behind them may change, and nobody is told."""
        facts = {"base_url": self.base_url.rstrip("/"), "model": self.model, "settings": dict(self.settings)}
        return "sha256:" + hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def answer(
        self,
        conversations: Sequence[Sequence[Message]],
        keep: Callable[[int, str], None] = lambda number, text: None,
    ) -> list[str]:
        """Answers conversations.

        Args:
            conversations: Each ends in a user's turn.
            keep: Called with each answer as it comes, and the number of its conversation, in this thread.

        Raises:
            ConfigError: httpx is not installed, or the server refuses a request for good.
            RemoteError: It does not answer, however often it is asked.
        """
        library = _library()
        answers: dict[int, str] = {}
        key = os.environ.get(self.key_variable, "")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        with (
            library.Client(timeout=self.timeout, headers=headers, follow_redirects=False) as client,
            ThreadPoolExecutor(self.at_once) as pool,
        ):
            waiting = iter(enumerate(conversations))
            under_way: dict[Future[str], int] = {}
            failed: BaseException | None = None
            while True:
                while failed is None and len(under_way) < self.at_once and (following := next(waiting, None)):
                    under_way[pool.submit(self._ask, client, library, following[1])] = following[0]
                if not under_way:
                    break
                for done in wait(under_way, return_when=FIRST_COMPLETED).done:
                    number = under_way.pop(done)
                    error = done.exception()
                    if error is not None:
                        failed = failed or error
                        continue
                    answers[number] = done.result()
                    keep(number, answers[number])
        if failed is not None:
            raise failed
        return [answers[number] for number in range(len(conversations))]

    def _ask(self, client: Any, library: Any, conversation: Sequence[Message]) -> str:
        url = f"{self.base_url.rstrip('/')}/chat/completions"
        turns = [{"role": turn.role, "content": turn.content} for turn in conversation]
        body = {"model": self.model, "messages": turns, **self.settings}
        reason = ""
        for attempt in range(self.retries + 1):
            if attempt:
                self.sleep(_pause(attempt, reason))
            try:
                reply = client.post(url, json=body)
            except library.TimeoutException:
                reason = f"it did not answer within {self.timeout:g} seconds"
                continue
            except library.InvalidURL as error:
                raise ConfigError(Problem("base_url", f"{self.base_url} is no URL ({error})", "correct it")) from None
            except library.TransportError as error:
                reason = f"it cannot be reached ({error or type(error).__name__})"
                continue
            if reply.status_code in _AGAIN:
                reason = f"it answered {reply.status_code}: {_said(reply.text)}" + _after(reply.headers)
                continue
            if reply.status_code != 200:
                raise self._refused(reply.status_code, _said(reply.text))
            text = _content(reply.text)
            if text is None:
                raise RemoteError(
                    f"{url}: answered what is no chat completion: {_said(reply.text)}. Fix: check the URL."
                )
            return text
        tries = f"after {self.retries + 1} tries" if self.retries else "at once"
        raise RemoteError(
            f"{url}: {self.model} gave no answer {tries}: {reason.partition(_MARK)[0]}. Fix: see that the server is "
            "up, then run again; what was answered is kept."
        )

    def _refused(self, status: int, said: str) -> ConfigError:
        fixes = {
            401: f"set the API key in the environment variable {self.key_variable}",
            403: f"check what the key in {self.key_variable} is allowed",
            404: "check the URL and the model's name",
        }
        message = f"{self.base_url} refused a request to {self.model} with {status}: {said}"
        return ConfigError(Problem("base_url", message, fixes.get(status, "correct what it names")))


# Parts the reason of a failure from the seconds that the server asked to wait for.
_MARK = "\n"


def _after(headers: Mapping[str, str]) -> str:
    seconds = headers.get("retry-after", "")
    return f"{_MARK}{seconds}" if seconds.replace(".", "", 1).isdigit() else ""


def _pause(attempt: int, reason: str) -> float:
    """Seconds to wait: as long as the server asks for, else twice as long each time, spread at random."""
    asked = reason.partition(_MARK)[2]
    if asked:
        return min(float(asked), _LONGEST_WAIT)
    return min(2.0 ** (attempt - 1), _LONGEST_WAIT) * (0.75 + random.random() / 2)


def _content(text: str) -> str | None:
    try:
        content = json.loads(text)["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError):
        return None
    return "" if content is None else content if isinstance(content, str) else None


def _said(text: str) -> str:
    """What an error's body says, in a line."""
    try:
        value = json.loads(text)
    except ValueError:
        value = text
    value = value.get("error", value) if isinstance(value, dict) else value
    value = value.get("message", value) if isinstance(value, dict) else value
    return " ".join(str(value).split())[:300] or "without a word"


def _library() -> Any:
    try:
        return importlib.import_module("httpx")
    except ImportError as error:
        message = "a model behind a URL needs the package httpx, which is not installed"
        raise ConfigError(Problem("base_url", message, "pip install 'lamina[serve]'")) from error
