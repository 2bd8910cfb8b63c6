"""Settings of a server: one YAML file, or flags that stand above it. Imports neither torch nor a web framework."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from lamina.config.read import read_yaml
from lamina.config.section import Section
from lamina.errors import ConfigError, Problem, nearest

# With `@` and `:`, so that a version or an alias of a registry can answer under its own name.
NAME = r"[A-Za-z0-9][A-Za-z0-9._@:-]{0,127}"
_NAME = re.compile(NAME)

Count = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(gt=0, le=1)]


class LimitSettings(Section):
    """What one request, and all of them together, may ask for."""

    body_bytes: Count = 4 * 2**20
    """Longest body."""

    context: Count | None = None
    """Tokens that a prompt and its answer may have together; by default as many as the engine has room for."""

    max_tokens: Count = 32_768
    """Longest answer in tokens."""

    n: Annotated[int, Field(ge=1, le=128)] = 8
    """Answers to one prompt."""

    prompts: Annotated[int, Field(ge=1, le=4096)] = 256
    """Prompts in one request for completions."""

    stop: Annotated[int, Field(ge=1, le=256)] = 16
    """Stop strings, and stop tokens."""

    queue: Count = 1024
    """Answers that may wait to begin; a request beyond that gets status 429."""

    request_seconds: Seconds = 600.0
    """Time for one request."""

    body_seconds: Seconds = 30.0
    """Time for a body to arrive."""


class AliasSettings(Section):
    """A name whose requests are split over adapters."""

    weights: dict[str, Annotated[float, Field(ge=0)]]
    """Adapter, or the base's name -> its weight."""

    sticky: str = "user"
    """What keeps a client on one adapter: `user` (the request's field), `header:NAME`, or `none`."""


class ShadowSettings(Section):
    """Requests that are also answered by another adapter, with both answers stored."""

    of: str
    """Whose requests: an adapter, the base or an alias."""

    to: str
    """Who answers beside it."""

    share: Share = 1.0
    """How many of the requests."""

    file: str = "shadow.jsonl"
    """Where both answers go."""


class VllmSettings(Section):
    """vLLM's servers, with `engine: vllm`."""

    urls: list[str] = Field(default_factory=list)
    """Servers that run; by default they are started here. Their key is in LAMINA_VLLM_API_KEY."""

    replicas: Count = 1
    """Servers to start."""

    arguments: list[str] = Field(default_factory=list)
    """More of `vllm serve`'s for them."""

    adapter_folder: str | None = None
    """Folder for copies of adapters, which servers on other machines see under the same path."""


