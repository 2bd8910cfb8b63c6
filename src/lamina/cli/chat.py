"""Prints answers in the terminal, and runs a chat: reads a line, streams the answer, and handles commands."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace

from rich.markup import escape

from lamina.chat.message import Message
from lamina.cli.output import err, out, print_json, print_text
from lamina.engine.generate import stream
from lamina.engine.generator import ADAPTER, Generator, Request
from lamina.engine.prompts import check_system
from lamina.engine.sampling import Sampling
from lamina.errors import DataError

HELP = "/base and /adapter switch, /reset forgets the conversation, /exit leaves"

HELP_OF_BASE = "/reset forgets the conversation, /exit leaves"


def print_answers(prompts: Sequence[str], answers: Sequence[str | DataError], as_json: bool) -> bool:
    """Prints answers, and the errors of those that failed, in order. Returns whether all were answered."""
    for number, answer in enumerate(answers, start=1):
        if isinstance(answer, DataError):
            err.print(f"[bold red]error:[/bold red] prompt {number}: {escape(str(answer))}")
        elif not as_json:
            print_text(answer)
    if as_json:
        given = [{"error": a.details()} if isinstance(a, DataError) else {"answer": a} for a in answers]
        print_json({"answers": [{"prompt": p, **a} for p, a in zip(prompts, given, strict=True)]})
    return not any(isinstance(answer, DataError) for answer in answers)


def run_chat(
    generator: Generator, sampling: Sampling, system: str | None, quiet: bool, has_adapter: bool = True
) -> list[dict[str, str]]:
    """Chats until the input ends. A line that causes an error is reported and skipped.

    Args:
        generator: Generates answers with `ADAPTER`, and without an adapter.
        sampling: How to sample answers; the seed increases by one for each answer.
        system: A system message at the start; may be None.
        quiet: Print nothing on stdout.
        has_adapter: Whether there is an adapter; without one, the base answers.

    Returns:
        The turns: each has `from` (`user`, `adapter` or `base`) and `text`.

    Raises:
        ConfigError: The chat template does not support the system message.
    """
    if system:
        check_system(generator, system)
    start = [Message("system", system)] if system else []
    conversation, said, speaker = list(start), [], "adapter" if has_adapter else "base"
    shown = HELP if has_adapter else HELP_OF_BASE
    err.print(f"[dim]{shown}[/dim]")
    if generator.template.is_bare:
        err.print("[dim]Lines are given to the model as they are, each by itself, without a chat template[/dim]")
    while (line := _read(speaker)) is not None:
        if line.startswith("/"):
            command = line[1:].strip().lower()
            if command in ("exit", "quit"):
                break
            if command in ("base", "adapter") and has_adapter:
                speaker = command
            elif command == "reset":
                conversation = list(start)
            else:
                err.print(f"[dim]{shown}[/dim]")
            continue
        if not line.strip():
            continue
        # Bare text is one prompt and its completion: every line is a prompt of its own.
        asked = [Message("user", line)] if generator.template.is_bare else [*conversation, Message("user", line)]
        try:
            generator.check(Request(messages=asked))
        except DataError as error:
            err.print(f"[bold red]error:[/bold red] {escape(str(error))}")
            err.print("[dim]The line was skipped; /reset forgets the conversation[/dim]")
            continue
        pieces, drawn = [], replace(sampling, seed=_nth(sampling.seed, len(said)))
        for piece in stream(generator, asked, drawn, adapter=ADAPTER if speaker == "adapter" else None):
            pieces.append(piece)
            if not quiet:
                out.file.write(piece)
                out.file.flush()
        if not quiet:
            out.file.write("\n")
        text = "".join(pieces).strip()
        conversation = [*asked, Message("assistant", text)]
        said += [{"from": "user", "text": line}, {"from": speaker, "text": text}]
    return said


def _nth(seed: int | None, number: int) -> int | None:
    return None if seed is None else seed + number


def _read(speaker: str) -> str | None:
    if not sys.stdin.isatty():
        line = sys.stdin.readline()
        return line.rstrip("\r\n") if line else None
    try:
        err.print(f"[bold cyan]you -> {speaker}>[/bold cyan] ", end="")
        return input()
    except EOFError:
        return None
