"""`lamina serve` and `lamina replay`: a server, and answers that it gave, once more."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from lamina.cli.output import JsonFlag, notify, out, pair, print_json
from lamina.cli.serve_start import Start
from lamina.errors import ConfigError, Problem

Adapters = Annotated[
    list[str] | None,
    typer.Option(
        "--adapter",
        help="NAME=PATH of a run or adapter folder; or a version or an alias of the registry, with or without NAME=. "
        "May be repeated.",
    ),
]


def serve(
    model: Annotated[
        str | None,
        typer.Argument(metavar="[MODEL]", help="A base model, or a run or adapter folder; or in the --config file."),
    ] = None,
    adapter: Adapters = None,
    config: Annotated[
        Path | None, typer.Option("--config", help="A YAML file with settings; flags override it.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="What requests call the base.")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen at; by default 127.0.0.1.")] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port to listen at, by default 8000; 0 takes a free one.")
    ] = None,
    api_key_file: Annotated[
        Path | None, typer.Option(help="File of API keys, one a line: KEY, or admin:KEY; or set LAMINA_API_KEY.")
    ] = None,
    no_auth: Annotated[
        bool, typer.Option("--no-auth", help="Ask for no API key; on a loopback address alone.")
    ] = False,
    adapter_root: Annotated[
        Path | None, typer.Option(help="Folder inside of which adapters may be loaded over HTTP; by default nowhere.")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="bfloat16, float32, or auto: as the machine multiplies best.")
    ] = None,
    engine: Annotated[
        str | None, typer.Option(help="What computes: lamina (the default), or vllm, whose servers are started.")
    ] = None,
    vllm_url: Annotated[
        list[str] | None, typer.Option(help="With vllm: a server that runs, in place of starting one; may be repeated.")
    ] = None,
    replicas: Annotated[int | None, typer.Option(min=1, help="With vllm: how many servers to start.")] = None,
    vllm_arg: Annotated[
        list[str] | None, typer.Option(help="With vllm: an argument for its servers; may be repeated.")
    ] = None,
    max_running: Annotated[int | None, typer.Option(min=1, help="Answers that are computed at once.")] = None,
    drain_seconds: Annotated[
        float | None, typer.Option(min=0.0, help="Time for running requests after SIGTERM; by default 30.")
    ] = None,
    registry: Annotated[
        str | None,
        typer.Option(metavar="URL|FOLDER", help="Registry of the references; aliases are followed while it runs."),
    ] = None,
    log_requests: Annotated[
        Path | None, typer.Option(help="Add every prompt and answer to this file, for lamina replay.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Serve a base model and any number of adapters over OpenAI's API."""
    flags = {
        "model": model,
        "registry": registry,
        "name": name,
        "host": host,
        "port": port,
        "api_key_file": api_key_file and str(api_key_file),
        "no_auth": no_auth or None,
        "adapter_root": adapter_root and str(adapter_root),
        "dtype": dtype,
        "engine": engine,
        "vllm": {
            name: value
            for name, value in {"urls": vllm_url, "replicas": replicas, "arguments": vllm_arg}.items()
            if value
        }
        or None,
        "max_running": max_running,
        "drain_seconds": drain_seconds,
        "log_requests": log_requests and str(log_requests),
    }
    with Start() as start:
        _serve(config, {**flags, "adapters": _named(adapter)}, start, as_json)
        if not start.is_over:
            raise KeyboardInterrupt  # the signal came when the server already listened for it


def _serve(config: Path | None, flags: dict[str, Any], start: Start, as_json: bool) -> None:
    from lamina.server.settings import read_settings

    settings = read_settings(config, flags)
    if settings.model is None:
        raise ConfigError(Problem("model", "is not given", "name one: lamina serve MODEL, or model: in the file"))
    check_installed()
    from lamina.server.serve import Ready
    from lamina.server.serve import serve as run_server

    def ready(server: Ready) -> None:
        start.end()
        if as_json:
            print_json({"url": server.url, "models": server.models, "pid": os.getpid()})
        else:
            out.print(f"{server.url}  {', '.join(server.models)}", markup=False)

    def tell(message: str) -> None:
        start.check()
        notify(message)

    run_server(settings, ready, tell)


def replay(
    log: Annotated[Path, typer.Argument(metavar="LOG", help="A file of lamina serve --log-requests.")],
    model: Annotated[str | None, typer.Option("--model", help="The base; by default the one that answered.")] = None,
    adapter: Adapters = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Replay only the last N requests.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Answer logged requests again, and compare: the same, or which component differs."""
    adapters = dict(pair("--adapter", text) for text in adapter or [])
    from lamina.server.replay import replay as replay_log

    result = replay_log(log, model=model, adapters=adapters, limit=limit, notify=notify)
    if as_json:
        print_json(result.as_json())
    else:
        for line in result.lines():
            out.print(line, markup=False)
    if not result.is_same:
        raise typer.Exit(1)


def _named(texts: list[str] | None) -> dict[str, str]:
    """Adapters by name; a version or an alias of the registry may stand alone, and is called by its reference."""
    from lamina.registry.names import is_reference

    return dict((text, text) if is_reference(text) else pair("--adapter", text) for text in texts or [])


def check_installed() -> None:
    """Checks that the packages of the extra `serve` are there.

    Raises:
        ConfigError: One is not.
    """
    from importlib.util import find_spec

    missing = [name for name in ("fastapi", "uvicorn", "prometheus_client") if find_spec(name) is None]
    if missing:
        message = f"needs {', '.join(missing)}, which are not installed"
        raise ConfigError(Problem("lamina serve", message, "pip install 'lamina[serve]'"))
