"""llama.cpp through node-llama-cpp's prebuilt binary: the bare base, in the same precision, sequences share batches.

    npm install node-llama-cpp    # in a folder that LAMINA_LLAMA_NODE names

The base is a copy of the `.gguf` file that lamina's was converted from, with its weights in the run's dtype.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from lamina.bench.serving.job import AdapterFacts, Job
from lamina.bench.serving.load import Event, Target
from lamina.bench.serving.traffic import Ask
from lamina.errors import BenchError

ABOUT = "llama.cpp: sequences of one context share batches; the bare base"

NODE_FOLDER = "LAMINA_LLAMA_NODE"
_PACKAGE = Path("node_modules", "node-llama-cpp")
_SCRIPT = Path(__file__).with_suffix(".mjs")
_LONGEST_START = 120.0


def takes(adapter: AdapterFacts) -> bool:
    """None: it does not batch different adapters together."""
    return False


def refuses(job: Job) -> str | None:
    """It needs node, the package, a base that came from a `.gguf` file, and no adapters."""
    if job.adapters:
        return "it does not batch different adapters together."
    folder = os.environ.get(NODE_FOLDER)
    if shutil.which("node") is None or folder is None or not (Path(folder) / _PACKAGE).is_dir():
        fix = f"npm install node-llama-cpp in a folder, and name it in {NODE_FOLDER}"
        return f"node-llama-cpp is not installed. Fix: {fix}."
    if gguf_of(job.source) is None:
        return f"{job.source} did not come from a .gguf file, and lamina writes none. Fix: use one with --model."
    return None


def interpreter() -> str | None:
    """lamina's own Python, which starts node."""
    return None


def gguf_of(source: str) -> Path | None:
    """The `.gguf` file that a base is made from, if it is."""
    from lamina.config.aliases import ALIASES
    from lamina.models.source import packaged_gguf

    if source in ALIASES:
        return packaged_gguf(ALIASES[source].package)
    path = Path(source).expanduser()
    return path if path.suffix == ".gguf" and path.is_file() else None


@contextlib.contextmanager
def open(job: Job) -> Iterator[tuple[Target, dict[str, Any]]]:
    """Writes the base in the run's dtype, and starts node with it."""
    source, path = gguf_of(job.source), Path(job.prompts).with_name(f"base-{job.dtype}.gguf")
    assert source is not None
    if not path.exists():
        write_gguf(source, path, job.dtype)
    folder = Path(os.environ[NODE_FOLDER])
    settings = {
        "package": str((folder / _PACKAGE / "dist" / "index.js").resolve()),
        "model": str(path),
        "sequences": job.most_streams,
        "context": max(map(len, job.read_prompts())) + job.max_new_tokens + 8,
        "threads": job.threads,
        "tokens": job.max_new_tokens,
    }
    version = json.loads((folder / _PACKAGE / "package.json").read_text(encoding="utf-8"))["version"]
    with subprocess.Popen(
        ["node", str(_SCRIPT), json.dumps(settings)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            target = _Target(process)
            yield target, {"node-llama-cpp": version, **target.about, **settings}
        finally:
            process.kill()


def write_gguf(source: Path, path: Path, dtype: str) -> None:
    """Copies a `.gguf` file with its matrices in another type: `bfloat16` or `float32`; vectors are float32.

    What was quantized gets the numbers that lamina's own conversion gives it.
    """
    import gguf
    from gguf.quants import dequantize, quantize

    kinds = gguf.GGMLQuantizationType
    kind = {"bfloat16": kinds.BF16, "float32": kinds.F32}[dtype]
    reader = gguf.GGUFReader(source)
    architecture = reader.fields[gguf.Keys.General.ARCHITECTURE].contents()
    writer = gguf.GGUFWriter(path, architecture)
    file_type = {"bfloat16": gguf.LlamaFileType.MOSTLY_BF16, "float32": gguf.LlamaFileType.ALL_F32}[dtype]
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == gguf.Keys.General.ARCHITECTURE:
            continue
        value = int(file_type) if name == gguf.Keys.General.FILE_TYPE else field.contents()
        is_list = field.types[0] == gguf.GGUFValueType.ARRAY
        writer.add_key_value(name, value, field.types[0], sub_type=field.types[-1] if is_list else None)
    for tensor in reader.tensors:
        numbers = dequantize(tensor.data, tensor.tensor_type)
        if numbers.ndim < 2 or kind == kinds.F32:
            writer.add_tensor(tensor.name, numbers)
        else:
            writer.add_tensor(tensor.name, quantize(numbers, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class _Target:
    """Speaks with the script in lines of JSON: a request in, then a line for each token."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdin is not None and process.stdout is not None
        self._stdin = process.stdin
        self._lines: queue.SimpleQueue[tuple[float, str | None]] = queue.SimpleQueue()
        threading.Thread(target=self._read, args=(process.stdout,), daemon=True).start()
        ready = self._line(_LONGEST_START)
        if ready is None:
            raise BenchError(f"node-llama-cpp was not ready after {_LONGEST_START:.0f} s.")
        self.about: dict[str, Any] = json.loads(ready[1])["about"]

    def ask(self, ask: Ask) -> None:
        self._stdin.write(json.dumps({"number": ask.number, "tokens": ask.token_ids}) + "\n")
        self._stdin.flush()

    def events(self, patience: float) -> list[Event]:
        found: list[Event] = []
        line = self._line(patience)
        while line is not None:
            at, text = line
            event = json.loads(text)
            found.append(Event(event["number"], at, 1, event["done"]))
            line = self._line(0.0)
        return found

    def _line(self, patience: float) -> tuple[float, str] | None:
        try:
            at, text = self._lines.get(timeout=patience) if patience > 0 else self._lines.get_nowait()
        except queue.Empty:
            return None
        if text is None:
            raise BenchError("node-llama-cpp ended by itself; run the benchmark's worker by hand to see why.")
        return at, text

    def _read(self, stdout: IO[str]) -> None:
        for line in stdout:
            if line.startswith("{"):
                self._lines.put((time.perf_counter(), line))
        self._lines.put((time.perf_counter(), None))
