"""Runs steps, one after the other, in a process that may die of any of them."""

from __future__ import annotations

import faulthandler
import importlib
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tools.gpu.record import Failed, Lacking, Record, append, say
from tools.gpu.steps import Step


@dataclass(frozen=True)
class Here:
    """What a step is given.

    Attributes:
        device: `cuda` or `cpu`.
        out: A folder for what it writes.
        record: Where its results go.
    """

    device: str
    out: Path
    record: Record

    @property
    def small(self) -> bool:
        """Whether to take small shapes."""
        return self.device == "cpu"

    @property
    def kernels(self) -> str:
        """The kernels that CUDA takes by itself."""
        return "compiled" if self.device == "cpu" else "auto"


def work(steps: Sequence[Step], device: str, out: Path) -> int:
    """Runs steps until one leaves the device in a state that cannot be trusted.

    Returns:
        The process's exit code: 0 if it came to the end.
    """
    faulthandler.enable()
    for step in steps:
        append(out, {"step": step.name, "kind": "begin"})
        say(out, f"{step.name}: {step.about}")
        record, began = Record(out, step.name), time.perf_counter()
        status, reason, broken = "passed", "", False
        try:
            _function(step)(Here(device, out, record))
            status = "failed" if record.failures else "passed"
        except Lacking as error:
            status, reason = "not run", str(error)
        except ImportError as error:
            status, reason = "not run", f"{error}"
        except Failed as error:
            status, reason = "failed", str(error)
        except Exception as error:
            status, reason = "failed", f"{type(error).__name__}: {str(error).strip()[:500]}"
            (out / f"{step.name}.traceback.txt").write_text(traceback.format_exc(), encoding="utf-8")
            broken = device == "cuda" and "CUDA" in str(error)
        append(out, {"step": step.name, "kind": "end", "status": status, "reason": reason} | _seconds(began))
        say(out, f"  {step.name} {status} after {time.perf_counter() - began:.1f} s{f': {reason}' if reason else ''}")
        if broken:  # an error of the device stays with its process
            return 3
    return 0


def _seconds(began: float) -> dict[str, float]:
    return {"seconds": round(time.perf_counter() - began, 2)}


def _function(step: Step) -> Callable[[Here], None]:
    module, name = step.function.split(":")
    return getattr(importlib.import_module(f"tools.gpu.{module}"), name)
