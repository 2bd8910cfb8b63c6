"""Finds plug-ins by family: methods, losses, optimizers, data formats, scorers, trackers and executors.

A plug-in ("member") is a Python module; the configuration refers to it by the module's name. lamina's own members are
in one folder per family. Another package adds one with an entry point in its pyproject.toml:

    [project.entry-points."lamina.formats"]
    chatlog = "my_package.chatlog"

Methods, losses and optimizers are pairs of modules: one for the configuration, which does not import torch so that
`lamina --help` stays fast, and one for the math. A pair needs two entry points with the same name:

    [project.entry-points."lamina.losses.config"]
    focal = "my_package.focal_config"

    [project.entry-points."lamina.losses"]
    focal = "my_package.focal"

A plug-in that cannot be imported is skipped, so that it breaks nothing that does not need it. `problems` returns the
reason; `lamina doctor` prints it, and so does the error for a configuration that names the plug-in.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import pkgutil
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from lamina.errors import ConfigError, Problem

_NAME = re.compile(r"[a-z][a-z0-9_]*")

# Modules in a family's folder that are not members, in addition to those whose names start with an underscore.
_NO_MEMBERS = ("base", "open")


@dataclass(frozen=True)
class Family:
    """The places where a family's members are found.

    Attributes:
        what: A singular noun for messages, such as `a method`.
        package: The package of lamina's own members.
        config: The package of the configuration halves; empty for a family of single modules.
    """

    what: str
    package: str
    config: str = ""


FAMILIES = {
    "executors": Family("an executor", "lamina.fleet.executors"),
    "formats": Family("a data format", "lamina.data.formats"),
    "losses": Family("a loss", "lamina.losses", "lamina.config.losses"),
    "methods": Family("a method", "lamina.methods", "lamina.config.methods"),
    "optimizers": Family("an optimizer", "lamina.optim", "lamina.config.optimizers"),
    "scorers": Family("a scorer", "lamina.evaluation.scorers"),
    "trackers": Family("a tracker", "lamina.trackers"),
}


@dataclass(frozen=True)
class Member:
    """A member of a family.

    Attributes:
        name: Its name in the configuration.
        module: Its module; for a pair, the module with the math.
        config: For a pair, the module for the configuration; otherwise empty.
        package: The distribution that adds it, with its version; empty for lamina's own members.
    """

    name: str
    module: str
    config: str = ""
    package: str = ""


# (family, name) -> why a plug-in is skipped.
_problems: dict[tuple[str, str], str] = {}


@functools.cache
def members(family: str) -> Mapping[str, Member]:
    """Returns all members of a family by name, lamina's own first, without importing them."""
    facts = FAMILIES[family]
    own = {
        name: Member(name, f"{facts.package}.{name}", f"{facts.config}.{name}" if facts.config else "")
        for name in _files(facts.config or facts.package)
    }
    found = dict(own)
    for name, points in sorted(_entry_points(family).items()):
        member, reason = _outside(family, name, points, found)
        if member is None:
            _problems[family, name] = reason
        else:
            found[name] = member
    return found


def config_halves(family: str, attribute: str, kind: type) -> dict[str, Any]:
    """Returns what the configuration modules of a family define, by member name.

    Args:
        family: A family of pairs.
        attribute: The name that each module defines.
        kind: The required type: the value must be an instance or a subclass of it.
    """
    found: dict[str, Any] = {}
    for name, member in members(family).items():
        if not member.package:
            found[name] = getattr(importlib.import_module(member.config), attribute)
            continue
        try:
            value = getattr(importlib.import_module(member.config), attribute)
            if not (isinstance(value, kind) or (isinstance(value, type) and issubclass(value, kind))):
                raise TypeError(f"{attribute} is {value!r}, not a {kind.__name__}")
        except Exception as error:
            _problems[family, name] = _cannot_import(member, member.config, error)
        else:
            found[name] = value
    return found


def load_member(family: str, name: str) -> ModuleType:
    """Imports a member; for a pair, the half with the math.

    Raises:
        ConfigError: There is no member with that name, or it cannot be imported.
    """
    member = members(family).get(name)
    if member is None:
        reason = problems(family).get(name) or f"there is no such member; available: {', '.join(members(family))}"
        raise ConfigError(Problem(family, f"{name!r} cannot be used: {reason}"))
    if not member.package:
        return importlib.import_module(member.module)
    try:
        return importlib.import_module(member.module)
    except Exception as error:
        reason = _problems[family, name] = _cannot_import(member, member.module, error)
        raise ConfigError(
            Problem(family, f"{name!r} cannot be used: {reason}", f"upgrade or uninstall {member.package}")
        ) from error


def problems(family: str) -> dict[str, str]:
    """Returns why each unusable plug-in of a family cannot be used, by name."""
    members(family)
    return {name: reason for (of, name), reason in _problems.items() if of == family}


def _files(package: str) -> list[str]:
    """Returns the names of lamina's own members in a package."""
    folder = Path(__file__).parent.joinpath(*package.split(".")[1:])
    names = (module.name for module in pkgutil.iter_modules([str(folder)]))
    return sorted(name for name in names if name not in _NO_MEMBERS and not name.startswith("_"))


@functools.cache
def _points(group: str) -> importlib.metadata.EntryPoints:
    return importlib.metadata.entry_points(group=group)


def _entry_points(family: str) -> dict[str, dict[str, list[importlib.metadata.EntryPoint]]]:
    """Returns the entry points of a family: name -> half -> entry points."""
    found: dict[str, dict[str, list[importlib.metadata.EntryPoint]]] = {}
    for half in ("", ".config") if FAMILIES[family].config else ("",):
        for point in _points(f"lamina.{family}{half}"):
            found.setdefault(point.name, {}).setdefault(half, []).append(point)
    return found


def _outside(
    family: str, name: str, points: Mapping[str, list[importlib.metadata.EntryPoint]], found: Mapping[str, Member]
) -> tuple[Member | None, str]:
    """Returns the member that a package adds, or None and the reason why it cannot be used."""
    packages = sorted({_package(point) for half in points.values() for point in half})
    by = " and ".join(packages)
    what = FAMILIES[family].what.partition(" ")[2]
    if not _NAME.fullmatch(name):
        return None, f"{by} names {what} {name!r}; a name must consist of lowercase letters, digits and underscores"
    if name in found:
        return None, f"{by} names {what} {name!r}, which is the name of one of lamina's own"
    if len(packages) > 1:
        return None, f"{by} both add {what} {name!r}; uninstall one of them"
    halves = [f"lamina.{family}{half}" for half in (("", ".config") if FAMILIES[family].config else ("",))]
    missing = [group for group in halves if group.removeprefix(f"lamina.{family}") not in points]
    if missing:
        return None, f"{by} adds {what} {name!r}, but has no entry point with that name in {missing[0]!r}"
    config = points[".config"][0].value if ".config" in points else ""
    return Member(name, points[""][0].value, config, packages[0]), ""


def _package(point: importlib.metadata.EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist is not None else "an unknown package"


def _cannot_import(member: Member, module: str, error: Exception) -> str:
    return f"{module} of {member.package} cannot be imported ({type(error).__name__}: {error})"
