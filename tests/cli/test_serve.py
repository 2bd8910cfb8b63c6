"""`lamina serve` and `lamina replay` as commands: one JSON line when it is ready, exit code 0 after SIGTERM."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from lamina.runs import Run
from tests.support.cli import Cli


def start(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "lamina", "serve", *arguments]
    environment = {**os.environ, "LAMINA_API_KEY": "", "LAMINA_ADMIN_KEY": ""}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def test_a_run_is_served_until_a_signal_and_replayed(trained: Run, tmp_path: Path, cli: Cli) -> None:
    keys, log = tmp_path / "keys", tmp_path / "log.jsonl"
    keys.write_text("the-key\n")
    process = start(str(trained.path), "--port", "0", "--api-key-file", str(keys), "--log-requests", str(log), "--json")
    try:
        assert process.stdout is not None
        ready: dict[str, Any] = json.loads(process.stdout.readline())
        assert ready["models"][1:] == [trained.path.name] and ready["pid"] == process.pid
        body = {"model": trained.path.name, "messages": [{"role": "user", "content": "hm"}], "max_tokens": 4}
        headers = {"authorization": "Bearer the-key"}
        answered = httpx.post(f"{ready['url']}/v1/chat/completions", json=body, headers=headers, timeout=30)
        assert answered.status_code == 200, answered.text
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 0, err
    assert out == ""
    assert "Traceback" not in err
    assert "drawn as the model's generation_config.json says" in err
    events = [json.loads(line)["event"] for line in err.splitlines() if line.startswith("{")]
    assert events == ["ready", "request", "draining", "ending"]
    again = cli("replay", log, "--json")
    assert again.code == 0, again.err
    assert again.json()["is_same"] is True
    shown = cli("replay", log, "--adapter", f"{trained.path.name}={trained.path}", "--limit", 1)
    assert shown.out == "1 of 1 requests gave the same answers\n"
    log.write_text(re.sub(r'"token_ids": \[\d+', '"token_ids": [1', log.read_text()))
    differs = cli("replay", log)
    assert differs.code == 1
    assert "answer 0, token 0: every component is the same, so rounding decided" in differs.out


@pytest.mark.parametrize(
    ("arguments", "field", "words"),
    [
        (["m", "--no-auth", "--host", "0.0.0.0"], "--no-auth", "not loopback"),
        (["m"], "--api-key-file", "there are no API keys"),
        ([], "model", "is not given"),
        (["m", "--adapter", "x"], "--adapter", "'x' is not NAME=PATH"),
        (["m", "--adapter", "../x=y"], "adapters", "is not a name"),
        (["m", "--no-auth", "--dtype", "int8"], "dtype", "int8"),
        (["m", "--no-auth", "--config", "none.yaml"], "--config", "does not exist"),
    ],
)
def test_usage_errors(cli: Cli, monkeypatch: pytest.MonkeyPatch, arguments: list[str], field: str, words: str) -> None:
    monkeypatch.delenv("LAMINA_API_KEY", raising=False)
    monkeypatch.delenv("LAMINA_ADMIN_KEY", raising=False)
    result = cli("serve", *arguments, "--json")
    assert result.code == 2
    (problem,) = result.json()["error"]["problems"]
    assert problem["field"] == field
    assert words in result.error()


def test_what_is_not_installed_is_named(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "uvicorn" else object())
    result = cli("serve", "m", "--no-auth", "--json")
    assert result.code == 2
    assert "needs uvicorn" in result.error() and "pip install 'lamina[serve]'" in result.error()