class ServeSettings(Section):
    """A server."""

    model: str | None = None
    """The base, or a run or adapter folder, or a version or an alias of the registry."""

    name: str | None = None
    """What requests call the base; by default its alias, its hub id or the name of its folder."""

    adapters: dict[str, str] = Field(default_factory=dict)
    """Name -> run or adapter folder, or a version or an alias of the registry, such as `support@prod`."""

    registry: str | None = None
    """The registry, for references; by default LAMINA_REGISTRY, or the user's own."""

    follow_seconds: Seconds = 5.0
    """How often to look where followed aliases point."""

    host: str = "127.0.0.1"
    """Address to listen at."""

    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """Port; 0 takes a free one."""

    api_key_file: str | None = None
    """File of keys, one a line: `KEY`, or `admin:KEY`."""

    no_auth: bool = False
    """Let everybody in, on a loopback address alone."""

    adapter_root: str | None = None
    """Folder inside of which adapters may be loaded over HTTP."""

    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Of the base."""

    engine: Literal["lamina", "vllm"] = "lamina"
    """What computes: lamina's own engine, or vLLM's servers."""

    vllm: VllmSettings = Field(default_factory=VllmSettings)
    """Which servers, with `engine: vllm`."""

    max_running: Count | None = None
    """Answers that are computed at once."""

    drain_seconds: Annotated[float, Field(ge=0)] = 30.0
    """Time for running requests at the end."""

    log_requests: str | None = None
    """File for what `lamina replay` reads: every prompt and answer."""

    isolate_keys: bool = True
    """Share cached prefixes only between requests of one key."""

    limits: LimitSettings = Field(default_factory=LimitSettings)
    """Bounds."""

    aliases: dict[str, AliasSettings] = Field(default_factory=dict)
    """Names that are split over adapters."""

    shadow: list[ShadowSettings] = Field(default_factory=list)
    """Requests that are answered twice."""

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine reaches the server."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def read_settings(path: str | Path | None, flags: Mapping[str, Any]) -> ServeSettings:
    """Reads a configuration file, lays flags over it, and checks both.

    Args:
        path: A YAML file; None for flags alone.
        flags: By the settings' names; None stands for what was not given. Names of a section, such as `adapters` or
            `vllm`, are added to the file's, of which the others stay.

    Raises:
        ConfigError: A setting is not allowed; all of them are listed.
    """
    values = {} if path is None else read_yaml(Path(path), "--config", "model: MODEL")
    for name, value in flags.items():
        if isinstance(value, Mapping) and values.get(name) is not None:
            # A section of the file that is none stays, to be refused as what it is.
            values[name] = {**values[name], **value} if isinstance(values[name], Mapping) else values[name]
        elif value is not None:
            values[name] = value
    try:
        settings = ServeSettings.model_validate(values)
    except ValidationError as error:
        raise ConfigError([_problem(detail) for detail in error.errors()], str(path or "")) from None
    problems = [*_unusable_names(settings), *_unusable_aliases(settings), *_unusable_host(settings)]
    problems += _unusable_engine(settings)
    if problems:
        raise ConfigError(problems, str(path or ""))
    return settings


def _unusable_names(settings: ServeSettings) -> list[Problem]:
    fix = "use letters, digits, dots, dashes, underscores, colons and @, at most 128"
    named = [("adapters", name) for name in settings.adapters] + [("aliases", name) for name in settings.aliases]
    problems = [Problem(field, f"{name!r} is not a name", fix) for field, name in named if not _NAME.fullmatch(name)]
    twice = settings.adapters.keys() & settings.aliases.keys()
    return problems + [Problem("aliases", f"{name!r} is also an adapter", "rename one") for name in sorted(twice)]


def _unusable_aliases(settings: ServeSettings) -> list[Problem]:
    problems = []
    for name, alias in settings.aliases.items():
        if not any(alias.weights.values()):
            problems.append(Problem(f"aliases.{name}.weights", "has no weight above 0", "give one adapter a weight"))
        if alias.sticky not in ("user", "none") and not re.fullmatch(r"header:[A-Za-z0-9-]+", alias.sticky):
            fix = "use `user`, `none` or `header:NAME`"
            problems.append(Problem(f"aliases.{name}.sticky", f"{alias.sticky!r} is not allowed", fix))
    return problems


def _unusable_host(settings: ServeSettings) -> list[Problem]:
    if settings.no_auth and settings.api_key_file is not None:
        return [Problem("--no-auth", "contradicts --api-key-file", "give one of them")]
    if settings.no_auth and not settings.is_loopback:
        fix = "use --host 127.0.0.1, or give keys with --api-key-file"
        return [Problem("--no-auth", f"would let everybody in at {settings.host}, which is not loopback", fix)]
    return []


def _unusable_engine(settings: ServeSettings) -> list[Problem]:
    if settings.engine == "lamina" and settings.vllm != VllmSettings():
        return [Problem("vllm", "has no effect without engine: vllm", "add --engine vllm, or leave it out")]
    if settings.engine == "vllm" and settings.max_running is not None:
        fix = "give vLLM its own: --vllm-arg=--max-num-seqs=N"
        return [Problem("max_running", "is lamina's engine's, and has no effect with engine: vllm", fix)]
    if settings.vllm.urls and settings.vllm.replicas != 1:
        return [Problem("vllm.replicas", "starts servers, and vllm.urls names ones that run", "give one of them")]
    return []


def _problem(detail: Any) -> Problem:
    field = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "extra_forbidden":
        inner = {"limits": LimitSettings, "vllm": VllmSettings}
        known = inner.get(str(detail["loc"][0]), ServeSettings).model_fields
        return Problem(field, "unknown key.", nearest(str(detail["loc"][-1]), known))
    message = detail["msg"].replace("Input should be", "must be").replace("Field required", "is required")
    return Problem(field, f"got {detail['input']!r:.60}; {message}." if detail["type"] != "missing" else f"{message}.")
