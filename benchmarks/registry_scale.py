"""Times of a registry with 100,000 versions and 100,000 aliases, through Python and through the command line.

    python benchmarks/registry_scale.py [--versions 100000] [--folder build/registry] [--postgres]

Half of the versions are in one entry, the other half in entries of a hundred. Rows are written as `add` and `alias`
write them, in large transactions; of the blobs, only those that are read are there.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from tests.support.postgres import running_postgres
from tests.support.registry import make_adapter, make_record

from lamina.registry.adding import insert, put
from lamina.registry.aliases import Reason, move
from lamina.registry.manifest import build_manifest
from lamina.registry.registry import Registry

PER_ENTRY = 100
REPEATS = 7
LIMIT = 0.3


def fill(place: str, work: Path, count: int) -> None:
    """Writes the rows."""
    with Registry(place, who="bench") as registry:
        first = build_manifest(make_adapter(work / "a"))
        sources = {file.sha256: work / "a" / file.name for file in first.files}
        names = ["large"] * (count // 2) + [f"entry-{number // PER_ENTRY:04}" for number in range(count - count // 2)]
        done = 0
        for start in range(0, count, 5000):
            with registry.records.writing() as tx:
                for number in range(start, min(start + 5000, count)):
                    manifest = replace(first, settings={"number": number}, adapter_digest=f"sha256:{number:064x}")
                    added = insert(tx, names[number], manifest, "bench", {})
                    reason = Reason("alias", "bench")
                    move(tx, added.version.entry_id, f"alias-{added.version.number}", None, added.version, reason)
                    if number in _read(count):
                        put(registry.blobs, manifest, sources)
                    done += 1
            print(f"{done:,} versions and aliases", file=sys.stderr)


def _read(count: int) -> tuple[int, ...]:
    """The versions whose manifests are read: three of the large entry."""
    return (0, count // 4, count // 2 - 1)


def measure(place: str, count: int) -> dict[str, dict[str, float]]:
    """Times each verb: seconds, the median and the largest."""
    half, found = count // 2, {}
    with Registry(place, who="bench") as registry:
        one, two, three = (registry.find(f"large:{number + 1}") for number in _read(count))
        for candidate, against in ((one, None), (two, one), (one, two), (three, one)):
            registry.store_record(make_record(candidate, against))
        if not any(state.alias == "prod" for state in registry.aliases("large")):
            registry.promote(one.ref, "prod")
    turn = [two.ref, one.ref]

    def promoted(registry: Registry) -> None:
        assert registry.promote(turn[0], "prod").changed
        turn.reverse()

    verbs: dict[str, Callable[[Registry], object]] = {
        "ls": lambda registry: registry.entries(),
        "ls NAME": lambda registry: (registry.versions("large"), registry.aliases("large")),
        "show NAME:VERSION": lambda registry: registry.show(f"large:{half}"),
        "show NAME@ALIAS": lambda registry: registry.show(f"large@alias-{half}"),
        "show NAME@DIGEST": lambda registry: registry.show(f"large@{three.digest[:16]}"),
        "history": lambda registry: registry.history("large@prod"),
        "promote": promoted,
    }
    for name, verb in verbs.items():
        times = []
        for _ in range(REPEATS):
            begun = time.perf_counter()
            with Registry(place, who="bench") as registry:
                verb(registry)
            times.append(time.perf_counter() - begun)
        found[f"python: {name}"] = {"median": statistics.median(times), "largest": max(times)}
    lines = {
        "ls": ["registry", "ls"],
        "ls NAME": ["registry", "ls", "large"],
        "show": ["registry", "show", f"large@alias-{half}"],
        "promote": ["promote", "", "--to", "prod"],
    }
    for name, words in lines.items():
        times = []
        for _ in range(REPEATS):
            command = [sys.executable, "-m", "lamina", *words, "--registry", place]
            if name == "promote":
                command[4] = turn[0]
                turn.reverse()
            begun = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=dict(os.environ))
            times.append(time.perf_counter() - begun)
        found[f"command: {name}"] = {"median": statistics.median(times), "largest": max(times)}
    return found


@contextlib.contextmanager
def place_of(folder: Path, postgres: bool) -> Iterator[str]:
    """Where the registry is."""
    if not postgres:
        yield str(folder / "registry")
        return
    with running_postgres() as server:
        yield server.new_database(folder / "blobs")


def main() -> None:
    """Fills a registry and prints its times as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--versions", type=int, default=100_000)
    parser.add_argument("--folder", type=Path, default=Path("build/registry"))
    parser.add_argument("--postgres", action="store_true")
    given = parser.parse_args()
    shutil.rmtree(given.folder, ignore_errors=True)
    folder = given.folder.resolve()
    with place_of(folder, given.postgres) as place:
        begun = time.perf_counter()
        fill(place, folder, given.versions)
        filled = time.perf_counter() - begun
        times = measure(place, given.versions)
    slow = sorted(name for name, each in times.items() if each["median"] >= LIMIT)
    print(json.dumps({"versions": given.versions, "filled_in": filled, "slow": slow, "seconds": times}, indent=2))


if __name__ == "__main__":
    main()
