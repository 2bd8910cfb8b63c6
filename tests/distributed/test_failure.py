"""What an error keeps alive when a process gives up: nothing of ours, and all of what is others'."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator

import pytest

from lamina.distributed.failure import release_frames


class Held:
    """Anything."""


def fail(held: list[weakref.ref[Held]], kind: type[Exception] | Exception = ValueError) -> None:
    mine = Held()
    held.append(weakref.ref(mine))
    raise kind


def test_frames_of_an_error_and_of_what_led_to_it_hold_nothing_more() -> None:
    held: list[weakref.ref[Held]] = []
    try:
        try:
            fail(held)
        except ValueError:
            try:
                fail(held, KeyError)
            except KeyError as cause:
                raise RuntimeError from cause
    except RuntimeError as caught:
        assert len(held) == 2 and all(each() is not None for each in held)
        release_frames(caught, None)
        assert [each() for each in held] == [None, None]


def test_causes_may_form_a_circle() -> None:
    held: list[weakref.ref[Held]] = []
    first, second = ValueError(), KeyError()
    for error in (first, second):
        with contextlib.suppress(ValueError, KeyError):
            fail(held, error)
    first.__cause__, second.__cause__ = second, first
    assert all(each() is not None for each in held)
    release_frames(first, None)
    assert [each() for each in held] == [None, None]


def test_what_was_handled_before_stays() -> None:
    """A generator that waits inside `except` would be closed by clearing its frame."""

    def generate() -> Iterator[Exception]:
        try:
            raise ValueError
        except ValueError as error:
            yield error
        yield KeyError()

    steps = generate()
    before = next(steps)
    with pytest.raises(RuntimeError) as caught:
        try:
            raise before
        except ValueError:
            raise RuntimeError  # noqa: B904
    release_frames(caught.value, before)
    assert isinstance(next(steps), KeyError)
