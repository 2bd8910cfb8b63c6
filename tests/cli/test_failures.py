"""However a command ends: one message, one exit code, one JSON object, and tracebacks only in files."""

from __future__ import annotations

import errno
import functools
import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.main import get_command

from lamina.cli import app
from lamina.cli.arguments import asks_for_json
from lamina.cli.output import print_json
from lamina.errors import LaminaError, RunError
from lamina.training import loop
from tests.support.cli import Cli, Result
from tests.support.commands import COMMANDS


class Unprintable(Exception):
    def __str__(self) -> str:
        raise ValueError("no words")


def recurse(depth: int = 0) -> int:
    return recurse(depth + 1) + 1


def out_of_memory() -> None:
    torch.empty(2**62, dtype=torch.int8)


def broken_pipe_of_a_library() -> None:
    raise BrokenPipeError(errno.EPIPE, "Broken pipe")


def raising(error: BaseException) -> Callable[..., None]:
    def act(*_: object) -> None:
        raise error

    return act


ENDS: dict[str, Callable[[], object]] = {
    "RuntimeError": raising(RuntimeError("unflatten:\nsizes [8, 16] don't multiply up to 64")),
    "AssertionError": raising(AssertionError()),
    "KeyError": raising(KeyError("[bold]markup[/nope]")),
    "IndexError": raising(IndexError("index out of range in self")),
    "MemoryError": raising(MemoryError()),
    "RecursionError": recurse,
    "RuntimeError of torch's allocator": out_of_memory,
    "OutOfMemoryError": raising(torch.OutOfMemoryError("CUDA out of memory.")),
    "EOFError": raising(EOFError("Compressed file ended too early")),
    "OSError": raising(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "some/file")),
    "BrokenPipeError": broken_pipe_of_a_library,
    "UnicodeDecodeError": raising(UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid")),
    "surrogates": raising(ValueError("half \ud800 a pair")),
    "SystemExit": raising(SystemExit(3)),
    "SystemExit as if all were well": raising(SystemExit(0)),
    "SystemExit with a message": raising(SystemExit("goodbye")),
    "ExceptionGroup": raising(ExceptionGroup("two", [ValueError("one"), ValueError("other")])),
    "Unprintable": raising(Unprintable()),
    "StopIteration": raising(StopIteration()),
}


@pytest.fixture
def ending(monkeypatch: pytest.MonkeyPatch, cli: Cli, tmp_path: Path) -> Callable[..., Result]:
    """Runs a command whose library call is replaced by one that fails."""
    monkeypatch.setenv("LAMINA_CACHE", str(tmp_path / "cache"))

    def run(name: str, act: Callable[[], object], *options: str) -> Result:
        *group, word = name.split()
        module, _, function = (app.GROUPS[group[0]] if group else app.COMMANDS[word]).partition(":")
        holder: Any = importlib.import_module(f"lamina.cli.{module}")
        if group:
            members = getattr(holder, function).registered_commands
            (holder,) = [info for info in members if (info.name or info.callback.__name__) == word]
            function = "callback"

        @functools.wraps(getattr(holder, function))
        def fails(*_: object, **__: object) -> None:
            act()

        monkeypatch.setattr(holder, function, fails)
        needed = [parameter for parameter in COMMANDS[name].params if parameter.required]
        given = [part for p in needed for part in ([p.opts[0], "x"] if p.opts[0].startswith("-") else ["x"])]
        return cli(*name.split(), *given, *options)

    return run


def traceback_of(result: Result, tmp_path: Path) -> str:
    (path,) = (tmp_path / "cache" / "errors").iterdir()
    assert str(path) in result.err
    return path.read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", ENDS)
@pytest.mark.parametrize("as_json", [True, False])
def test_an_exception_is_one_error_with_its_traceback_in_a_file(
    kind: str, as_json: bool, ending: Callable[..., Result], tmp_path: Path
) -> None:
    result = ending("generate", ENDS[kind], *["--json"] * as_json)
    assert result.code == 1
    assert len(result.error().splitlines()) == 1
    text = traceback_of(result, tmp_path)
    assert "Traceback (most recent call last)" in text and "test_failures.py" in text
    assert "lamina 0" in text and "generate" in text.splitlines()[0]
    if as_json:
        error = result.json()["error"]
        assert error["type"] == "UnexpectedError"
        assert error["cause"] == kind.split()[0] or kind == "surrogates"
        assert Path(error["traceback"]).read_text(encoding="utf-8") == text
    else:
        assert result.out == ""


