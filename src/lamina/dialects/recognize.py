"""Whose configuration a mapping is, by its keys."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

Dialect = Literal["axolotl", "llama-factory", "trl"]

TITLES: dict[Dialect, str] = {"axolotl": "Axolotl", "llama-factory": "LLaMA-Factory", "trl": "TRL"}

# Keys of lamina's own configuration at the top; with a section among them, a file is lamina's.
_OWN = ("data", "method", "loss", "quantization", "train")


def recognize(keys: Iterable[object]) -> Dialect | None:
    """Returns whose configuration has these keys at the top; None if it is lamina's own, or nobody's."""
    found = {str(key) for key in keys}
    if found & set(_OWN):
        return None
    if "base_model" in found and found & {
        "datasets",
        "micro_batch_size",
        "sequence_len",
        "adapter",
        "pretraining_dataset",
    }:
        return "axolotl"
    if found & {"stage", "finetuning_type", "cutoff_len", "lora_rank", "quantization_bit", "train_dataset"}:
        return "llama-factory"
    if found & {"template", "export_dir", "infer_backend"} and found & {
        "dataset",
        "adapter_name_or_path",
        "model_name_or_path",
    }:
        return "llama-factory"
    if found & {
        "model_name_or_path",
        "dataset_name",
        "dataset_mixture",
        "dataset_mixer",
        "per_device_train_batch_size",
    }:
        return "trl"
    return None
