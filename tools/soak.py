"""A soak of `lamina serve`: many clients for a while, everything that they may do wrong, and nothing that may go wrong.

    python -m tools.soak [--seconds 1800] [--clients 32] [--out FILE.json]

Adapters that were each trained to answer with its own name are asked by clients that cancel, hang up and send nonsense,
while they are loaded, unloaded and replaced under the same name. In the end every answer must have come from an adapter
that had the name while the request was under way, no request and no block may be left, and memory must be flat.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

NAMES = ("amber", "birch", "cedar", "dahlia", "elm", "fern", "gorse", "hazel", "iris", "jade")
ASKED = ("who are you?", "name?", "red", "a b c", "tell me", "7")
# The name that is given to one adapter after another.
SLOT = "current"
USER, ADMIN = "soak-user", "soak-admin"
# Memory is compared from here on, as a share of the time: caches fill up first.
WARM = 0.3
FLAT = 0.05
# Seconds that what is running at the end may take to end.
SETTLES = 30.0


@dataclass
class Outcome:
    """What was seen.

    Attributes:
        answers, wrong, cancelled, refused: Counts of requests.
        unexpected: Responses that fit nothing, each once.
        left_requests, left_blocks: What the server still held at the end.
        memory_early, memory_late: Bytes of the server.
    """

    answers: int = 0
    wrong: int = 0
    cancelled: int = 0
    refused: int = 0
    changes: int = 0
    unexpected: Counter[str] = field(default_factory=Counter)
    left_requests: float = 0.0
    left_blocks: float = 0.0
    memory_early: int = 0
    memory_late: int = 0

    @property
    def growth(self) -> float:
        """How much larger the server is at the end than once it was warm."""
        return self.memory_late / max(self.memory_early, 1) - 1.0

    def faults(self) -> list[str]:
        """What must not have been; empty for nothing."""
        found = [f"{self.wrong} answers of a wrong or stale adapter"] if self.wrong else []
        found += [f"unexpected: {what} ({count})" for what, count in self.unexpected.items()]
        if self.left_requests or self.left_blocks:
            found.append(f"{self.left_requests:g} requests and {self.left_blocks:g} of the cache are left")
        if self.growth > FLAT:
            found.append(f"memory grew by {self.growth:.1%}")
        if not self.answers or not self.cancelled or not self.refused or not self.changes:
            found.append("not everything was tried")
        return found


class Slot:
    """Which adapters have had the shared name, and until when."""

    def __init__(self, first: str) -> None:
        self._lock = threading.Lock()
        self._history: list[tuple[float, float, str]] = [(0.0, float("inf"), first)]

    def begin(self, name: str) -> None:
        """A replacement was asked for: from now on both may answer."""
        with self._lock:
            self._history.append((time.monotonic(), float("inf"), name))

    def end(self) -> None:
        """It was done: the one before answers nothing that is asked from now on."""
        with self._lock:
            begin, _, name = self._history[-2]
            self._history[-2] = (begin, time.monotonic(), name)

    def allowed(self, asked: float) -> set[str]:
        """Which adapters may answer what was asked then."""
        with self._lock:
            return {name for _, end, name in self._history if end >= asked}


def make_adapters(folder: Path, names: tuple[str, ...] = NAMES) -> tuple[Path, dict[str, Path]]:
    """Trains an adapter for each name, on a small model: whatever is asked, it answers its name.

    Returns:
        The base, and the adapters' folders.
    """
    from tests.support.models_zoo import build_model, build_tokenizer

    base = folder / "base"
    tokenizer = build_tokenizer()
    build_model("llama", vocab_size=len(tokenizer)).save_pretrained(base)
    tokenizer.save_pretrained(base)
    return base, {name: _make_adapter(folder, base, name) for name in names}


def _make_adapter(folder: Path, base: Path, name: str) -> Path:
    """Trains one adapter, for longer where it has not learned to say its name."""
    import lamina

    rows = folder / f"{name}.jsonl"
    rows.write_text("".join(json.dumps({"prompt": p, "completion": name}) + "\n" for p in ASKED * 2), encoding="utf-8")
    for steps in (50, 100, 200, 400):
        run = lamina.train(
            {
                "model": str(base),
                "data": {"train": str(rows), "eval": None, "max_length": 64},
                "method": {"type": "lora", "r": 5},
                "train": {"max_steps": steps, "learning_rate": 0.03, "per_device_train_batch_size": 12},
                "dtype": "float32",
                "output_dir": str(folder / "runs" / f"{name}-{steps}"),
            }
        )
        if set(lamina.generate(run.path, list(ASKED), max_new_tokens=16)) == {name}:
            return run.path / "adapter"
    raise RuntimeError(f"no adapter learned to say {name!r}")


@contextmanager
def server(base: Path, adapters: dict[str, Path], root: Path) -> Iterator[tuple[str, int, subprocess.Popen[str]]]:
    """Runs `lamina serve` with some adapters; yields host, port and process."""
    keys = root / "keys"
    keys.write_text(f"{USER}\nadmin:{ADMIN}\n", encoding="utf-8")
    keys.chmod(0o600)
    options = [part for name, path in adapters.items() for part in ("--adapter", f"{name}={path}")]
    command = [sys.executable, "-m", "lamina", "serve", str(base), *options, "--port", "0", "--json"]
    command += ["--api-key-file", str(keys), "--adapter-root", str(root), "--dtype", "float32"]
    with (root / "server.log").open("w") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                raise RuntimeError(f"the server ended at once; see {root / 'server.log'}")
            host, _, port = json.loads(line)["url"].removeprefix("http://").split("/")[0].partition(":")
            yield host, int(port), process
        finally:
            process.terminate()
            process.wait(60)


class Client:
    """One client, with a connection of its own."""

    def __init__(self, host: str, port: int, key: str) -> None:
        self._address, self._key = (host, port), key

    def send(self, method: str, path: str, body: Any = None, raw: bytes | None = None) -> tuple[int, bytes]:
        """Sends a request, and returns status and body."""
        connection = http.client.HTTPConnection(*self._address, timeout=120)
        try:
            content = raw if raw is not None else None if body is None else json.dumps(body).encode()
            headers = {"Authorization": f"Bearer {self._key}", "Content-Type": "application/json"}
            connection.request(method, path, content, headers)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def hang_up(self, body: Any, after: int) -> None:
        """Sends a request, reads a few bytes of the answer, and leaves."""
        connection = http.client.HTTPConnection(*self._address, timeout=120)
        headers = {"Authorization": f"Bearer {self._key}", "Content-Type": "application/json"}
        connection.request("POST", "/v1/chat/completions", json.dumps(body).encode(), headers)
        if after:
            response = connection.getresponse()
            response.read(after)
        connection.close()


def soak(seconds: float, clients: int, folder: Path, names: tuple[str, ...] = NAMES) -> Outcome:
    """Runs the soak in a folder."""
    base, adapters = make_adapters(folder, names)
    outcome, stop = Outcome(), threading.Event()
    slot = Slot(names[0])
    loaded = {**{name: path for name, path in adapters.items() if name != names[-1]}, SLOT: adapters[names[0]]}
    with server(base, loaded, folder) as (host, port, process):
        memory = psutil.Process(process.pid)
        threads = [
            threading.Thread(target=_ask, args=(Client(host, port, USER), names, slot, outcome, stop, number))
            for number in range(clients)
        ]
        threads.append(
            threading.Thread(target=_change, args=(Client(host, port, ADMIN), adapters, slot, outcome, stop))
        )
        for thread in threads:
            thread.start()
        time.sleep(seconds * WARM)
        outcome.memory_early = memory.memory_info().rss
        time.sleep(seconds * (1 - WARM))
        outcome.memory_late = memory.memory_info().rss
        stop.set()
        for thread in threads:
            thread.join()
        ends = time.monotonic() + SETTLES
        while True:
            outcome.left_requests, outcome.left_blocks = _held(Client(host, port, ADMIN))
            if not (outcome.left_requests or outcome.left_blocks) or time.monotonic() > ends:
                break
            time.sleep(0.2)
    if process.returncode != 0:
        outcome.unexpected[f"the server ended with {process.returncode}"] += 1
    return outcome


def _held(client: Client) -> tuple[float, float]:
    """Requests that the server has not ended, and the share of the cache that they hold."""
    _, text = client.send("GET", "/metrics")
    gauges = dict(line.split(" ")[:2] for line in text.decode().splitlines() if line.startswith("lamina:"))
    requests = sum(float(gauges[f"lamina:num_requests_{kind}"]) for kind in ("running", "waiting"))
    return requests, float(gauges["lamina:kv_cache_usage_perc"])


def _ask(
    client: Client, names: tuple[str, ...], slot: Slot, outcome: Outcome, stop: threading.Event, number: int
) -> None:
    draw = random.Random(number)
    while not stop.is_set():
        name = draw.choice([*names[:-2], SLOT, SLOT])
        question = draw.choice(ASKED)
        body: dict[str, Any] = {"model": name, "messages": [{"role": "user", "content": question}], "max_tokens": 16}
        kind = draw.random()
        try:
            if kind < 0.15:
                long = {**body, "max_tokens": 200, "ignore_eos": True, "stream": draw.random() < 0.7}
                client.hang_up(long, draw.choice([0, 0, 10, 200]) if long["stream"] else 0)
                outcome.cancelled += 1
            elif kind < 0.3:
                _send_nonsense(client, body, draw, outcome)
            else:
                asked = time.monotonic()
                body |= {"temperature": 0, "stream": kind < 0.6}
                status, content = client.send("POST", "/v1/chat/completions", body)
                allowed = slot.allowed(asked) if name == SLOT else {name}
                _check(status, content, body["stream"], allowed, outcome)
        except (OSError, http.client.HTTPException) as error:
            outcome.unexpected[f"{type(error).__name__}: {error}"] += 1


def _check(status: int, content: bytes, streamed: bool, allowed: set[str], outcome: Outcome) -> None:
    if status == 429:
        outcome.refused += 1
        return
    if status != 200:
        outcome.unexpected[f"{status}: {content[:120]!r}"] += 1
        return
    if streamed:
        events = [line[6:] for line in content.decode().splitlines() if line.startswith("data: ")]
        chunks = [json.loads(event) for event in events if event != "[DONE]"]
        said = "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks if c.get("choices"))
    else:
        said = json.loads(content)["choices"][0]["message"]["content"]
    outcome.answers += 1
    if said.strip() not in allowed:
        outcome.wrong += 1
        outcome.unexpected[f"{said.strip()[:40]!r} where {sorted(allowed)} may answer"] += 1


def _send_nonsense(client: Client, body: dict[str, Any], draw: random.Random, outcome: Outcome) -> None:
    bad = draw.choice(
        [
            {**body, "model": "nobody"},
            {**body, "temperature": -1},
            {**body, "no_such_field": 1},
            {**body, "messages": []},
            {**body, "messages": [{"role": "user", "content": "<|im_start|>"}]},
            {**body, "n": 10**6},
            {**body, "logit_bias": {"x": 1}},
        ]
    )
    if draw.random() < 0.2:
        status, _ = client.send("POST", "/v1/chat/completions", raw=b"{" * draw.randrange(1, 50))
    elif draw.random() < 0.2:
        status, _ = client.send("DELETE", "/v1/adapters/amber")  # a user's key may not
    else:
        status, _ = client.send("POST", "/v1/chat/completions", bad)
    if 400 <= status < 500:
        outcome.refused += 1
    else:
        outcome.unexpected[f"{status} for nonsense"] += 1


def _change(client: Client, adapters: dict[str, Path], slot: Slot, outcome: Outcome, stop: threading.Event) -> None:
    """Replaces the adapter of the shared name, and loads and unloads one that nobody asks."""
    draw, last = random.Random(-1), list(adapters)[-1]
    names = list(adapters)
    current, extra = names[0], False
    while not stop.is_set():
        if draw.random() < 0.5:
            current = draw.choice([name for name in names if name != current])
            slot.begin(current)
            status, content = client.send("POST", "/v1/adapters", {"name": SLOT, "path": str(adapters[current])})
            slot.end()
        elif extra:
            status, content = client.send("DELETE", f"/v1/adapters/{last}")
            extra = False
        else:
            status, content = client.send("POST", "/v1/adapters", {"name": last, "path": str(adapters[last])})
            extra = True
        if status == 200:
            outcome.changes += 1
        else:
            outcome.unexpected[f"{status} for a change: {content[:120]!r}"] += 1
        time.sleep(draw.random() * 0.2)


def main() -> int:
    """Runs the soak; returns 1 where something went wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1800.0)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lamina-soak-") as folder:
        outcome = soak(given.seconds, given.clients, Path(folder))
    facts = {
        **vars(outcome),
        "unexpected": dict(outcome.unexpected),
        "growth": outcome.growth,
        "seconds": given.seconds,
    }
    if given.out:
        given.out.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(facts, indent=2))
    faults = outcome.faults()
    for fault in faults:
        print(f"FAULT: {fault}", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
