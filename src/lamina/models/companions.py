"""Copies the files of a model folder other than its weights: processors, tokenizer, license."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

# Weights in all formats that hub repositories contain, and archives of them.
_WEIGHTS = {
    *(".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".npz", ".npy", ".msgpack", ".h5", ".ot"),
    *(".gguf", ".ggml", ".llamafile", ".onnx", ".onnx_data", ".tflite", ".pb", ".mlmodel", ".engine", ".plan"),
    *(".nemo", ".task", ".litertlm", ".tar", ".gz", ".zst", ".zip"),
}
_DATA = {".jsonl", ".csv", ".tsv", ".parquet", ".arrow", ".log"}
# Files that belong to these very weights: an adapter that transformers would load automatically, and records of how the
# weights were made.
_OF_THE_WEIGHTS = {
    *("adapter_config.json", "lamina.json", "lamina_certificate.json", "lamina_quantization.json"),
    *("quantization_report.json", "trainer_state.json", "quantize_config.json", "hf_quant_config.json"),
}
_INDEX = ".index.json"

# Far above any tokenizer's size, and far below what should be copied silently. A folder of templates has a few files.
MAX_BYTES = 100_000_000
_MAX_FILES = 100


def copy_companions(base: Path, folder: Path) -> list[str]:
    """Copies every file of a model folder that is not a weight file, byte for byte.

    Hidden files, data files, and subfolders with weights or data (other formats of the model, checkpoints) are not
    copied.

    Args:
        base: The model folder.
        folder: The destination; files with the same name are replaced.

    Returns:
        The files that were left out only because of their size.
    """
    too_large = []
    for path in _companions(base):
        name = path.relative_to(base)
        if path.stat().st_size > MAX_BYTES:
            too_large.append(str(name))
            continue
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, folder / name)
    return too_large


def _companions(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            if not path.is_symlink() and _is_companion_folder(path):
                yield from _companions(path)
        elif path.is_file() and _is_companion(path.name):
            yield path


def _is_companion_folder(folder: Path) -> bool:
    names = (name for _, _, names in os.walk(folder) for name in names)
    first = list(itertools.islice(names, _MAX_FILES + 1))
    return len(first) <= _MAX_FILES and all(map(_is_companion, first))


def _is_companion(name: str) -> bool:
    suffix = Path(name.lower()).suffix
    return suffix not in _WEIGHTS | _DATA and not name.endswith(_INDEX) and name not in _OF_THE_WEIGHTS
