"""The start of a server, which a signal ends as an interruption, whatever that breaks."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Any, NoReturn, Self

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")


class Start:
    """A block in which a server starts, and then runs.

    A signal raises `KeyboardInterrupt` wherever Python is. Amid an import, a library may turn that into an error of its
    own, which is untrue, or pass over it. So any error after a signal is the interruption, and where none came of it,
    `check` and `end` raise it.

    Attributes:
        is_over: Whether the server is ready.
    """

    def __init__(self) -> None:
        self.is_over = False
        self._is_signaled = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for name in _NAMES:
            number = getattr(signal, name, None)  # SIGHUP is not on Windows
            if number is not None and signal.getsignal(number) is signal.default_int_handler:  # else it is ignored
                self._before[number] = signal.signal(number, self._interrupt)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._is_signaled and error is not None and not isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt from error

    def check(self) -> None:
        """Ends the start if a signal came.

        Raises:
            KeyboardInterrupt: It did.
        """
        if self._is_signaled:
            raise KeyboardInterrupt

    def end(self) -> None:
        """Notes that the server is ready.

        Raises:
            KeyboardInterrupt: A signal came before.
        """
        self.check()
        self.is_over = True

    def _interrupt(self, number: int, frame: FrameType | None) -> NoReturn:
        self._is_signaled = True
        raise KeyboardInterrupt
