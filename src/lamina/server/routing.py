"""Which adapter answers: the name that a request gives, or an alias that is split over several by weights."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lamina.errors import ConfigError, Problem, nearest
from lamina.server.errors import unknown_model
from lamina.server.settings import AliasSettings, ServeSettings, ShadowSettings


@dataclass(frozen=True)
class Target:
    """Who answers.

    Attributes:
        asked: The name in the request.
        name: The name of the one that answers.
        adapter: The adapter; None for the base.
    """

    asked: str
    name: str
    adapter: str | None


class Router:
    """The names of a server."""

    def __init__(self, base: str, settings: ServeSettings, adapters: Sequence[str]) -> None:
        """
        Args:
            base: What requests call the base.
            settings: Aliases and shadows.
            adapters: Those that are loaded.

        Raises:
            ConfigError: A name stands for two things, or an alias or a shadow names none that is loaded.
        """
        self.base, self.aliases, self.shadows = base, settings.aliases, settings.shadow
        known = {base, *adapters}
        problems = [
            Problem(field, f"{base!r} is what requests call the base", "rename it, or set --name")
            for field, names in (("adapters", adapters), ("aliases", settings.aliases))
            if base in names
        ]
        named = [(f"aliases.{name}.weights", to) for name, alias in self.aliases.items() for to in alias.weights]
        named += [(f"shadow.{number}.to", shadow.to) for number, shadow in enumerate(self.shadows)]
        problems += [_unknown(field, name, known) for field, name in named if name not in known]
        known |= set(self.aliases)
        problems += [
            _unknown(f"shadow.{number}.of", shadow.of, known)
            for number, shadow in enumerate(self.shadows)
            if shadow.of not in known
        ]
        if problems:
            raise ConfigError(problems)

    def find(self, name: str, adapters: Sequence[str], user: str | None, headers: Mapping[str, str]) -> Target:
        """Who answers a request.

        Args:
            name: The request's `model`.
            adapters: Those that are loaded now.
            user: The request's `user`.
            headers: Its headers, by lower-case names.

        Raises:
            ApiError: Nobody has the name.
        """
        chosen = name
        if name in self.aliases:
            alias = self.aliases[name]
            chosen = pick(alias.weights, _point(name, _sticky(alias, user, headers)))
        if chosen == self.base:
            return Target(name, chosen, None)
        if chosen not in adapters:
            known = [self.base, *adapters, *self.aliases]
            listed = ", ".join(map(repr, known[:10])) + (", ..." if len(known) > 10 else "")
            raise unknown_model(name[:200], f"is not served here. There are {listed}. {nearest(name, known)}".strip())
        return Target(name, chosen, chosen)

    def uses(self, adapter: str) -> str | None:
        """The alias or shadow that needs an adapter; None if none does."""
        for name, alias in self.aliases.items():
            if adapter in alias.weights:
                return f"the alias {name!r}"
        return next((f"the shadow of {shadow.of!r}" for shadow in self.shadows if adapter == shadow.to), None)

    def shadow_of(self, target: Target, request_id: str) -> ShadowSettings | None:
        """Who answers a request beside its target, if it is among those that are answered twice."""
        for shadow in self.shadows:
            if shadow.of in (target.asked, target.name) and shadow.to != target.name:
                return shadow if _point(f"shadow:{shadow.to}", request_id) < shadow.share else None
        return None


def pick(weights: Mapping[str, float], point: float) -> str:
    """The name at a point between 0 and 1 on a line that is split by the weights."""
    names = [name for name, weight in weights.items() if weight > 0]
    left = point * sum(weights[name] for name in names)
    for name in names:
        left -= weights[name]
        if left < 0:
            return name
    return names[-1]


def _sticky(alias: AliasSettings, user: str | None, headers: Mapping[str, str]) -> str | None:
    if alias.sticky == "none":
        return None
    return user if alias.sticky == "user" else headers.get(alias.sticky.removeprefix("header:").lower())


def _point(name: str, value: str | None) -> float:
    """Between 0 and 1: always the same for a value, and another each time without one."""
    if not value:
        return random.random()
    digest = hashlib.sha256(f"{name}\0{value}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:7], "big") / 2**56


def _unknown(field: str, name: str, known: set[str]) -> Problem:
    return Problem(field, f"{name!r} is not loaded", nearest(name, known) or "add it to adapters")
