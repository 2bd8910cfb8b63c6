"""Callback types through which long-running functions report progress."""

from __future__ import annotations

from collections.abc import Callable

# Called with a sentence for the user.
Notify = Callable[[str], None]

# Called with the name of the task, the amount done and the total amount.
Progress = Callable[[str, int, int], None]
