"""Reads a pickled adapter (`adapter_model.bin`) and writes its tensors as safetensors, in a process of its own.

    python -m lamina.adapters.unpickle SOURCE TARGET MEMORY_BYTES SECONDS

`convert.py` starts it. torch's restricted unpickler builds tensors alone, so that nothing that a file says is run. The
process limits its own memory, time and output before it opens the file. Its last line on stdout is JSON: `{"tensors":
N}`, or `{"refused": REASON}` for a file that holds something else.
"""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

_TOO_MUCH = "its tensors take more memory than the file's size allows"


def main(source: Path, target: Path, memory: int, seconds: int) -> dict[str, Any]:
    """Converts one file.

    Args:
        source: The pickled file.
        target: The file to write.
        memory: Bytes that the process may take beyond what it has now, and that it may write.
        seconds: Processor time that it may take.
    """
    torch.set_num_threads(1)
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else 0
    taken = pages * resource.getpagesize() or 2**36
    for limit, value in (
        (resource.RLIMIT_AS, taken + memory),
        (resource.RLIMIT_FSIZE, memory),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(limit, (value, value))
    tensors = read_pickle(source)
    if isinstance(tensors, str):
        return {"refused": tensors}
    save_file(tensors, target, metadata={"format": "pt"})
    return {"tensors": len(tensors)}


def read_pickle(source: Path) -> dict[str, torch.Tensor] | str:
    """Reads tensors by their names from a pickled file.

    Returns:
        Copies of them, because tensors in the file may be parts of others; or why the file is refused.
    """
    try:
        content = torch.load(source, map_location="cpu", weights_only=True)
        wrong = _what_is_wrong(content)
        return wrong or {
            name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in content.items()
        }
    except MemoryError:
        return _TOO_MUCH
    except Exception as error:  # whatever a broken or a hostile file gives rise to
        return _reason(error)


def _what_is_wrong(content: Any) -> str:
    if not isinstance(content, Mapping) or not content:
        return f"it holds a {type(content).__name__} and not tensors by their names"
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            return f"under {name!r}, it holds a {type(value).__name__} and not a tensor"
        if value.layout is not torch.strided or value.is_quantized or value.is_meta:
            return f"{name!r} is no plain tensor"
    return ""


def _reason(error: Exception) -> str:
    text = str(error)
    if "can't allocate memory" in text or "allocate" in text:
        return _TOO_MUCH
    unsafe = text.partition("GLOBAL ")[2].split(" ")[0]
    if unsafe:
        return f"it asks for {unsafe}, which is no tensor, and could run code"
    # Where torch puts the unpickler's own words, among advice to run what is in the file.
    own = text.partition("WeightsUnpickler error:")[2] or text
    first = next((line.strip() for line in own.splitlines() if line.strip()), "")
    return f"it is no file of tensors that torch wrote ({type(error).__name__}: {first[:200]})"


if __name__ == "__main__":
    answer = main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
    sys.stdout.write(f"\n{json.dumps(answer)}\n")
