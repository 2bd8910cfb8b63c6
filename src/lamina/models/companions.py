"""What lies in a model's folder beside its weights: processors, tokenizer, license; these go where it goes."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

# Weights in all the forms that folders on the hub hold, and archives of them.
_WEIGHTS = {
    *(".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".npz", ".npy", ".msgpack", ".h5", ".ot"),
    *(".gguf", ".ggml", ".llamafile", ".onnx", ".onnx_data", ".tflite", ".pb", ".mlmodel", ".engine", ".plan"),
    *(".nemo", ".task", ".litertlm", ".tar", ".gz", ".zst", ".zip"),
}
_DATA = {".jsonl", ".csv", ".tsv", ".parquet", ".arrow", ".log"}
# Of other software for this very folder: an index of weights, an adapter that would be loaded by itself, reports on how
# these weights came to be.
_OF_THE_WEIGHTS = {
    *("adapter_config.json", "lamina.json", "lamina_certificate.json", "lamina_quantization.json"),
    *("quantization_report.json", "trainer_state.json", "quantize_config.json", "hf_quant_config.json"),
}
_INDEX = ".index.json"

# Far above any tokenizer's, far below what anybody would want a copy of; and a folder of templates has a few files.
MAX_BYTES = 100_000_000
_MAX_FILES = 100


def copy_companions(base: Path, folder: Path) -> list[str]:
    """Copies every file of a model's folder that is no weight, byte for byte.

    Hidden files, data, and folders within that hold weights or data (the same model in another form, checkpoints) stay
    where they are.

    Args:
        base: The model's folder.
        folder: Where to copy to; files of the same name are replaced.

    Returns:
        What was left out for its size alone.
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
