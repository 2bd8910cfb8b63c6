"""Processes that `lamina train --nproc` and torchrun start: exit codes, one message, one JSON object."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
import yaml
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from lamina.distributed.failure import LostRankError
from lamina.distributed.join import join
from lamina.distributed.launch import _exit_code, count_processes, is_host, launch
from lamina.distributed.words import Words
from lamina.errors import ConfigError, Interrupted, RunError
from tests.support.training import settings


def printed(logs: Path, name: str) -> list[str]:
    return [path.read_text() for path in sorted(logs.rglob(f"{name}.log"))]


def test_every_process_runs_the_command(tmp_path: Path) -> None:
    assert launch(["version"], 3, logs=tmp_path) == 0
    assert len(set(printed(tmp_path, "stdout"))) == 1
    assert len(printed(tmp_path, "stdout")) == 3


def test_the_handlers_of_signals_are_the_callers_again(tmp_path: Path) -> None:
    """The elastic agent sets its own, and leaves them."""
    names = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(name) for name in names]
    assert launch(["version"], 1, logs=tmp_path) == 0
    assert [signal.getsignal(name) for name in names] == before


def test_one_message_and_its_exit_code(tmp_path: Path) -> None:
    """Torch is imported to hear of the others before the configuration is read, which may fail in one of them."""
    assert launch(["train", str(tmp_path / "nope.yaml"), "--json"], 2, logs=tmp_path / "logs") == 2
    assert sum(text.count("nope.yaml") > 0 for text in printed(tmp_path / "logs", "stderr")) == 1
    (answer,) = [text for text in printed(tmp_path / "logs", "stdout") if text]
    assert json.loads(answer)["error"]["type"] == "ConfigError"


def ending(codes: dict[int, int], words: Words | None = None, done: bool = False) -> tuple[int, list[str]]:
    """The exit code of processes that failed in this order, and what is said."""
    said: list[str] = []
    failures = {rank: ProcessFailure(rank, 1, code, error_file="") for rank, code in codes.items()}
    return _exit_code(ChildFailedError("lamina", failures), said.append, words, done), said


def test_the_first_that_was_killed_is_named_and_not_those_that_were_ended_for_it() -> None:
    stopped = Words(1, 75, {"message": "stopped before the run started"})
    with pytest.raises(LostRankError, match="rank 2 was ended by SIGKILL") as caught:
        ending({2: -signal.SIGKILL, 0: Interrupted.exit_code, 1: -signal.SIGTERM}, stopped)
    assert caught.value.ranks == [2]
    with pytest.raises(LostRankError, match="rank 1 was ended by SIGKILL"):
        ending({1: -signal.SIGKILL, 0: -signal.SIGTERM})


def test_who_was_not_killed_has_told_or_left_it_to_the_command() -> None:
    assert ending({1: -signal.SIGKILL, 0: 75}) == (75, [])
    with pytest.raises(Interrupted, match=r"^stopped by SIGTERM to rank 1"):
        ending({1: 75, 0: 75}, Words(0, 75, {"message": "stopped by SIGTERM to rank 1", "signal": "SIGTERM"}))


def test_a_process_that_is_killed_when_all_is_done_does_no_harm() -> None:
    for rank in (0, 1):
        code, (said,) = ending({rank: -signal.SIGKILL, 2: -signal.SIGTERM}, done=True)
        assert code == 0 and f"rank {rank} was ended by SIGKILL after all was done" in said


@pytest.mark.parametrize("text", ["0", "-1", "two", "1.5", ""])
def test_what_is_no_number_of_processes(text: str) -> None:
    with pytest.raises(ConfigError, match="--nproc"):
        count_processes(text)


def test_several_machines_need_an_endpoint() -> None:
    with pytest.raises(ConfigError, match="--rdzv-endpoint"):
        launch(["version"], 2, nnodes=2)


@pytest.mark.parametrize("endpoint", ["nowhere.invalid:29500", "localhost"])
def test_an_endpoint_that_nobody_answers_at(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a wrong name, and of a port that something else has."""
    monkeypatch.setattr("lamina.distributed.launch._REACH_SECONDS", 1)
    with socket.create_server(("localhost", 0)) as other:
        place = endpoint if ":" in endpoint else f"{endpoint}:{other.getsockname()[1]}"
        with pytest.raises(ConfigError, match="--rdzv-endpoint: no process of this run could be reached"):
            launch(["version"], 1, nnodes=2, endpoint=place)


