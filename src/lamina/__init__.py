"""lamina: parameter-efficient fine-tuning of language models, from a data file to a proven adapter.

    import lamina

    run = lamina.train(data=frame, max_steps=100)  # or lamina.train("run.yaml")
    run.plot()
    loaded = lamina.load(run.path)
    lamina.merge(run.path, "merged")

Importing lamina is quick: everything below is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from lamina.version import __version__

if TYPE_CHECKING:
    from lamina.adapters.convert import convert
    from lamina.adapters.load import Loaded, load
    from lamina.api.train import train
    from lamina.config import Config, load_config
    from lamina.engine.engine import Engine
    from lamina.engine.generate import generate
    from lamina.engine.generator import Piece, Request
    from lamina.engine.sampling import Sampling
    from lamina.errors import (
        AdapterError,
        BaseMismatchError,
        ConfigError,
        DataError,
        Interrupted,
        LaminaError,
        LaminaWarning,
        ModelError,
        RegistryError,
        RunError,
        StorageError,
        TrainingError,
    )
    from lamina.evaluation.classify import classify
    from lamina.evaluation.evaluate import evaluate
    from lamina.evaluation.subjects import evaluate_subjects
    from lamina.export.merge import merge, merge_and_unload
    from lamina.export.quantize import quantize
    from lamina.gate.run import run_gate
    from lamina.registry.registry import Registry
    from lamina.runs import Run, RunComparison, compare_runs
    from lamina.runs import open_run as load_run
    from lamina.runs.events import Event
    from lamina.verification.report import Verification
    from lamina.verification.verify import verify

_LAZY = {
    "AdapterError": "lamina.errors",
    "BaseMismatchError": "lamina.errors",
    "Config": "lamina.config",
    "ConfigError": "lamina.errors",
    "DataError": "lamina.errors",
    "Engine": "lamina.engine.engine",
    "Event": "lamina.runs.events",
    "Interrupted": "lamina.errors",
    "LaminaError": "lamina.errors",
    "LaminaWarning": "lamina.errors",
    "Loaded": "lamina.adapters.load",
    "ModelError": "lamina.errors",
    "Piece": "lamina.engine.generator",
    "Registry": "lamina.registry.registry",
    "RegistryError": "lamina.errors",
    "Request": "lamina.engine.generator",
    "Run": "lamina.runs",
    "RunComparison": "lamina.runs",
    "RunError": "lamina.errors",
    "Sampling": "lamina.engine.sampling",
    "StorageError": "lamina.errors",
    "TrainingError": "lamina.errors",
    "Verification": "lamina.verification.report",
    "classify": "lamina.evaluation.classify",
    "compare_runs": "lamina.runs",
    "convert": "lamina.adapters.convert",
    "evaluate": "lamina.evaluation.evaluate",
    "evaluate_subjects": "lamina.evaluation.subjects",
    "generate": "lamina.engine.generate",
    "load": "lamina.adapters.load",
    "load_config": "lamina.config",
    "load_run": "lamina.runs",
    "merge": "lamina.export.merge",
    "merge_and_unload": "lamina.export.merge",
    "quantize": "lamina.export.quantize",
    "run_gate": "lamina.gate.run",
    "train": "lamina.api.train",
    "verify": "lamina.verification.verify",
}

# Names that are others where they are defined.
_RENAMED = {"load_run": "open_run"}

__all__ = [
    "AdapterError",
    "BaseMismatchError",
    "Config",
    "ConfigError",
    "DataError",
    "Engine",
    "Event",
    "Interrupted",
    "LaminaError",
    "LaminaWarning",
    "Loaded",
    "ModelError",
    "Piece",
    "Registry",
    "RegistryError",
    "Request",
    "Run",
    "RunComparison",
    "RunError",
    "Sampling",
    "StorageError",
    "TrainingError",
    "Verification",
    "__version__",
    "classify",
    "compare_runs",
    "convert",
    "evaluate",
    "evaluate_subjects",
    "generate",
    "load",
    "load_config",
    "load_run",
    "merge",
    "merge_and_unload",
    "quantize",
    "run_gate",
    "train",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'lamina' has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), _RENAMED.get(name, name))


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
