"""Two machines: network namespaces with a cable between them, which can be cut."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import lamina
from tests.support.training import settings

# Of this process alone: an interrupted one leaves its own behind.
HOSTS = {f"lamina-{name}-{os.getpid()}": f"10.77.5.{number}" for number, name in enumerate("ab", start=1)}
CABLE = [f"lam{os.getpid()}{end}" for end in "ab"]
PORT = 29417
started: list[subprocess.Popen[str]] = []

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@pytest.fixture
def hosts() -> Iterator[list[str]]:
    """The names of two namespaces."""
    first, second = HOSTS
    try:
        for name in HOSTS:
            ip("netns", "add", name)
        ip("link", "add", CABLE[0], "netns", first, "type", "veth", "peer", "name", CABLE[1], "netns", second)
    except (OSError, subprocess.CalledProcessError):
        for name in HOSTS:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)
        pytest.skip("no network namespaces can be made here")
    for number, (name, address) in enumerate(HOSTS.items()):
        ip("-n", name, "addr", "add", f"{address}/24", "dev", CABLE[number])
        ip("-n", name, "link", "set", CABLE[number], "up")
        ip("-n", name, "link", "set", "lo", "up")
    started.clear()
    yield list(HOSTS)
    for process in started:
        process.kill()
    for name in HOSTS:
        ip("netns", "del", name)


def start(host: str, config: Path, *more: str) -> subprocess.Popen[str]:
    endpoint = f"{next(iter(HOSTS.values()))}:{PORT}"
    command = [sys.executable, "-m", "lamina", "train", str(config), "--nproc", "1", "--nnodes", "2"]
    command += ["--rdzv-endpoint", endpoint, "--json", *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment}
    started.append(subprocess.Popen(["ip", "netns", "exec", host, *command], **pipes))
    return started[-1]


def write(folder: Path, model: Path, name: str, steps: int, timeout: float = 60.0) -> Path:
    train = {"gradient_accumulation_steps": 2, "max_steps": steps, "save_steps": 5}
    values = {**settings(folder, model, name, train=train), "distributed": {"timeout": timeout}}
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(values))
    return folder / f"{name}.yaml"


def test_two_machines_train_the_adapter_of_one(hosts: list[str], model_folder: Path, tmp_path: Path) -> None:
    path = write(tmp_path, model_folder, "two", 6)
    ended = [process.communicate(timeout=400) for process in [start(host, path) for host in hosts]]
    (answer,) = [json.loads(out) for out, _ in ended if out]
    assert answer["world_size"] == 2
    alone = lamina.train(settings(tmp_path, model_folder, "one", train={**_train(path), "max_steps": 6}))
    assert alone.summary is not None
    assert answer["adapter_digest"] == alone.summary.adapter_digest


def _train(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text())["train"]


def test_a_cut_cable_ends_both(hosts: list[str], model_folder: Path, tmp_path: Path) -> None:
    path = write(tmp_path, model_folder, "cut", 100_000, timeout=20.0)
    processes = [start(host, path) for host in hosts]
    log = tmp_path / "cut" / "metrics.jsonl"
    end = time.monotonic() + 300
    while not (log.exists() and '"event": "step"' in log.read_text()) and time.monotonic() < end:
        for process in processes:
            assert process.poll() is None, process.communicate()
        time.sleep(0.2)
    ip("-n", hosts[1], "link", "set", CABLE[1], "down")
    began = time.monotonic()
    texts = [process.communicate(timeout=200) for process in processes]
    assert time.monotonic() - began < 120
    assert all(process.returncode for process in processes)
    said = " ".join(out + err for out, err in texts)
    assert "rank" in said
    assert "Traceback" not in said