def test_who_holds_the_place_where_all_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine whose address it is, whatever its name, if nobody there does it yet."""
    monkeypatch.setattr("lamina.distributed.launch._REACH_SECONDS", 5)
    store = dist.TCPStore("localhost", 0, None, True, wait_for_workers=False)
    assert is_host("127.0.0.1:0", "127.0.0.1")
    assert not is_host(f"127.0.0.1:{store.port}", "127.0.0.1")
    assert not is_host(f"127.0.0.1:{store.port}", "10.0.0.5")


def test_a_machine_that_does_not_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lamina.distributed.launch._MEET_SECONDS", 1)
    with pytest.raises(LostRankError, match="not all of 2 machines have come to localhost:"):
        launch(["version"], 1, nnodes=2, endpoint="localhost:0")


def test_a_signal_is_the_callers_where_nobody_reads_what_processes_say(tmp_path: Path) -> None:
    watched = tmp_path / "logs"

    def interrupt() -> None:
        while not list(watched.rglob("stderr.log")):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(Interrupted, match="stopped by SIGINT"):
        launch(["version"], 2, logs=watched)


def test_variables_of_a_launcher_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lamina.distributed.join._STORE_TIMEOUT", 0.5)
    monkeypatch.setattr("lamina.distributed.join._ATTEMPT", 0.2)
    found = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}
    for name, value in found.items():
        monkeypatch.setenv(name, value)
    for port in ("", "1"):
        monkeypatch.setenv("MASTER_PORT", port)
        with pytest.raises(RunError, match=r"process 1 of 2 by RANK and WORLD_SIZE.*unset WORLD_SIZE"):
            join()


def write_config(folder: Path, model: Path, name: str, **train: Any) -> Path:
    values = settings(folder, model, name, train={"gradient_accumulation_steps": 4, "max_steps": 4, **train})
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run([*command], capture_output=True, text=True, env=variables, timeout=300, check=False)


@pytest.mark.slow
def test_every_launcher_gives_the_same_adapter(model_folder: Path, tmp_path: Path) -> None:
    lamina = (sys.executable, "-m", "lamina", "train")
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "lamina", "train")
    answers = []
    for name, command, more in [
        ("alone", lamina, ["--nproc", "1"]),
        ("two", lamina, ["--nproc", "2"]),
        ("torchrun", torchrun, []),
    ]:
        path = write_config(tmp_path, model_folder, name)
        ended = run(*command, str(path), "--json", *more)
        assert ended.returncode == 0, ended.stderr
        answers.append(json.loads(ended.stdout))  # exactly one object
    assert len({answer["adapter_digest"] for answer in answers}) == 1
    assert [answer["world_size"] for answer in answers] == [1, 2, 2]
    assert [answer["strategy"] for answer in answers] == ["single", "ddp", "ddp"]
    for answer in answers:
        assert answer["peak_memory_bytes"] == max(answer["peak_memory_by_rank"])
        assert (answer["communication_seconds"] > 0) == (answer["world_size"] > 1)


@pytest.mark.slow
def test_options_of_every_command_reach_the_processes(model_folder: Path, tmp_path: Path) -> None:
    path = write_config(tmp_path, model_folder, "quiet")
    ended = run(sys.executable, "-m", "lamina", "--quiet", "train", str(path), "--nproc", "2")
    assert (ended.returncode, ended.stdout) == (0, "")
    assert "steps" not in ended.stderr, "no progress and no notes"


@pytest.mark.slow
def test_a_killed_process_is_started_again(model_folder: Path, tmp_path: Path) -> None:
    """The elastic agent starts all processes again, and they go on from the checkpoint."""
    killer = tmp_path / "sitecustomize.py"
    killer.write_text(
        "import os, signal, threading, time\n"
        "def kill():\n"
        f"    path = {str(tmp_path / 'cut' / 'checkpoints')!r}\n"
        "    while not (os.path.isdir(path) and os.listdir(path)): time.sleep(0.005)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "if os.environ.get('RANK') == '1' and os.environ.get('TORCHELASTIC_RESTART_COUNT') == '0':\n"
        "    threading.Thread(target=kill, daemon=True).start()\n"
    )
    path = write_config(tmp_path, model_folder, "cut", save_steps=1, max_steps=30)
    whole = write_config(tmp_path, model_folder, "whole", save_steps=1, max_steps=30)
    lamina = (sys.executable, "-m", "lamina", "train")
    paths = f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    cut = run(*lamina, str(path), "--nproc", "2", "--max-restarts", "2", "--json", PYTHONPATH=paths)
    assert cut.returncode == 0, cut.stderr
    assert "Resumed from step" in cut.stderr
    alone = run(*lamina, str(whole), "--json")
    assert json.loads(cut.stdout)["adapter_digest"] == json.loads(alone.stdout)["adapter_digest"]
