"""How an answer is scored, one file a scorer, found by discovery.

The file's name is the scorer's name, for `lamina eval --score` and in a task's `scorers:`. The smallest scorer is

    TITLE = "first letter"

    def score(answer: str, expected: str) -> float:
        return float(answer[:1] == expected[:1])

`TITLE` is its name in prose; `score` gives a number for one row. All else may be left out:

* `LARGER_IS_BETTER = False` where a smaller number is better, `None` where neither is. By default True.
* `RANGE = (0.0, 1.0)`: the least and the largest number; None for an open end. By default both are open.
* `NEEDS`: `"answer"`, the default, is a generated answer. With `"likelihood"` the reference gets its log-likelihood
  after the prompt, with `"choices"` each of the row's choices, and nothing is generated.
* `OPTIONS`, a `Section` with a default for each field, or without one where it must be given: a task sets them beside
  the name, `{type: regex, pattern: "(\\d+)"}`. Unknown ones, and values that are not allowed, are errors.
* `build(options) -> Callable[[Case], float]` instead of `score`, for a scorer with options, or one that sees more of a
  row than two texts. It is called once, before anything is generated: what can be wrong with options, or is not
  installed, is found there.

`FILE.py:NAME` is a function of the user's, `(answer, expected)` or `(answer, expected, row)`; its file is part of the
scorer's digest. Other packages add scorers by entry points (`lamina/plugins.py`). What scores in another way than an
installed scorer cannot have its name, nor `judge`, which a judge's grades have: a gate tells metrics by their names. A
scorer that raises, or gives no finite number in its range, ends the evaluation with an error that names the row and the
scorer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lamina import plugins
from lamina.config.options import read_options
from lamina.config.section import Section
from lamina.errors import ConfigError, Problem, nearest
from lamina.evaluation.scorers._python import function_scorer, python_scorer
from lamina.evaluation.scorers.base import Case, Choice, Likelihood, Needs, Scorer

__all__ = ["Case", "Choice", "Likelihood", "Needs", "Scorer", "build_scorer", "find_scorers"]

Given = str | Mapping[str, Any] | Callable[..., float]

# The metric of a judge's grades, which no scorer may have as its name.
JUDGE = "judge"


def find_scorers(given: Sequence[Given], field: str = "--score", folder: Path | None = None) -> list[Scorer]:
    """The scorers of those names or descriptions, each once.

    Args:
        given: Names, mappings of `type`, an optional `name`, and options, or functions.
        field: Where they were given, for errors.
        folder: Where `FILE.py:NAME` starts from; by default the working folder.

    Raises:
        ConfigError: There is none of a name, its package cannot be imported, an option is wrong, or two different ones
            have one name.
    """
    found: dict[str, Scorer] = {}
    for number, each in enumerate(given):
        scorer = build_scorer(each, field if isinstance(each, str) else f"{field}[{number}]", folder)
        other = found.setdefault(scorer.name, scorer)
        if other.digest != scorer.digest:
            message = f"{scorer.name!r} names two scorers with different options"
            raise ConfigError(Problem(field, message, "give one of them a `name` of its own"))
    return list(found.values())


def build_scorer(given: Given, field: str = "--score", folder: Path | None = None) -> Scorer:
    """One scorer; the arguments are those of `find_scorers`.

    Raises:
        ConfigError: As `find_scorers`, or its name is that of another scorer, or `judge`.
    """
    scorer = _built(given, field, folder)
    name, is_own = scorer.name, not scorer.source and scorer.name == scorer.kind
    if name == JUDGE or (not is_own and name in plugins.members("scorers")):
        theirs = "of a judge's grades" if name == JUDGE else "of an installed scorer"
        kind = given if isinstance(given, str) else given.get("type") if isinstance(given, Mapping) else None
        described = f"name it otherwise in the task: {{type: {kind}, name: my_{name}}}"
        fix = "rename the function" if kind is None else described
        raise ConfigError(Problem(field, f"{name!r} is the name {theirs}, for which this one would be taken", fix))
    return scorer


def _built(given: Given, field: str, folder: Path | None) -> Scorer:
    if callable(given):
        return function_scorer(given, getattr(given, "__name__", "score"), field)
    options = dict(given) if isinstance(given, Mapping) else {"type": given}
    kind = options.pop("type", None)
    name = options.pop("name", kind)
    if not isinstance(kind, str) or not kind:
        raise _no_text(field, "type", kind)
    if not isinstance(name, str) or not name:
        raise _no_text(field, "name", name)
    if ".py:" in kind:
        if options:
            message = f"{', '.join(map(repr, options))}: a Python function takes no options"
            raise ConfigError(Problem(field, message, "leave them out, or put them into the file"))
        return python_scorer(kind, name, field, folder or Path())
    known = plugins.members("scorers")
    if kind not in known and kind not in plugins.problems("scorers"):
        message = f"{kind!r} is not one of {', '.join(known)}, or FILE.py:NAME."
        raise ConfigError(Problem(field, message, nearest(kind, known)))
    return _installed(plugins.load_member("scorers", kind), kind, name, options, field)


def _no_text(field: str, what: str, value: object) -> ConfigError:
    message = f"{value!r} is not the {what} of a scorer"
    return ConfigError(Problem(f"{field}.{what}", message, "write `exact_match`, or {type: contains, ...}"))


def _installed(module: Any, kind: str, name: str, options: Mapping[str, Any], field: str) -> Scorer:
    read = read_options(getattr(module, "OPTIONS", Section), kind, options, field)
    if hasattr(module, "build"):
        try:
            function = module.build(read)
        except ConfigError as error:
            problems = [Problem(f"{field}.{problem.field}", problem.message, problem.fix) for problem in error.problems]
            raise ConfigError(problems) from error
    else:
        simple = module.score
        function = lambda case: simple(case.answer, case.expected)  # noqa: E731
    low, high = getattr(module, "RANGE", (None, None))
    return Scorer(
        name=name,
        kind=kind,
        title=module.TITLE,
        function=function,
        larger_is_better=getattr(module, "LARGER_IS_BETTER", True),
        low=low,
        high=high,
        needs=getattr(module, "NEEDS", "answer"),
        options=read.model_dump(mode="json", by_alias=True),
    )
