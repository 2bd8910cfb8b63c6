"""How an answer is scored, one file a scorer, found by discovery.

A scorer's file defines `TITLE`, its name in prose, and `score(answer, expected)`, a number for one row; larger is
better. The file's name is the scorer's name for `lamina eval --score`. Other packages add scorers by entry points
(`lamina/plugins.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lamina import plugins
from lamina.errors import ConfigError, Problem, nearest


@dataclass(frozen=True)
class Scorer:
    """A way of scoring answers.

    Attributes:
        name: What the command line calls it.
        title: Its name in prose.
        score: From an answer and the expected one to a number; larger is better.
    """

    name: str
    title: str
    score: Callable[[str, str], float]


def find_scorers(names: Sequence[str], field: str = "--score") -> list[Scorer]:
    """The scorers of those names, each once.

    Raises:
        ConfigError: There is none of a name, or its package cannot be imported.
    """
    known = plugins.members("scorers")
    found = []
    for name in dict.fromkeys(names):
        if name not in known and name not in plugins.problems("scorers"):
            message = f"{name!r} is not one of {', '.join(known)}."
            raise ConfigError(Problem(field, message, nearest(name, known)))
        module = plugins.load_member("scorers", name)
        found.append(Scorer(name, module.TITLE, module.score))
    return found
