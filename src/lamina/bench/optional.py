"""The one place where packages that only benchmarks need are imported."""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType

from lamina.errors import BenchError

# Package -> how to get it. LitGPT pins a huggingface-hub older than transformers 5 needs, so it has no extra.
INSTALL = {
    "trl": "pip install 'lamina[bench]'",
    "datasets": "pip install 'lamina[bench]'",
    "matplotlib": "pip install 'lamina[bench]'",
    "peft": "pip install 'lamina[bench]'",
    "litgpt": "install it with its own dependencies in a separate environment, and name that environment's "
    "interpreter with --python litgpt=PATH (docs/benchmarks.md)",
    "lightning": "see litgpt",
    "vllm": "install it in an environment of its own, and name its Python in LAMINA_VLLM_PYTHON (docs/benchmarks.md)",
    "unsloth": "pip install unsloth, on a machine with CUDA",
}


def is_installed(package: str) -> bool:
    """Whether this interpreter could import `package`; nothing is imported."""
    return importlib.util.find_spec(package) is not None


def optional(name: str) -> ModuleType:
    """Imports a module of an optional package.

    Raises:
        BenchError: It is not installed; the message says how to install it.
    """
    package = name.partition(".")[0]
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != package:
            raise
        raise BenchError(f"{package} is not installed. Fix: {INSTALL[package]}.") from None