@pytest.mark.parametrize("name", COMMANDS)
def test_no_command_lets_an_exception_through(name: str, ending: Callable[..., Result], tmp_path: Path) -> None:
    result = ending(name, ENDS["RuntimeError"], "--json")
    assert (result.code, result.json()["error"]["cause"]) == (1, "RuntimeError")
    assert "unflatten" in result.error()
    assert "unflatten" in traceback_of(result, tmp_path)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_takes_a_key_that_interrupts(name: str, ending: Callable[..., Result], tmp_path: Path) -> None:
    result = ending(name, raising(KeyboardInterrupt()), "--json")
    assert result.json() == {"error": {"type": "Interrupted", "message": "interrupted"}}
    assert result.code == 1
    assert not (tmp_path / "cache").exists()


def test_an_error_of_laminas_own_has_no_traceback(ending: Callable[..., Result], tmp_path: Path) -> None:
    result = ending("train", raising(RunError("in use")), "--json")
    assert result.json()["error"] == {"type": "RunError", "message": "in use"}
    assert not (tmp_path / "cache").exists()


def test_json_has_null_for_what_is_no_number(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"a": float("nan"), "b": [float("inf"), (1.5, -float("inf"))], "c": "NaN"})
    out = capsys.readouterr().out
    found = json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert found == {"a": None, "b": [None, [1.5, None]], "c": "NaN"}


@pytest.mark.parametrize("evaluation", ["data.eval=0.2", "data.eval=null"])
def test_a_run_whose_numbers_are_none_is_not_done(evaluation: str, cli: Cli, config: Path, tmp_path: Path) -> None:
    result = cli("train", config, evaluation, "train.learning_rate=1e300", "--json")
    assert result.code == 1
    assert result.json()["error"]["type"] == "TrainingError"
    assert "not finite" in result.error() and "learning_rate" in result.error()
    assert not (tmp_path / "run" / "adapter").exists()


def test_what_libraries_print_is_no_part_of_the_json(ending: Callable[..., Result]) -> None:
    result = ending("merge", lambda: (print("chatter"), raising(LaminaError("no"))()), "--json")
    assert result.json()["error"]["message"] == "no"
    assert "chatter" in result.err


def test_where_no_file_can_be_written_the_error_is_told_all_the_same(
    ending: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr("lamina.files.write_bytes", full)
    result = ending("eval", ENDS["RuntimeError"], "--json")
    assert result.json()["error"]["traceback"] is None
    assert "unflatten" in result.error() and "could not be written" in result.error()


def test_what_cannot_be_told_is_an_error_all_the_same(
    ending: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lamina.cli.failures._describe", raising(MemoryError()))
    result = ending("eval", ENDS["KeyError"], "--json")
    assert result.code == 1
    assert result.json()["error"]["message"] in result.error()
    assert "KeyError" in result.err and "MemoryError" in result.err


def test_memory_that_ran_out_is_called_so(ending: Callable[..., Result]) -> None:
    for kind in ("MemoryError", "OutOfMemoryError", "RuntimeError of torch's allocator"):
        assert "out of memory" in ending("eval", ENDS[kind]).error()


def test_training_leaves_the_traceback_in_its_run(
    cli: Cli, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, steps = loop.training_step, iter(range(9))

    def fails(*given: Any, **options: Any) -> Any:
        if next(steps):
            raise IndexError("index out of range in self")
        return step(*given, **options)

    monkeypatch.setattr(loop, "training_step", fails)
    result = cli("train", config, "--json")
    assert result.code == 1
    assert f"lamina train {tmp_path / 'run' / 'config.yaml'} --resume" in result.error()
    (path,) = (tmp_path / "run" / "errors").iterdir()
    assert result.json()["error"]["traceback"] == str(path)
    assert "training/loop.py:" in result.error()
    assert "IndexError: index out of range in self" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "asked"),
    [
        (["generate", "run", "-p", "--json"], False),
        (["generate", "run", "--prompt", "--json"], False),
        (["generate", "run", "--prompt=--json"], False),
        (["generate", "run", "-p--json"], False),
        (["generate", "run", "--", "--json"], False),
        (["generate", "run", "-p", "--json", "--json"], True),
        (["generate", "--json", "run"], True),
        (["generate", "run", "--base", "--json"], True),
        (["--json", "generate"], True),
        (["bench", "train", "--model", "--json"], False),
        (["bench", "train", "--rank", "4", "--json"], True),
        (["nonsense", "--json"], True),
        (["train", "--help", "--json"], False),
        ([], False),
    ],
)
def test_json_is_asked_for_by_the_option_alone(arguments: list[str], asked: bool) -> None:
    assert asks_for_json(get_command(app.build()), arguments) is asked


def test_a_prompt_may_be_json(cli: Cli) -> None:
    result = cli("generate", "nowhere", "-p", "--json")
    assert (result.code, result.out) == (1, "")


# --- in a process of its own: what becomes of its streams -----------------------------------------------------------


def run_lamina(*arguments: str, **options: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "lamina", *arguments], **options)


