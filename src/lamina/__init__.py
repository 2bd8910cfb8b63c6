"""lamina: parameter-efficient fine-tuning of language models, from a data file to a proven adapter.

    import lamina

    run = lamina.train({"data": {"train": "train.jsonl"}, "output_dir": "runs/mine"})
    loaded = lamina.load(run.path)
    lamina.merge(run.path, "merged")

Importing lamina is quick: everything below is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from lamina.version import __version__

if TYPE_CHECKING:
    from lamina.adapters.load import Loaded, load
    from lamina.config import Config, load_config
    from lamina.engine.engine import Engine
    from lamina.engine.generate import generate
    from lamina.engine.generator import Piece, Request
    from lamina.engine.sampling import Sampling
    from lamina.evaluation.classify import classify
    from lamina.evaluation.evaluate import evaluate
    from lamina.evaluation.subjects import evaluate_subjects
    from lamina.export.merge import merge
    from lamina.export.quantize import quantize
    from lamina.gate.run import run_gate
    from lamina.registry.registry import Registry
    from lamina.runs import Run
    from lamina.runs.events import Event
    from lamina.training.loop import train
    from lamina.verification.report import Verification
    from lamina.verification.verify import verify

_LAZY = {
    "Config": "lamina.config",
    "Engine": "lamina.engine.engine",
    "Event": "lamina.runs.events",
    "Loaded": "lamina.adapters.load",
    "Piece": "lamina.engine.generator",
    "Registry": "lamina.registry.registry",
    "Request": "lamina.engine.generator",
    "Run": "lamina.runs",
    "Sampling": "lamina.engine.sampling",
    "Verification": "lamina.verification.report",
    "classify": "lamina.evaluation.classify",
    "evaluate": "lamina.evaluation.evaluate",
    "evaluate_subjects": "lamina.evaluation.subjects",
    "generate": "lamina.engine.generate",
    "load": "lamina.adapters.load",
    "load_config": "lamina.config",
    "merge": "lamina.export.merge",
    "quantize": "lamina.export.quantize",
    "run_gate": "lamina.gate.run",
    "train": "lamina.training.loop",
    "verify": "lamina.verification.verify",
}

__all__ = [
    "Config",
    "Engine",
    "Event",
    "Loaded",
    "Piece",
    "Registry",
    "Request",
    "Run",
    "Sampling",
    "Verification",
    "__version__",
    "classify",
    "evaluate",
    "evaluate_subjects",
    "generate",
    "load",
    "load_config",
    "merge",
    "quantize",
    "run_gate",
    "train",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'lamina' has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)
