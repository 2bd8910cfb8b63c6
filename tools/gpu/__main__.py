"""`make gpu`: proves and measures, in eight minutes, all that lamina does on a GPU.

    python -m tools.gpu [--device cpu] [--out FOLDER] [--minutes 8] [--only STEP,STEP] [--list]

The steps and their order: `steps.py`. Each runs in a worker that may crash or hang without harm to the others
(`runner.py`). Every result is in FOLDER/results.jsonl and FOLDER/results.txt as soon as it is known. The exit code is 0
if every proof that could run passed, else 1. With `--device cpu` the same steps run small, on the paths that CUDA
takes: compiled kernels, and attention document by document.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from tools.gpu import packages, runner, worker
from tools.gpu.steps import STEPS

NO_GPU = (
    "make gpu: torch sees no CUDA device here, so there is nothing to run; run it on a machine with an NVIDIA GPU and "
    "a CUDA build of torch. (python -m tools.gpu --device cpu runs the same steps small, on the CPU.)"
)


def main() -> int:
    """Runs the steps; see the file's top."""
    parser = argparse.ArgumentParser(prog="python -m tools.gpu", description="Proves and measures lamina on a GPU.")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT") or "build/gpu"))
    parser.add_argument("--minutes", type=float, help="for everything together; by default 8, and 60 on the CPU")
    parser.add_argument("--only", default="", help="steps, separated by commas")
    parser.add_argument("--list", action="store_true", help="say what there is, and stop")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.out = arguments.out.resolve()
    wanted = [name for name in arguments.only.split(",") if name]
    unknown = sorted(set(wanted) - {step.name for step in STEPS})
    if unknown:
        parser.error(f"no step is called {', '.join(unknown)}; see --list")
    if arguments.list:
        for step in STEPS:
            print(f"{step.name:16} {step.about}")
        return 0
    steps = [step for step in STEPS if not wanted or step.name in wanted]
    if arguments.worker:
        return worker.work(steps, arguments.device, arguments.out)
    if not packages.is_installed("torch"):
        print(f"make gpu: {sys.executable} has no torch. Fix: run it with an interpreter that has a CUDA build of it.")
        return 1
    if arguments.device == "cuda" and not packages.sees_cuda():
        print(NO_GPU, file=sys.stderr)
        return 1
    minutes = arguments.minutes or (8.0 if arguments.device == "cuda" else 60.0)
    return runner.run(steps, arguments.device, arguments.out, minutes * 60.0)


if __name__ == "__main__":
    sys.exit(main())