def test_a_reader_who_closes_the_help_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    process = run_lamina("eval", "--help", stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert process.communicate()[1] == b""
    assert process.returncode == 1


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with run_lamina("methods", stdout=writing, stderr=subprocess.PIPE) as process:
        os.close(writing)
        assert process.communicate()[1] == b""
        assert process.returncode == 1


@pytest.mark.parametrize(
    "arguments", [["methods"], ["methods", "--json"], ["schema"], ["version", "--json"], ["--help"]]
)
def test_output_that_cannot_be_written_is_an_error(arguments: list[str], tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    environment = {**os.environ, "LAMINA_CACHE": str(tmp_path)}
    with (
        Path("/dev/full").open("wb") as full,
        run_lamina(*arguments, stdout=full, stderr=subprocess.PIPE, env=environment) as process,
    ):
        said = process.communicate()[1].decode()
    assert process.returncode == 1
    assert "the disk is full" in said
    assert "Traceback (most" not in said and "Exception ignored" not in said


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_are_no_error(closed: str, tmp_path: Path) -> None:
    script = f'"{sys.executable}" -m lamina "$@" {closed}'
    done = subprocess.run(["sh", "-c", script, "sh", "version"], capture_output=True, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, b"")
    done = subprocess.run(["sh", "-c", script, "sh", "train", "nope.yaml"], capture_output=True, cwd=tmp_path)
    assert done.returncode == 2
    assert b"Traceback" not in done.stderr


def test_json_is_json_in_any_encoding(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "LC_ALL": "C"}
    command = [sys.executable, "-m", "lamina", "train", "größe\ud800.yaml".encode("utf-8", "surrogatepass"), "--json"]
    done = subprocess.run(command, capture_output=True, env=environment, cwd=tmp_path)
    assert done.returncode == 2
    assert ".yaml does not exist" in json.loads(done.stdout)["error"]["message"]
    assert b"Traceback" not in done.stderr


def test_a_working_folder_that_the_locale_cannot_decode_is_one_error(tmp_path: Path) -> None:
    folder = tmp_path / "größe"
    folder.mkdir()
    environment = {**os.environ, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}
    command = [sys.executable, "-m", "lamina", "train", "run.yaml", "--json"]
    done = subprocess.run(command, capture_output=True, env=environment, cwd=folder)
    assert done.returncode == 2
    error = json.loads(done.stdout)["error"]
    assert error["type"] == "ConfigError" and "PYTHONUTF8=1" in error["message"]
    fixed = subprocess.run(command, capture_output=True, env={**environment, "PYTHONUTF8": "1"}, cwd=folder)
    assert "run.yaml does not exist" in json.loads(fixed.stdout)["error"]["message"]
    assert list(folder.iterdir()) == []


def test_a_terminal_that_is_closed_ends_a_command_as_a_key_does(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lamina.config.load_config", lambda *_: signal.raise_signal(signal.SIGHUP))
    result = cli("quantize", "config.yaml", "--out", "x", "--json")
    assert (result.code, result.json()["error"]["type"]) == (1, "Interrupted")
