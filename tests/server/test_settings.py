"""Settings of a server: a file, flags above it, and one clear error for what is not allowed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from lamina.config.section import describe_fields
from lamina.errors import ConfigError
from lamina.server.settings import ServeSettings, read_settings

FILE = """
model: smollm2-135m
adapters: {support: runs/a, sql: runs/b}
port: 9000
limits: {n: 4, request_seconds: 30}
aliases:
  live: {weights: {support: 90, sql: 10}, sticky: "header:x-tenant"}
shadow:
  - {of: live, to: sql, share: 0.5}
"""


def test_flags_stand_above_the_file(tmp_path: Path) -> None:
    path = tmp_path / "serve.yaml"
    path.write_text(FILE)
    flags = {"port": 0, "adapters": {"sql": "runs/c", "new": "runs/d"}, "host": None, "model": None, "no_auth": True}
    settings = read_settings(path, flags)
    assert settings.model == "smollm2-135m"
    assert settings.adapters == {"support": "runs/a", "sql": "runs/c", "new": "runs/d"}
    assert (settings.port, settings.host, settings.no_auth) == (0, "127.0.0.1", True)
    assert (settings.limits.n, settings.limits.request_seconds, settings.limits.stop) == (4, 30, 16)
    assert settings.aliases["live"].sticky == "header:x-tenant"
    assert settings.shadow[0].share == 0.5


def test_flags_of_a_section_change_what_they_name_alone(tmp_path: Path) -> None:
    path = tmp_path / "serve.yaml"
    path.write_text("model: m\nengine: vllm\nvllm: {arguments: [--max-model-len=64], adapter_folder: /shared}\n")
    changed = read_settings(path, {"vllm": {"replicas": 2}}).vllm
    assert (changed.replicas, changed.arguments, changed.adapter_folder) == (2, ["--max-model-len=64"], "/shared")
    assert read_settings(path, {"vllm": {"arguments": ["-x"]}}).vllm.arguments == ["-x"]
    assert read_settings(path, {"vllm": None}).vllm == read_settings(path, {}).vllm
    path.write_text("model: m\nengine: vllm\nvllm: 5\nadapters: [a]\n")
    with pytest.raises(ConfigError) as raised:
        read_settings(path, {"vllm": {"replicas": 2}, "adapters": {"a": "x"}})
    assert [problem.field for problem in raised.value.problems] == ["adapters", "vllm"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"adapters": {"a b": "x"}}, "adapters: 'a b' is not a name"),
        ({"adapters": {"../a": "x"}}, "adapters: '../a' is not a name"),
        ({"aliases": {"a/b": {"weights": {"x": 1}}}}, "aliases: 'a/b' is not a name"),
        ({"adapters": {"a": "x"}, "aliases": {"a": {"weights": {"x": 1}}}}, "aliases: 'a' is also an adapter"),
        ({"aliases": {"a": {"weights": {"x": 0}}}}, "aliases.a.weights: has no weight above 0"),
        ({"aliases": {"a": {"weights": {"x": 1}, "sticky": "cookie"}}}, "aliases.a.sticky: 'cookie' is not allowed"),
        ({"aliases": {"a": {"weights": {"x": -1}}}}, "aliases.a.weights.x: got -1; must be greater than or equal to 0"),
        ({"aliases": {"a": {}}}, "aliases.a.weights: is required"),
        ({"no_auth": True, "host": "0.0.0.0"}, "--no-auth: would let everybody in at 0.0.0.0"),
        ({"no_auth": True, "host": "example.org"}, "--no-auth: would let everybody in at example.org"),
        ({"no_auth": True, "api_key_file": "keys"}, "--no-auth: contradicts --api-key-file"),
        ({"prot": 1}, "prot: unknown key. Fix: Did you mean 'port'?"),
        ({"limits": {"quee": 1}}, "limits.quee: unknown key. Fix: Did you mean 'queue'?"),
        ({"port": "8000"}, "port: got '8000'; must be a valid integer"),
        ({"limits": {"n": 1000}}, "limits.n: got 1000; must be less than or equal to 128"),
        ({"dtype": "int8"}, "dtype: got 'int8'; must be 'auto', 'bfloat16' or 'float32'"),
        ({"shadow": [{"of": "a", "to": "b", "share": 2}]}, "shadow.0.share: got 2"),
    ],
)
def test_what_is_not_allowed_is_named(flags: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as raised:
        read_settings(None, flags)
    assert words in str(raised.value)


def test_a_file_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        read_settings(tmp_path / "none.yaml", {})


@pytest.mark.parametrize(
    ("host", "is_loopback"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False)],
)
def test_loopback_addresses(host: str, is_loopback: bool) -> None:
    assert ServeSettings(host=host).is_loopback is is_loopback


def test_every_setting_is_described() -> None:
    assert describe_fields(ServeSettings).keys() == ServeSettings.model_fields.keys()


def test_the_configurations_of_the_page_are_valid(tmp_path: Path) -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "serving.md"
    blocks = re.findall(r"```yaml\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 2
    (tmp_path / "serve.yaml").write_text("".join(blocks))
    settings = read_settings(tmp_path / "serve.yaml", {})
    assert settings.limits == ServeSettings().limits, "the page shows other defaults"
    assert settings.drain_seconds == ServeSettings().drain_seconds


@pytest.mark.parametrize(
    ("flags", "field"),
    [
        ({"vllm": {"replicas": 2}}, "vllm"),
        ({"engine": "vllm", "max_running": 3}, "max_running"),
        ({"engine": "vllm", "vllm": {"urls": ["http://127.0.0.1:1"], "replicas": 2}}, "vllm.replicas"),
        ({"engine": "tgi"}, "engine"),
        ({"engine": "vllm", "vllm": {"replica": 2}}, "vllm.replica"),
    ],
)
def test_settings_of_another_engine_are_refused(flags: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_settings(None, {"model": "m", **flags})
    assert [problem.field for problem in caught.value.problems] == [field]
