"""Kills processes that change a registry at random moments, and looks whether it is whole each time."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lamina.registry.registry import Registry
from tests.support.registry import make_adapter

ROOT = Path(__file__).resolve().parents[2]
# Refusals that are right: nothing to go back to, nothing to promote, or a version that gc has taken.
ALLOWED = (
    "no way back",
    "has no alias",
    "the registry has no",
    "has removed its files",
    "has no versions",
    "no 'newest'",
)


@dataclass
class Outcome:
    """What was seen.

    Attributes:
        kills: How many processes were killed.
        done: How often each thing was done before, by kind.
        problems: What was wrong afterwards.
    """

    kills: int = 0
    done: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def kill_often(place: str, work: Path, kills: int, seed: int, *, longest: float = 0.6) -> Outcome:
    """Lets two processes at a time change a registry, and kills them after random times.

    Args:
        place: The registry.
        work: A folder for adapters and an export.
        kills: How many processes to kill.
        seed: Of all that is random.
        longest: Seconds that a process may work.
    """
    work.mkdir(parents=True, exist_ok=True)
    for number in range(6):
        make_adapter(work / f"a{number}", seed=number)
    with Registry(work / "other") as other:
        for number in (3, 4):
            other.add(work / f"a{number}", "support")
        other.set_alias("support:1", "stage")
        other.export(["support"], work / "x.tar")
    draw, found = random.Random(seed), Outcome()
    while found.kills < kills:
        count = min(2, kills - found.kills)
        workers = [_start(place, work, draw.randrange(10**6)) for _ in range(count)]
        for worker in workers:
            assert worker.stdout is not None and json.loads(worker.stdout.readline())["kind"] == "ready"
        for worker in workers:
            time.sleep(draw.uniform(0.0, longest / count))
            os.kill(worker.pid, signal.SIGKILL)
        lines = [line for worker in workers for line in _told(worker, found)]
        found.kills += count
        _check(place, lines, found)
    return found


def _start(place: str, work: Path, seed: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.support.registry_process", place, str(work), f"worker-{seed}", str(seed)]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "LAMINA_CACHE": str(work / "cache")}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=ROOT
    )


def _told(worker: subprocess.Popen[str], found: Outcome) -> list[dict[str, Any]]:
    out, errors = worker.communicate()
    if worker.returncode != -signal.SIGKILL:
        found.problems.append(f"a process ended by itself: {errors}")
    lines = [json.loads(line) for line in out.splitlines() if line.endswith("}")]
    for line in lines:
        found.done[line["kind"]] = found.done.get(line["kind"], 0) + 1
        if line["kind"] == "refused" and not any(words in line["value"] for words in ALLOWED):
            found.problems.append(line["value"])
    return lines


def _check(place: str, lines: list[dict[str, Any]], found: Outcome) -> None:
    """Whether the registry verifies, and has what was told."""
    with Registry(place) as registry:
        found.problems += registry.verify().problems
        for line in lines:
            if line["kind"] == "add":
                registry.find(f"{line['name']}@{line['value']}")  # gc may have taken its files, and never its row
            if line["kind"] == "promote":
                after = {change.after for change in registry.history(line["name"], 10**6)}
                if line["value"] not in after:
                    found.problems.append(f"{line['name']}: the promotion of {line['value']} is lost")
        for entry in registry.entries()[0]:
            for state in registry.aliases(entry.name):
                registry.manifest(state.version)
                if state.version.removed is not None:
                    found.problems.append(f"{state.ref} points at what was removed")
