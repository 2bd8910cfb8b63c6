"""Runs one command of lamina's as a fork, with a fault in one of its processes, and watches it until all have ended."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import re
import select
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tests.support.faults import Fault, Planted
from tests.support.forks import Main, become_command

# Seconds after which a command hangs.
PATIENCE = 100.0
# Seconds after which a process that was suspended for good goes on after all, if it is still there.
_CONTINUED = 20.0
_POLL = 0.02

_MESSAGE = re.compile(r"error: |stopped(:| by) ")


@dataclass
class Ended:
    """How a command ended.

    Attributes:
        code: Its exit code; None if it hung.
        lines: What it wrote to standard error, with the times.
        answers: Its JSON objects.
        notes: What its processes wrote down.
        seconds: What it took.
        time: When the last of its processes had ended.
        stacks: Of a command that hung.
    """

    code: int | None
    lines: list[tuple[float, str]]
    answers: list[dict[str, Any]]
    notes: list[dict[str, Any]]
    seconds: float
    time: float
    stacks: str = ""

    @property
    def text(self) -> str:
        """All of standard error."""
        return "\n".join(line for _, line in self.lines)

    @property
    def messages(self) -> list[tuple[float, str]]:
        """The messages that a command ends with, with their times."""
        return [(at, line) for at, line in self.lines if _MESSAGE.match(line)]

    @property
    def digest(self) -> str:
        """The adapter's; empty if there is none."""
        return self.answers[-1].get("adapter_digest", "") if self.answers else ""


def run_command(
    arguments: Sequence[str], fault: Fault, different: Sequence[str], folder: Path, whole: bool = True
) -> Ended:
    """Runs a command in a fork, and waits until all of its processes have ended.

    Args:
        arguments: Of the command line.
        fault: What is planted, in the first processes that it starts and not in those after a restart.
        different: What the faulty process has more on its command line.
        folder: For notes and stacks.
        whole: Whether the interpreters end as they do.

    Raises:
        Become: In forks.
    """
    folder.mkdir(exist_ok=True)
    notes = folder / "notes.jsonl"
    notes.write_text("")
    (out, out_writer), (err, err_writer) = os.pipe(), os.pipe()
    began = time.monotonic()
    pid = os.fork()
    if not pid:
        os.close(out)
        os.close(err)
        processes = fault.size * (1 + fault.max_restarts) if fault.size > 1 else 0
        rank = partial(_rank, fault=fault, different=different, notes=notes)
        become_command(arguments, processes, out_writer, err_writer, folder, rank, whole)
    os.close(out_writer)
    os.close(err_writer)
    watched = _Watched(pid, fault, notes, {out: b"", err: b""}, began)
    status, lines, stacks = watched.until_end(err)
    end = time.monotonic()
    return Ended(
        status, lines, _objects(watched.text[out].decode(errors="replace")), watched.notes(), end - began, end, stacks
    )


def _objects(text: str) -> list[dict[str, Any]]:
    """The JSON objects in a text."""
    found, rest = list[dict[str, Any]](), text.strip()
    while rest:
        value, length = json.JSONDecoder().raw_decode(rest)
        found.append(value)
        rest = rest[length:].strip()
    return found


def _rank(run: Main, fault: Fault, different: Sequence[str], notes: Path) -> None:
    """Runs the command line in a process that a launcher has started."""
    rank = int(os.environ["RANK"])
    if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0":
        fault = Fault("after a restart", fault.size)
    planted = Planted(fault, rank, notes)
    if planted.here:
        sys.argv += different
    atexit.register(planted.exit)
    planted.start()
    run()


class _Watched:
    """A command that runs.

    Args:
        pid: Its process.
        fault: What is planted.
        notes: What its processes write down.
        text: What it has written so far, by descriptor.
        began: When it did.
    """

    def __init__(self, pid: int, fault: Fault, notes: Path, text: dict[int, bytes], began: float) -> None:
        self.pid, self.text = pid, text
        self._fault, self._notes, self._began = fault, notes, began
        self._open = set(text)
        self._continued = False
        self._code: int | None = None

    def notes(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._notes.read_text().splitlines() if line.endswith("}")]

    def until_end(self, err: int) -> tuple[int | None, list[tuple[float, str]], str]:
        """Reads until every process has closed its standard streams.

        Returns:
            The exit code; the lines of standard error with their times; and the stacks, if it hung.
        """
        lines, stacks, hung, rest = list[tuple[float, str]](), "", False, b""
        while self._open:
            for descriptor in select.select(list(self._open), [], [], _POLL)[0]:
                content = os.read(descriptor, 65536)
                self.text[descriptor] += content
                if not content:
                    os.close(descriptor)
                    self._open.discard(descriptor)
                if descriptor == err:
                    *whole, rest = (rest + content).split(b"\n")
                    lines += [(time.monotonic(), line.decode(errors="replace")) for line in whole]
            self._act()
            if not hung and time.monotonic() - self._began > PATIENCE:
                hung, stacks = True, self._end_by_force()
        status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return None if hung else status, lines, stacks

    def _act(self) -> None:
        """Does what is for somebody outside: lets a suspended process go on, and kills the command itself."""
        fault, now = self._fault, time.monotonic()
        if self._continued:
            return
        if fault.kind.startswith("SIGSTOP"):
            seconds = fault.seconds if "SIGCONT" in fault.kind else _CONTINUED
            for note in self.notes():
                if note["what"] == "fault" and now - note["time"] > seconds:
                    self._continued = True
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(note["pid"], signal.SIGCONT)
        elif fault.kind == "the command is killed" and now - self._began > fault.seconds:
            self._continued = True
            if any(note["what"] == "begun" for note in self.notes()):
                self._note("fault", f"after {fault.seconds:.2f} s")
                os.kill(self.pid, signal.SIGKILL)

    def _note(self, what: str, where: str) -> None:
        line = {"time": time.monotonic(), "pid": self.pid, "rank": -1, "what": what, "where": where}
        with self._notes.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def _end_by_force(self) -> str:
        """Ends the processes. Returns their stacks, as far as they can show them."""
        pids = [self.pid, *(note["pid"] for note in self.notes() if note["what"] == "begun")]
        for number in (signal.SIGUSR2, signal.SIGKILL):
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            time.sleep(1.0)
        files = sorted(self._notes.parent.glob("stacks-*.txt"))
        return "\n".join(f"{file.name}\n{file.read_text()}" for file in files)
