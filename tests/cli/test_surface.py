"""The command line as a whole: what every command has, what does not need torch, and how errors are reported."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lamina.config import METHOD_CONFIGS, Config
from lamina.version import __version__
from tests.support.cli import Cli
from tests.support.commands import COMMANDS

# Runs commands in sequence in one process, and writes how each ended and what had been imported by then.
CALLS = """
import json, sys
from lamina.cli.app import main
ended = []
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["lamina", *arguments]
    try:
        main()
    except SystemExit as exit:
        ended.append([exit.code, [name for name in ("torch", "transformers", "tokenizers") if name in sys.modules]])
print("\\n" + json.dumps(ended), file=sys.stderr)
"""
WITHOUT_TORCH: list[tuple[list[str], int]] = [
    (["--help"], 0),
    (["train", "--help"], 0),
    (["version"], 0),
    (["schema"], 0),
    (["methods", "--json"], 0),
    (["train", "nope.yaml"], 2),
    (["train", "bad.yaml", "--json"], 2),
    (["train", "bad.yaml", "seed"], 2),
    (["verify", "bad.yaml"], 2),
    (["quantize", "bad.yaml", "--out", "x"], 2),
    (["nonsense"], 2),
    (["eval", "run", "--column", "prompt"], 2),
    (["eval", "a", "b"], 2),
    (["eval", "a", "--task", "t.yaml", "--predictions", "p.jsonl"], 2),
    (["eval", "a", "--power", "0", "--task", "t.yaml"], 2),
    (["gate", "--help"], 0),
    (["gate", "a", "--against", "b"], 2),
    (["generate", "run"], 2),
    (["merge", "run", "--out", "x", "--dtype", "int8"], 2),
    (["bench", "train", "--help"], 0),
    (["bench", "serve", "--help"], 0),
    (["compare", "--help"], 0),
    (["fleet", "run", "--help"], 0),
    (["fleet", "run", "nope.yaml", "--on", "ray"], 2),
    (["compare", "nope.yaml"], 2),
    (["compare", "bad.yaml", "--methods", "lroa"], 2),
    (["bench", "train", "--model", "x", "--shape", "tiny"], 2),
    (["bench", "serve", "--model", "x", "--shape", "tiny"], 2),
    (["serve", "--help"], 0),
    (["serve"], 2),
    (["serve", "m", "--no-auth", "--host", "0.0.0.0"], 2),
    (["serve", "m", "--adapter", "x"], 2),
    (["replay", "log", "--adapter", "x"], 2),
]


def test_commands_are_those_of_the_design() -> None:
    assert COMMANDS.keys() >= {
        "train",
        "eval",
        "generate",
        "chat",
        "merge",
        "quantize",
        "verify",
        "methods",
        "schema",
        "doctor",
        "quickstart",
        "compare",
        "gate",
        "bench train",
        "bench serve",
        "serve",
        "replay",
    }


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_json_and_every_option_a_help_text(name: str, cli: Cli) -> None:
    command = COMMANDS[name]
    assert (command.help or "").strip().endswith(".")
    options = {option: parameter for parameter in command.params for option in parameter.opts}
    assert options["--json"].is_flag
    for option, parameter in options.items():
        assert option == "--help" or (getattr(parameter, "help", "") or "").strip(), option
    shown = cli(*name.split(), "--help")
    assert shown.code == 0
    assert "--json" in shown.out


def test_help_and_config_errors_answer_without_importing_torch(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("data: {train: x}\ntrain: {learning_rat: 1}\n")
    command = [sys.executable, "-c", CALLS, json.dumps([arguments for arguments, _ in WITHOUT_TORCH])]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, stdin=subprocess.DEVNULL)
    ended = json.loads(result.stderr.splitlines()[-1])
    for (arguments, code), found in zip(WITHOUT_TORCH, ended, strict=True):
        assert found == [code, []], arguments


def test_installed_command_gives_its_exit_codes(tmp_path: Path) -> None:
    lamina = Path(sys.executable).with_name("lamina")
    fine = subprocess.run([lamina, "version", "--json"], capture_output=True, text=True, check=True)
    assert json.loads(fine.stdout) == {"version": __version__}
    wrong = subprocess.run([lamina, "train", tmp_path / "nope.yaml", "--json"], capture_output=True, text=True)
    assert wrong.returncode == 2
    assert json.loads(wrong.stdout)["error"]["type"] == "ConfigError"
    assert "Traceback" not in wrong.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_usage_error_is_one_json_object_and_exit_code_2(name: str, cli: Cli) -> None:
    result = cli(*name.split(), "--no-such-option", "--json")
    assert result.code == 2
    error = result.json()["error"]
    assert error["type"] == "UsageError"
    assert "--no-such-option" in error["message"]
    assert "--no-such-option" in result.error()


def test_usage_error_for_people_points_to_help_and_leaves_stdout_empty(cli: Cli) -> None:
    result = cli("nonsense")
    assert (result.code, result.out) == (2, "")
    assert "nonsense" in result.error()
    assert "--help" in result.error()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        pytest.param(["train"], "CONFIG"),
        pytest.param(["merge", "run"], "--out"),
        pytest.param(["quantize", "config.yaml"], "--out"),
        pytest.param(["generate", "run", "--max-new-tokens", "x"], "--max-new-tokens"),
        pytest.param(["eval", "run", "--max-rows", "0"], "--max-rows"),
        (["generate", "run", "--temperature"], "--temperature"),
        (["generate", "run", "-p", "a", "--temperature", "nan"], "temperature"),  # typer refuses it, or `Sampling`
        (["generate", "run", "-p", "a", "--seed", str(2**64)], "--seed"),
        (["chat", "run", "--seed", str(2**64)], "--seed"),
        (["quickstart", "--seed", str(2**64)], "--seed"),
        (["bench", "train", "--seed", str(2**64)], "--seed"),
    ],
)
def test_usage_error_names_the_argument(arguments: list[str], words: str, cli: Cli) -> None:
    words_of_the_command = 2 if arguments[0] == "bench" else 1
    result = cli(*arguments[:words_of_the_command], "--json", *arguments[words_of_the_command:])
    assert words in result.json()["error"]["message"]


def test_no_command_shows_the_help_and_is_a_usage_error(cli: Cli) -> None:
    result = cli()
    assert result.code == 2
    assert all(name.split()[0] in result.out for name in COMMANDS)


@pytest.mark.parametrize("as_json", [True, False])
def test_interrupted_command_exits_with_1(as_json: bool, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    # Inside the command, where typer gets the exception before lamina does.
    monkeypatch.setattr("lamina.checks.target.find_target", interrupted)
    result = cli("data", "check", "rows.jsonl", *["--json"] * as_json)
    assert result.code == 1
    assert "interrupted" in result.err
    if as_json:
        assert result.json() == {"error": {"type": "Interrupted", "message": "interrupted"}}


def test_error_messages_show_markup_as_it_stands(cli: Cli) -> None:
    assert "[bold]x[/bold].yaml" in cli("train", "[bold]x[/bold].yaml").error()


def test_long_error_messages_are_not_broken_into_lines(cli: Cli) -> None:
    path = "some/folder/" * 40 + "nope.yaml"
    assert path in cli("train", path).error()


def test_error_messages_show_colons_as_they_stand(cli: Cli) -> None:
    assert ":smile:.yaml" in cli("train", ":smile:.yaml").error()


def test_version(cli: Cli) -> None:
    assert cli("version").out == f"{__version__}\n"
    assert cli("version", "--json").json() == {"version": __version__}


def test_methods(cli: Cli) -> None:
    shown = cli("methods")
    assert shown.code == 0
    methods = {method["name"]: method for method in cli("methods", "--json").json()["methods"]}
    assert "lora" in methods
    assert methods.keys() == METHOD_CONFIGS.keys()
    for name, config in METHOD_CONFIGS.items():
        assert methods[name]["fields"].keys() == config.model_fields.keys()
        for text in (name, config.title, config.summary, config.paper, *config.model_fields):
            assert text in shown.out


def test_schema_is_the_configs_own(cli: Cli) -> None:
    result = cli("schema", "--json")
    assert (result.code, result.json()) == (0, Config.model_json_schema())
    assert json.loads(cli("schema").out) == result.json()


def test_schema_is_a_valid_json_schema(cli: Cli) -> None:
    schema = cli("schema", "--json").json()
    assert schema["type"] == "object"
    assert schema["required"] == ["data"]
    types: set[str] = set()

    def walk(part: Any) -> None:
        if isinstance(part, list):
            for item in part:
                walk(item)
        elif isinstance(part, dict):
            if "$ref" in part:
                assert part["$ref"].removeprefix("#/$defs/") in schema["$defs"]
            if isinstance(part.get("type"), str):
                types.add(part["type"])
            if "properties" in part:
                assert part["additionalProperties"] is (part["title"] == METHOD_CONFIGS["peft"].__name__)
                assert set(part.get("required", [])) <= part["properties"].keys()
                walk(list(part["properties"].values()))
            for key in ("anyOf", "oneOf", "allOf", "items", "$defs"):
                walk(list(part[key].values()) if key == "$defs" and key in part else part.get(key))

    walk(schema)
    assert types == {"object", "string", "number", "integer", "boolean", "array", "null"}


def test_doctor_gives_findings(cli: Cli) -> None:
    result = cli("doctor", "--json")
    assert result.code == 0
    findings = {finding["name"]: finding for finding in result.json()["findings"]}
    assert findings.keys() >= {"packages", "processor", "threads", "memory", "matrix products", "cache"}
    for finding in findings.values():
        assert finding["value"]
        assert finding["level"] in ("ok", "slow", "missing")
        assert finding["advice"] or finding["level"] == "ok"
    assert "GFLOP/s" in findings["matrix products"]["value"]
    assert __version__ in findings["lamina"]["value"]


def test_a_command_that_is_killed_leaves_nothing_half_written(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lamina import files

    def stopped(*given: Any, **options: Any) -> None:
        with files.new_folder(tmp_path / "out") as folder:
            (folder / "half").write_text("written")
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr("lamina.config.load_config", stopped)
    result = cli("quantize", "config.yaml", "--out", "out", "--json")
    assert result.code == 1
    assert result.json()["error"]["type"] == "Interrupted"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("before", [["--quiet"], ["--log-level", "debug"], ["--log-level=debug", "--timestamps"]])
def test_only_the_asked_command_is_imported(before: list[str]) -> None:
    called = (
        "import json, sys\nfrom lamina.cli.app import main\nsys.argv = ['lamina', *json.loads(sys.argv[1])]\n"
        "try:\n    main()\nexcept SystemExit:\n"
        "    print(json.dumps([f'lamina.cli.{name}' in sys.modules for name in ('convert', 'serve', 'train')]))"
    )
    command = [sys.executable, "-c", called, json.dumps([*before, "convert", "--help"])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == [True, False, False]
