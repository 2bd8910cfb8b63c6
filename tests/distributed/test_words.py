"""What an interrupted process leaves to the command that has started it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import typer

from lamina.cli.failures import run_command
from lamina.cli.processes import as_one
from lamina.distributed.failure import Failure, LostRankError, PeerError
from lamina.distributed.words import VARIABLE, leave_done, leave_words, place, was_done_in, was_said, words_in
from lamina.errors import Interrupted, LaminaError, RunError

AT_ONCE = "stopped before the run started. Go on with: the same command again"


def of_parent(folder: Path) -> str:
    """The variable as a command sets it that has started this process."""
    return f"{os.getppid()}:{folder}"


def fail_with(error: BaseException) -> int:
    """The exit code of a command that an error ends."""

    def command() -> None:
        raise error

    return run_command(command, as_json=False)


def test_the_first_words_are_left_and_nothing_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(VARIABLE, of_parent(tmp_path))
    assert fail_with(Interrupted(AT_ONCE, resume="again")) == Interrupted.exit_code
    assert fail_with(KeyboardInterrupt()) == 1
    assert capsys.readouterr().err == ""
    words = words_in(tmp_path, 0)
    assert words is not None
    found = words.error(named=False)
    assert isinstance(found, Interrupted)
    assert (str(found), found.facts["resume"]) == (AT_ONCE, "again")
    assert str(words.error(named=True)) == f"rank 0: {AT_ONCE}"


def test_another_process_s_interruption_is_left_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, of_parent(tmp_path))
    fail_with(PeerError(Failure.of(Interrupted(AT_ONCE), 1, "there")))
    words = words_in(tmp_path)
    assert words is not None
    assert str(words.error(named=True)) == f"rank 1 (there): {AT_ONCE}"


@pytest.mark.parametrize("error", [RunError("broken"), LostRankError("rank 1 is gone", [1])])
def test_errors_and_lost_processes_are_told_at_once(
    error: LaminaError, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(VARIABLE, of_parent(tmp_path))
    assert fail_with(error) == error.exit_code
    assert str(error) in capsys.readouterr().err
    fail_with(KeyboardInterrupt())  # in a process that is ended for it
    assert words_in(tmp_path) is None


def test_any_process_leaves_that_it_was_interrupted_before_it_met_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(typer.Exit), as_one():  # started by another launcher: the first one tells
        raise KeyboardInterrupt
    monkeypatch.setenv(VARIABLE, of_parent(tmp_path))
    with pytest.raises(KeyboardInterrupt), as_one():
        raise KeyboardInterrupt


def test_words_of_a_start_before_are_not_those_of_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, of_parent(tmp_path))
    assert leave_words(1, {"message": "interrupted"})
    assert words_in(tmp_path, 1) is None
    words = words_in(tmp_path)
    assert words is not None and isinstance(words.error(named=False), KeyboardInterrupt)


@pytest.mark.parametrize("teller", [0, 2])
def test_who_was_interrupted_before_training_is_named(
    teller: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By itself, or by one that has heard of it."""
    monkeypatch.setenv(VARIABLE, of_parent(tmp_path))
    monkeypatch.setenv("RANK", str(teller))
    fail_with(PeerError(Failure.of(KeyboardInterrupt(), 2, "there")) if teller == 0 else KeyboardInterrupt())
    words = words_in(tmp_path)
    assert words is not None
    assert str(words.error(named=True)).startswith(
        "rank 2 was interrupted before training. Fix: start the same command"
    )


def test_without_such_a_command_a_process_speaks_for_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    fail_with(Interrupted(AT_ONCE))
    monkeypatch.setenv(VARIABLE, of_parent(tmp_path / "gone"))
    fail_with(Interrupted(AT_ONCE))
    assert capsys.readouterr().err.count(AT_ONCE) == 2


def test_the_first_process_leaves_that_all_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, of_parent(tmp_path))
    monkeypatch.setenv("RANK", "1")
    leave_done()
    assert not was_done_in(tmp_path, 0)
    monkeypatch.setenv("RANK", "0")
    leave_done()
    assert was_done_in(tmp_path, 0) and not was_done_in(tmp_path, 1)
    assert not was_said()
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert was_said()


def test_what_one_of_the_processes_starts_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It inherits the variable, and its end is not that of the processes."""
    monkeypatch.setenv(VARIABLE, place(str(tmp_path)))
    leave_done()
    assert not was_done_in(tmp_path, 0)
    assert fail_with(Interrupted(AT_ONCE)) == Interrupted.exit_code
    assert AT_ONCE in " ".join(capsys.readouterr().err.split()) and words_in(tmp_path) is None
