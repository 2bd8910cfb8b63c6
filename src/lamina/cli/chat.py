"""The terminal chat: a loop of reading a line, streaming an answer, and a few commands."""

from __future__ import annotations

import contextlib
import sys

from lamina.cli.output import err, out
from lamina.data.example import Message
from lamina.evaluation.generate import stream
from lamina.methods.load import Loaded

HELP = "/base and /adapter switch, /reset forgets the conversation, /exit leaves"


def run_chat(
    loaded: Loaded, system: str | None, max_new_tokens: int, temperature: float, quiet: bool
) -> list[dict[str, str]]:
    """Chats until the input ends.

    Args:
        loaded: Base and adapter.
        system: A system turn to begin with.
        max_new_tokens: Longest answer.
        temperature: 0 is greedy.
        quiet: Print nothing on stdout.

    Returns:
        What was said: `from` (`user`, `adapter` or `base`) and `text` of each turn.
    """
    start = [Message("system", system)] if system else []
    conversation, said, speaker = list(start), [], "adapter"
    err.print(f"[dim]{HELP}[/dim]")
    while (line := _read(speaker)) is not None:
        if line.startswith("/"):
            command = line[1:].strip().lower()
            if command in ("exit", "quit"):
                break
            if command in ("base", "adapter"):
                speaker = command
            elif command == "reset":
                conversation = list(start)
            else:
                err.print(f"[dim]{HELP}[/dim]")
            continue
        if not line.strip():
            continue
        conversation.append(Message("user", line))
        said.append({"from": "user", "text": line})
        with loaded.injection.disabled() if speaker == "base" else contextlib.nullcontext():
            pieces = []
            for piece in stream(loaded, conversation, max_new_tokens=max_new_tokens, temperature=temperature):
                pieces.append(piece)
                if not quiet:
                    out.file.write(piece)
                    out.file.flush()
        if not quiet:
            out.file.write("\n")
        text = "".join(pieces).strip()
        conversation.append(Message("assistant", text))
        said.append({"from": speaker, "text": text})
    return said


def _read(speaker: str) -> str | None:
    if not sys.stdin.isatty():
        line = sys.stdin.readline()
        return line.rstrip("\n") if line else None
    try:
        err.print(f"[bold cyan]you -> {speaker}>[/bold cyan] ", end="")
        return input()
    except EOFError:
        return None
