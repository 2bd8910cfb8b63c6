"""`replay`: answers logged requests again, on the same base and adapters, and says what differs if an answer does."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from lamina.chat.template import ChatTemplate
from lamina.config.quantization import QuantizationConfig
from lamina.engine.admission import template_for
from lamina.engine.engine import Engine
from lamina.engine.generator import Generator, Piece, Request
from lamina.engine.sampling import Sampling
from lamina.engine.serving import Serving
from lamina.engine.store import AdapterFacts
from lamina.errors import ConfigError, DataError, LaminaError, Problem
from lamina.models.load import Base, load_base
from lamina.progress import Notify
from lamina.server.fingerprint import fingerprint, read_sampling


@dataclass(frozen=True)
class Replayed:
    """One request, answered again.

    Attributes:
        id: Of the answer in the log.
        is_same: Whether every token is the same.
        differs: Components that are not what they were: `base`, `template`, `engine`, `adapter` or `sampling`.
        reason: What is different, in a sentence; empty if nothing is.
    """

    id: str
    is_same: bool
    differs: tuple[str, ...] = ()
    reason: str = ""


@dataclass
class Replay:
    """All of them.

    Attributes:
        answers: Each.
        parts: Components of the engine that are not what they were -> what they were and are.
    """

    answers: list[Replayed] = field(default_factory=list)
    parts: dict[str, tuple[str, str]] = field(default_factory=dict)

    @property
    def is_same(self) -> bool:
        """Whether every answer is the same."""
        return all(answer.is_same for answer in self.answers)

    def as_json(self) -> dict[str, Any]:
        """As plain data."""
        parts = {name: {"logged": old, "now": new} for name, (old, new) in self.parts.items()}
        same = sum(answer.is_same for answer in self.answers)
        answers = [asdict(answer) for answer in self.answers]
        return {"requests": len(answers), "same": same, "is_same": self.is_same, "differs": parts, "answers": answers}

    def lines(self) -> Iterator[str]:
        """Sentences for people."""
        for name, (old, new) in self.parts.items():
            yield f"{name} differs: it was {old}, and is {new}"
        for answer in self.answers:
            if not answer.is_same:
                yield f"{answer.id}: {answer.reason}"
        yield f"{sum(answer.is_same for answer in self.answers)} of {len(self.answers)} requests gave the same answers"


@dataclass(frozen=True)
class Log:
    """A log of requests.

    Attributes:
        server: What answered: the base, and its parts.
        answers: What was asked and answered, in turn.
    """

    server: Mapping[str, Any]
    answers: list[Mapping[str, Any]]


def read_log(path: Path, limit: int | None = None) -> Log:
    """Reads a log of requests: those that the last server in it answered.

    Raises:
        DataError: It is none.
    """
    server: Mapping[str, Any] | None = None
    answers: list[Mapping[str, Any]] = []
    try:
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}). Fix: check the path.") from None
    for number, line in enumerate(lines, start=1):
        try:
            value = json.loads(line)
            kind = value["type"]
        except (ValueError, TypeError, KeyError, RecursionError):
            if number == len(lines):
                break  # the server was killed while it wrote
            raise DataError(f"{path}: line {number} is no line of a request log. Fix: leave it out.") from None
        if kind == "server":
            server, answers = value, []
        elif kind == "answer":
            answers.append(value)
    if server is None:
        raise DataError(f"{path}: does not say what answered. Fix: use a file of lamina serve --log-requests.")
    return Log(server, answers if limit is None else answers[-limit:])


def replay(
    path: str | Path,
    *,
    model: str | None = None,
    adapters: Mapping[str, str] | None = None,
    limit: int | None = None,
    notify: Notify = lambda message: None,
) -> Replay:
    """Answers the requests of a log again.

    Args:
        path: A file of `lamina serve --log-requests`.
        model: The base; by default the one that answered.
        adapters: Name -> folder of adapters that are now elsewhere.
        limit: Replay only the last so many requests.
        notify: Called with a sentence before anything that takes a while.

    Raises:
        ConfigError, DataError, ModelError: The log or the base cannot be used.
    """
    log = read_log(Path(path), limit)
    base = _base(log, model, notify)
    moved = dict(adapters or {})
    with Engine(base, template=_template(base, {**log.server.get("adapters", {}), **moved}), notify=notify) as engine:
        return replay_on(engine, log, moved, notify)


def _base(log: Log, model: str | None, notify: Notify) -> Base:
    """The base that answered, held as it was.

    Raises:
        DataError: The log does not say which.
    """
    packed = log.server.get("quantization")
    try:
        dtype = str(log.server["parts"]["engine.dtype"]).removeprefix("torch.")
        ref = model or str(log.server["base"])
        quantization = QuantizationConfig(**packed) if packed else None
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"the log's server line cannot be read ({error!r}). Fix: use the file as written.") from None
    return load_base(ref, dtype, notify=notify, quantization=quantization)


def _template(base: Base, adapters: Mapping[str, str]) -> ChatTemplate | None:
    """The template that rendered the prompts; None for the model's own, where the adapter that brought it is gone."""
    try:
        return template_for(base, adapters)
    except LaminaError:
        return None


