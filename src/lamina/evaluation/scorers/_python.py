"""Scorers that are functions of the user's: in memory, or in a file (`FILE.py:NAME`)."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lamina.errors import ConfigError, Problem
from lamina.evaluation.scorers.base import Case, Scorer

_FIX = "name a function of (answer, expected) or (answer, expected, row), as FILE.py:NAME"


def python_scorer(given: str, name: str, field: str, folder: Path) -> Scorer:
    """Loads the function of `FILE.py:NAME`, where the file's path starts from `folder`.

    Raises:
        ConfigError: There is no such file or function, the file cannot be run, or the function takes other arguments.
    """
    file, _, attribute = given.rpartition(":")
    path = (folder / Path(file).expanduser()).resolve()
    try:
        source = path.read_bytes()
    except OSError as error:
        raise ConfigError(Problem(field, f"{path} cannot be read ({error.strerror})", _FIX)) from None
    function = getattr(_module(path, field), attribute, None)
    if not callable(function):
        raise ConfigError(Problem(field, f"{path} defines no function {attribute!r}", _FIX))
    return Scorer(
        name=attribute if name == given else name,
        kind=f"{Path(file).name}:{attribute}",
        title=(inspect.getdoc(function) or attribute).splitlines()[0].rstrip("."),
        function=_of_case(function, given, field),
        source="sha256:" + hashlib.sha256(source).hexdigest(),
    )


def function_scorer(function: Callable[..., Any], name: str, field: str) -> Scorer:
    """Makes a scorer of a function of (answer, expected) or (answer, expected, row).

    Raises:
        ConfigError: It takes other arguments.
    """
    title = (inspect.getdoc(function) or name).splitlines()[0].rstrip(".")
    try:
        source = inspect.getsource(function)
    except (OSError, TypeError):  # it was typed into an interpreter, or is no plain function
        source = repr(function)
    digest = "sha256:" + hashlib.sha256(source.encode()).hexdigest()
    return Scorer(name=name, kind=name, title=title, function=_of_case(function, name, field), source=digest)


def _module(path: Path, field: str) -> Any:
    name = f"lamina_scorer_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(Problem(field, f"{path} is no Python file", _FIX))
    module = sys.modules[name] = importlib.util.module_from_spec(spec)  # dataclasses in it look their module up
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        message = f"{path} cannot be run ({type(error).__name__}: {error})"
        raise ConfigError(Problem(field, message, "correct it")) from error
    return module


def _of_case(function: Callable[..., Any], given: str, field: str) -> Callable[[Case], Any]:
    signature = inspect.signature(function)
    for count in (3, 2):
        try:
            signature.bind(*range(count))
        except TypeError:
            continue
        if count == 3:
            return lambda case: function(case.answer, case.expected, case.row)
        return lambda case: function(case.answer, case.expected)
    raise ConfigError(Problem(field, f"{given} takes {signature}", _FIX))
