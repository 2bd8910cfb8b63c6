"""`convert`: writes an old pickled adapter (`adapter_model.bin`) again as safetensors, which lamina and peft read.

A pickle can run code when it is read. This one is read by torch's restricted unpickler, which builds tensors alone, in
a process with bounds on its memory, time and output (`unpickle.py`).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lamina import files
from lamina.adapters.hf_peft import CONFIG_FILE, TENSORS_FILE, read_peft_config, read_tensors
from lamina.errors import AdapterError
from lamina.models.companions import copy_companions
from lamina.progress import Notify

PICKLED_FILE = "adapter_model.bin"

# Far above the adapters of old; whoever has a larger one converts it with peft.
MAX_BYTES = 8 * 2**30
SECONDS = 300

# The file's content is held twice (as read, and copied), and torch takes some of its own.
_COPIES, _OVERHEAD = 3, 2**29


@dataclass(frozen=True)
class Converted:
    """An adapter that was written again.

    Attributes:
        path: Its new folder.
        tensors: How many tensors it has.
        bytes: The size of their file.
    """

    path: Path
    tensors: int
    bytes: int

    def as_json(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self) | {"path": str(self.path)}


def convert(source: str | Path, out: str | Path, *, notify: Notify = lambda message: None) -> Converted:
    """Writes a pickled adapter again as safetensors. The old folder stays as it is.

    Args:
        source: The folder of the adapter, with `adapter_config.json` and `adapter_model.bin`.
        out: The folder to write, which must not exist yet. Tokenizer and other small files are copied too.
        notify: Called with a sentence about what was left out.

    Raises:
        AdapterError: There is no such adapter, its file holds something else than tensors or is too large, or `out`
            exists.
        StorageError: The folder could not be written.
    """
    source, out = Path(source), Path(out)
    if out.exists():
        raise AdapterError(f"{out}: already exists. Fix: choose another --out, or delete it.")
    pickled = _pickled_file(source)
    size = pickled.stat().st_size
    if size > MAX_BYTES:
        raise AdapterError(f"{pickled}: has {size:,} bytes; at most {MAX_BYTES:,} are read. Fix: convert it with peft.")
    with files.new_folder(out, replace=False) as folder:
        for name in copy_companions(source, folder):
            notify(f"{source / name} is not copied, because of its size.")
        shutil.copyfile(source / CONFIG_FILE, folder / CONFIG_FILE)
        count = _unpickle(pickled, folder / TENSORS_FILE, size)
        read_tensors(folder)
        written = (folder / TENSORS_FILE).stat().st_size
    return Converted(out, count, written)


def _pickled_file(source: Path) -> Path:
    if not source.is_dir():
        raise AdapterError(f"{source}: there is no such folder. Fix: name the folder that has {PICKLED_FILE}.")
    read_peft_config(source)
    if not (source / PICKLED_FILE).is_file():
        has = f"; it has {TENSORS_FILE} and needs no conversion" if (source / TENSORS_FILE).is_file() else ""
        raise AdapterError(f"{source}: has no {PICKLED_FILE}{has}. Fix: name the folder of a pickled adapter.")
    return source / PICKLED_FILE


def _unpickle(source: Path, target: Path, size: int) -> int:
    """Runs the process that reads the file; returns how many tensors it wrote."""
    limit = _COPIES * size + _OVERHEAD
    paths = os.pathsep.join(path for path in sys.path if path)
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "LD_LIBRARY_PATH", "TMPDIR", "LANG")}
    try:
        ended = subprocess.run(
            [
                sys.executable,
                "-m",
                "lamina.adapters.unpickle",
                source.resolve(),
                target.resolve(),
                str(limit),
                str(SECONDS),
            ],
            env={**kept, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=2 * SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise _refused(source, f"reading it took more than {2 * SECONDS} seconds") from None
    try:
        answer: dict[str, Any] = json.loads(ended.stdout.strip().splitlines()[-1])
    except (ValueError, IndexError):  # it was ended by one of its limits, or could not begin
        answer = {"refused": f"the process that read it ended before it was done: {_last_line(ended.stderr)}"}
    if "refused" in answer:
        raise _refused(source, answer["refused"])
    return int(answer["tensors"])


def _refused(source: Path, reason: str) -> AdapterError:
    return AdapterError(f"{source}: was not converted: {reason}. Fix: ask whoever made it for safetensors.")


def _last_line(text: str) -> str:
    return next((line for line in reversed(text.splitlines()) if line.strip()), "it was stopped by a limit")[:300]
