"""`open_vllm_engine`: from a base and adapters to an engine whose servers run, and have them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from lamina.adapters.adapter import read_adapter
from lamina.adapters.load import adapter_folder as folder_of
from lamina.adapters.load import template_for
from lamina.errors import ConfigError, Problem
from lamina.machine.hardware import choose_dtype, default_device, dtype_name
from lamina.models.source import find_model
from lamina.progress import Notify
from lamina.server.vllm.base import read_base
from lamina.server.vllm.client import VllmClient
from lamina.server.vllm.engine import VllmEngine
from lamina.server.vllm.limits import check_limits, rank_of, served_rank
from lamina.server.vllm.process import ProcessSettings, VllmProcess, start_all, stop_all
from lamina.server.vllm.servers import Servers

# Holds the API key of servers that are named by URL.
KEY_VARIABLE = "LAMINA_VLLM_API_KEY"

# What lamina's own servers take at least.
_LEAST_RANK = 16


def open_vllm_engine(
    base: str,
    adapters: Mapping[str, str | Path] | None = None,
    *,
    urls: Sequence[str] = (),
    replicas: int = 1,
    arguments: Sequence[str] = (),
    dtype: str = "auto",
    copies: int = 2,
    python: str | None = None,
    adapter_folder: Path | None = None,
    check_seconds: float = 1.0,
    allow_base_mismatch: bool = False,
    notify: Notify = lambda message: None,
) -> VllmEngine:
    """Starts vLLM's servers, or takes those that run, and loads adapters to them.

    Args:
        base: An alias, a folder, a `.gguf` file, or a hub id.
        adapters: Runs or adapter folders by the names that requests call them by.
        urls: Of servers that run; none starts `replicas` of them here. Their API key is in LAMINA_VLLM_API_KEY.
        replicas: Servers to start.
        arguments: More of `vllm serve`'s for them.
        dtype: What the servers hold the base in: `bfloat16`, `float16` or `float32`; `auto` is what the machine
            multiplies best for servers that are started here, and bfloat16, vLLM's habit, for others.
        copies: How many servers get each adapter.
        python: The interpreter of vLLM's environment; by default that of LAMINA_VLLM_PYTHON.
        adapter_folder: Where copies of adapters are made for the servers to read; a folder that servers on other
            machines see under the same path.
        check_seconds: Between two looks at a server.
        allow_base_mismatch: Load adapters although their lock names another base; their certificate has to pass all the
            same.
        notify: Called with a sentence before anything that takes a while, and when a server goes or comes.

    Raises:
        AdapterError, BaseMismatchError, CertificateError: An adapter cannot be used.
        ConfigError, ModelError: The base cannot be used, or vLLM is not there or does not start.
        LaminaError: A server does not answer.
    """
    adapters = dict(adapters or {})
    _check_numbers(urls, replicas, copies, arguments)
    if dtype == "auto":
        dtype = "bfloat16" if urls else dtype_name(choose_dtype("auto", default_device()))
    outline = read_base(base, dtype, notify)
    template = template_for(outline, adapters)
    rank = _most_rank(adapters, arguments, is_known=not urls)
    processes: list[VllmProcess] = []
    if urls:
        key = os.environ.get(KEY_VARIABLE)
        clients = [VllmClient(url, key) for url in urls]
    else:
        notify(f"Starting vLLM ({replicas} server{'s' if replicas > 1 else ''}) ...")
        settings = ProcessSettings(find_model(base, notify).folder, dtype, rank or _LEAST_RANK, arguments=arguments)
        processes = start_all(replicas, settings, python)
        clients = [VllmClient(process.url, process.key) for process in processes]
    try:
        engine = VllmEngine(
            outline,
            template,
            Servers(clients, processes, dtype, rank, copies, check_seconds, adapter_folder, allow_base_mismatch),
            notify,
        )
    except BaseException:
        stop_all(processes)
        raise
    try:
        for name, path in adapters.items():
            notify(f"Loading the adapter {name} ...")
            engine.load(name, path)
    except BaseException:
        engine.close()
        raise
    return engine


def _most_rank(adapters: Mapping[str, str | Path], arguments: Sequence[str], *, is_known: bool) -> int | None:
    """The highest rank that the servers take, after a look at what they will be asked to take; None if not known.

    Raises:
        AdapterError: vLLM serves one of the adapters by no setting.
    """
    ranks = [_LEAST_RANK]
    for path in adapters.values():
        adapter = read_adapter(folder_of(path))
        check_limits(adapter)
        ranks.append(rank_of(adapter.peft_config))
    if not is_known:
        return None
    given = _value_of("--max-lora-rank", arguments)
    return int(given) if given is not None and given.isdigit() else served_rank(max(ranks))


def _value_of(name: str, arguments: Sequence[str]) -> str | None:
    """The last value of an option in `--name value` or `--name=value`."""
    found = None
    for place, argument in enumerate(arguments):
        if argument.startswith(f"{name}="):
            found = argument.partition("=")[2]
        elif argument == name and place + 1 < len(arguments):
            found = arguments[place + 1]
    return found


def _check_numbers(urls: Sequence[str], replicas: int, copies: int, arguments: Sequence[str]) -> None:
    problems = []
    if replicas < 1:
        problems.append(Problem("--replicas", f"{replicas} is not 1 or more", "use at least 1"))
    if copies < 1:
        problems.append(Problem("copies", f"{copies} is not 1 or more", "use at least 1"))
    if len(set(urls)) < len(urls):
        problems.append(Problem("--vllm-url", "names a server twice", "name each once"))
    if urls and (replicas > 1 or arguments):
        fix = "leave out --vllm-url to have lamina start servers, or --replicas and --vllm-arg to use those that run"
        problems.append(Problem("--vllm-url", "names servers that run, so none is started", fix))
    if problems:
        raise ConfigError(problems)