def replay_on(engine: Serving, log: Log, adapters: Mapping[str, str], notify: Notify = lambda message: None) -> Replay:
    """Answers the requests of a log again on an engine, each adapter loaded as it is now."""
    logged, now = dict(log.server.get("parts") or {}), dict(engine.parts)
    names = logged.keys() | now.keys()
    parts = {
        name: (str(logged.get(name)), str(now.get(name))) for name in sorted(names) if logged.get(name) != now.get(name)
    }
    result = Replay(parts=parts)
    known = _Adapters(engine, adapters, notify)
    for number, record in enumerate(log.answers, start=1):
        notify(f"Replaying {number} of {len(log.answers)} ...")
        result.answers.append(
            _again(engine, log, record, known, tuple(sorted({name.partition(".")[0] for name in parts})))
        )
    return result


class _Adapters:
    """The adapters that answered, each folder loaded once: one name may have stood for several in turn."""

    def __init__(self, engine: Serving, moved: Mapping[str, str], notify: Notify) -> None:
        """
        Args:
            engine: Loads them.
            moved: Name -> folder of adapters that are now elsewhere.
            notify: Called with a sentence before each is loaded.
        """
        self._engine, self._moved, self._notify = engine, moved, notify
        self._loaded: dict[tuple[str, str], AdapterFacts | LaminaError] = {}

    def find(self, name: str, path: str | None, digest: str | None) -> AdapterFacts:
        """Loads what a name stood for.

        Args:
            name: The name.
            path: The folder that it stood for then.
            digest: Of the adapter that answered; of the folder given now and that of then, the one that has it is
                taken, or else the first that can be loaded.

        Raises:
            LaminaError: There is none.
        """
        places = list(dict.fromkeys(place for place in (self._moved.get(name), path) if place))
        if not places:
            raise ConfigError(Problem("--adapter", f"{name!r} has no path in the log", f"give {name}=PATH"))
        found: list[AdapterFacts | LaminaError] = []
        for place in places:
            found.append(self._load(name, place))
            if isinstance(found[-1], AdapterFacts) and found[-1].digest == digest:
                return found[-1]
        usable = next((each for each in found if isinstance(each, AdapterFacts)), None)
        if usable is None:
            raise next(each for each in found if isinstance(each, LaminaError))
        return usable

    def _load(self, name: str, place: str) -> AdapterFacts | LaminaError:
        key = (name, place)
        if key not in self._loaded:
            count = sum(known == name for known, _ in self._loaded)
            self._notify(f"Loading the adapter {name} from {place} ..." if count else f"Loading the adapter {name} ...")
            try:
                self._loaded[key] = self._engine.load(f"{name}#{count + 1}" if count else name, place)
            except LaminaError as error:
                self._loaded[key] = error
        return self._loaded[key]


def _again(
    engine: Generator,
    log: Log,
    record: Mapping[str, Any],
    known: _Adapters,
    differs: tuple[str, ...],
) -> Replayed:
    """Answers one request again, and compares."""
    identity = str(record.get("id"))
    try:
        sampling = read_sampling(record["sampling"])
        prompts, answers, n = record["prompts"], record["answers"], int(record["n"])
        adapter = record.get("adapter")
        name, path = (adapter["name"], adapter.get("path")) if adapter else (None, None)
        digests = [answer["digest"] for answer in answers]
        tokens = [list(answer["token_ids"]) for answer in answers]
        whole = fingerprint(str(log.server["engine"]), digests[0], sampling)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        return Replayed(identity, False, ("sampling",), f"its record cannot be read: {error!r}")
    if whole != record.get("fingerprint"):
        differs = (*differs, "sampling")
    if name is not None:
        try:
            found = known.find(name, path, digests[0])
        except LaminaError as error:
            return Replayed(identity, False, (*differs, "adapter"), f"the adapter {name!r} cannot be loaded: {error}")
        name = found.name
        if any(digest != found.digest for digest in digests):
            differs = (*differs, "adapter")
    try:
        pieces = engine.generate(_requests(prompts, n, name, sampling, tokens))
    except LaminaError as error:
        return Replayed(identity, False, differs, f"it cannot be answered now: {error}")
    return _compared(identity, tokens, pieces, differs)


def _requests(
    prompts: list[list[int]], n: int, adapter: str | None, sampling: Sampling, tokens: list[list[int]]
) -> list[Request]:
    """The requests as they were: an answer that had no room for more ends where it did."""
    requests = []
    for number, answered in enumerate(tokens):
        most = max(1, min(sampling.max_tokens, len(answered)))
        own = replace(sampling, max_tokens=most, min_tokens=min(sampling.min_tokens, most))
        requests.append(Request(token_ids=prompts[number // n], adapter=adapter, sampling=own, choice=number % n))
    return requests


def _compared(identity: str, tokens: list[list[int]], pieces: list[Piece], differs: tuple[str, ...]) -> Replayed:
    for number, (old, piece) in enumerate(zip(tokens, pieces, strict=True)):
        new = list(piece.token_ids)
        if old != new:
            place = next(
                (at for at, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new))
            )
            cause = " and ".join(differs)
            why = (
                f"{cause} differ{'s' if len(differs) == 1 else ''} from then"
                if differs
                else ("every component is the same, so rounding decided: the engine computed it in another batch")
            )
            return Replayed(identity, False, differs or ("engine",), f"answer {number}, token {place}: {why}")
    return Replayed(identity, True, differs)
