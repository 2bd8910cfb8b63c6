"""A signal while a server starts is an interruption, whatever a library makes of it."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import pytest

from lamina.cli.process import listen_for_signals
from lamina.cli.serve_start import Start
from tests.support.cli import Cli


@pytest.fixture(autouse=True)
def listening() -> Iterator[None]:
    """The handlers of a command."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    listen_for_signals()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def import_badly(number: signal.Signals) -> NoReturn:
    """Does what a library does that is interrupted while it is imported."""
    try:
        signal.raise_signal(number)
    except KeyboardInterrupt:
        raise ImportError("Could not import module 'PreTrainedModel'") from None
    raise AssertionError("no signal came")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_error_after_a_signal_is_the_interruption(number: signal.Signals) -> None:
    with pytest.raises(KeyboardInterrupt), Start():
        import_badly(number)
    assert signal.getsignal(number) is signal.default_int_handler


def test_a_signal_that_was_passed_over_ends_the_start_at_the_next_step() -> None:
    for go_on in (Start.check, Start.end):
        with pytest.raises(KeyboardInterrupt), Start() as start:
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGTERM)
            go_on(start)
        assert not start.is_over


def test_without_a_signal_an_error_is_itself() -> None:
    with pytest.raises(ImportError), Start() as start:
        start.check()
        raise ImportError
    with Start() as start:
        start.end()
    assert start.is_over


def test_an_ignored_signal_stays_ignored() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with Start():
        signal.raise_signal(signal.SIGHUP)
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def ends_before_it_is_ready(settings: Any, ready: Callable[[Any], None], notify: Callable[[str], None]) -> None:
    """A server that a signal reaches when it already listens for signals itself."""


@pytest.mark.parametrize("serve", [lambda *arguments: import_badly(signal.SIGTERM), ends_before_it_is_ready])
def test_the_command_says_interrupted(cli: Cli, monkeypatch: pytest.MonkeyPatch, serve: Any) -> None:
    monkeypatch.setattr("lamina.server.serve.serve", serve)
    result = cli("serve", "m", "--no-auth", "--json")
    assert result.code == 1
    assert result.json() == {"error": {"type": "Interrupted", "message": "interrupted"}}
    assert "Could not import" not in result.err
