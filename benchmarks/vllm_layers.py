"""How surely it is found out that vLLM leaves a layer of an adapter out: each layer in turn is zeroed on its way there.

    LAMINA_VLLM_PYTHON=.venv-vllm/bin/python python benchmarks/vllm_layers.py RUN [--dtype bfloat16] [--json]

RUN is a run on `--model`. The whole adapter is loaded `--whole` times beside, which must pass.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from lamina.errors import CertificateError
from lamina.server.vllm.engine import VllmEngine
from lamina.server.vllm.open import open_vllm_engine
from lamina.server.vllm.staging import Staging

TENSORS = "adapter_model.safetensors"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--whole", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    tensors = load_file(args.run / "adapter" / TENSORS)
    layers = sorted(
        {match.group(1) for match in map(re.compile(r"(layers\.\d+)\.").search, tensors) if match}, key=_number
    )
    rows: list[dict[str, Any]] = []
    arguments = ("--enforce-eager", "--max-model-len", "1024")
    with open_vllm_engine(args.model, {}, replicas=1, dtype=args.dtype, arguments=arguments) as engine:
        for number in range(args.whole):
            rows.append({"left out": "", **outcome(engine, args.run, f"whole{number}", None)})
        for layer in layers:
            rows.append({"left out": layer, **outcome(engine, args.run, layer.replace(".", "-"), layer)})
            print(rows[-1], file=sys.stderr, flush=True)
    found = [row for row in rows if row["left out"] and not row["passed"]]
    named = [row for row in found if re.findall(r"layers\.\d+", row["why"]) == [row["left out"]]]
    wrong = sum(not row["passed"] for row in rows if not row["left out"])
    facts = {"layers": len(layers), "found": len(found), "named": len(named), "whole refused": wrong, "rows": rows}
    print(json.dumps(facts) if args.json else {key: value for key, value in facts.items() if key != "rows"})


def outcome(engine: VllmEngine, run: Path, name: str, layer: str | None) -> dict[str, Any]:
    """Loads an adapter whose copy for vLLM has a layer of zeros; says whether it passed, and why not."""
    copy = Staging.copy
    Staging.copy = _without(copy, layer)  # type: ignore[method-assign]
    try:
        facts = engine.load(name, run)
        assert facts.certificate is not None
        engine.unload(name)
        return {"passed": True, "why": "; ".join(facts.certificate.notes)}
    except CertificateError as error:
        return {"passed": False, "why": "; ".join(error.certificate.reasons)}
    finally:
        Staging.copy = copy  # type: ignore[method-assign]


def _without(copy: Callable[..., Path], layer: str | None) -> Callable[..., Path]:
    def tampered(self: Staging, adapter: Any) -> Path:
        folder = copy(self, adapter)
        if layer is not None:
            tensors = load_file(folder / TENSORS)
            zeroed = {name: torch.zeros_like(each) if f".{layer}." in name else each for name, each in tensors.items()}
            save_file(zeroed, folder / TENSORS, metadata={"format": "pt"})
        return folder

    return tampered


def _number(layer: str) -> int:
    return int(layer.rpartition(".")[2])


if __name__ == "__main__":
    main()
