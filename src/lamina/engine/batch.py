"""Answers a file of prompts, row by row; one that cannot be asked keeps no other from its answer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lamina.chat.message import Message
from lamina.engine.engine import Engine
from lamina.engine.generator import Piece, Request
from lamina.engine.kept_answers import KeptAnswers
from lamina.engine.sampling import Sampling
from lamina.engine.turns import turn_of
from lamina.errors import ConfigError, DataError, LaminaError, Problem

# What of an answer is kept over an interruption.
_KEPT = ("answer", "finish_reason", "prompt_tokens", "answer_tokens")


@dataclass(frozen=True)
class Answered:
    """A row with its answer or its error.

    Attributes:
        row: The row as it was read.
        answer: The answer; None for an error.
        error: Why there is none; None for an answer.
        finish_reason: Why the answer ends.
        prompt_tokens, answer_tokens: How long both are.
    """

    row: Mapping[str, Any]
    answer: str | None
    error: LaminaError | None = None
    finish_reason: str | None = None
    prompt_tokens: int = 0
    answer_tokens: int = 0

    def as_json(self) -> dict[str, Any]:
        """As plain data: the row's own fields first."""
        if self.error is not None:
            return {**self.row, "error": self.error.details()}
        counts = {"prompt_tokens": self.prompt_tokens, "answer_tokens": self.answer_tokens}
        return {**self.row, "answer": self.answer, "finish_reason": self.finish_reason, **counts}


def read_prompts(path: Path) -> list[dict[str, Any]]:
    """Reads a `.jsonl` file of prompts: an object with `prompt` or `messages`, or a string, a line.

    An object may also have `adapter` (null for the bare base), `system` and `seed`; the answers keep its other fields.

    Raises:
        DataError: The file cannot be read, or a line is none of these; the error names the line.
    """
    try:
        # At \n alone: str.splitlines also splits at characters that JSON allows in a string, such as U+2028.
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise DataError(f"{path}: cannot be read ({reason}). Fix: name a .jsonl file.") from None
    rows = [_row(path, number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    if not rows:
        raise DataError(f'{path}: has no prompts. Fix: write one a line, such as {{"prompt": "Hello"}}.')
    return rows


def answer_rows(
    engine: Engine,
    rows: list[dict[str, Any]],
    sampling: Sampling,
    *,
    adapter: str | None,
    system: str | None = None,
    kept: KeptAnswers | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> list[Answered]:
    """Answers rows of `read_prompts`, all at once.

    Args:
        engine: Answers.
        rows: What is asked.
        sampling: How it is drawn; each row's seed is this one plus its place, unless it names its own.
        adapter: What answers a row that does not say.
        system: A system turn before each prompt that has none.
        kept: Takes each answer as it comes, and has those from before an interruption.
        progress: Called with how many are answered.
    """
    results: list[Answered | None] = [None] * len(rows)
    asked: list[tuple[int, Request, str]] = []
    job = _job(engine, sampling, system)
    for number, row in enumerate(rows):
        own = row.get("seed", None if sampling.seed is None else (sampling.seed + number) % 2**64)
        name = row.get("adapter", adapter)
        key = _digest([job, name, own, row])
        before = None if kept is None else kept.get(key)
        if before is not None:
            results[number] = Answered(row, **before)
            continue
        try:
            request = Request(messages=turns_of(row, system), adapter=name, sampling=replace(sampling, seed=own))
            engine.check(request)
        except (DataError, ConfigError) as error:
            results[number] = Answered(row, None, error)
        else:
            asked.append((number, request, key))
    done = len(rows) - len(asked)
    progress(done)
    for which, piece in engine.answers([request for _, request, _ in asked]):
        number, request, key = asked[which]
        answered = results[number] = _answered(engine, rows[number], request, piece)
        if kept is not None:
            kept.keep(key, {name: getattr(answered, name) for name in _KEPT})
        done += 1
        progress(done)
    return [result for result in results if result is not None]


def _job(engine: Engine, sampling: Sampling, system: str | None) -> str:
    """A digest of everything that an answer depends on besides its row."""
    adapters = {facts.name: facts.digest for facts in engine.loaded()}
    return _digest([engine.digest, adapters, asdict(sampling), system])


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def _answered(engine: Engine, row: dict[str, Any], request: Request, piece: Piece) -> Answered:
    text = (
        piece.text if request.sampling.guide is not None else engine.template_of(request.adapter).voice.read(piece.text)
    )
    prompt = len(piece.prompt.token_ids) if piece.prompt is not None else 0
    return Answered(row, text, None, piece.finish_reason, prompt, len(piece.token_ids))


def _row(path: Path, number: int, line: str) -> dict[str, Any]:
    where = f"{path}: line {number}"
    try:
        value = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where} is not JSON ({error}). Fix: write one object a line.") from None
    row = {"prompt": value} if isinstance(value, str) else value
    if not isinstance(row, dict):
        raise DataError(f"{where} is a {type(value).__name__}. Fix: write an object with `prompt` or `messages`.")
    given = [name for name in ("prompt", "messages") if name in row]
    if len(given) != 1:
        found = " and ".join(given) or "neither"
        raise DataError(f"{where} has {found} of prompt and messages. Fix: give one of them.")
    for name, kinds in (
        ("prompt", str),
        ("messages", list),
        ("adapter", (str, type(None))),
        ("system", str),
        ("seed", int),
    ):
        if name in row and not isinstance(row[name], kinds):
            raise DataError(f"{where}: {name} is {row[name]!r}. Fix: see `lamina generate --help` for its form.")
    return row


def turns_of(row: Mapping[str, Any], system: str | None = None) -> list[Message]:
    """The conversation that a row asks, after a system turn if it has none.

    Raises:
        DataError: A message has no role or no content.
    """
    if "messages" in row:
        turns = [turn_of(turn) for turn in row["messages"]]
    else:
        turns = [Message("user", row["prompt"])]
    system = row.get("system", system)
    has_own = bool(turns) and turns[0].role == "system"
    return turns if system is None or has_own else [Message("system", system), *turns]


def check_schema(path: Path) -> str:
    """Reads a JSON schema.

    Raises:
        ConfigError: The file has none.
    """
    try:
        text = path.read_text(encoding="utf-8")
        json.loads(text)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError(Problem("--schema", f"{path} has no JSON schema ({reason})", "name a .json file")) from None
    return text
