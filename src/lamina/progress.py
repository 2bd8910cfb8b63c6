"""How long work tells of itself: a sentence, or how much of it is done."""

from __future__ import annotations

from collections.abc import Callable

# Is told a sentence for people.
Notify = Callable[[str], None]

# Is told what is being done, how much of it is done, and how much there is.
Progress = Callable[[str, int, int], None]
