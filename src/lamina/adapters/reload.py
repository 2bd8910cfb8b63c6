"""Whether the adapter that a run writes can be loaded again, by lamina and by peft.

It is found out on the base's structure alone, so that it costs nothing to speak of: before the first step from what
would be written, and at the end from the folder that was written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from lamina.adapters.adapter import read_adapter
from lamina.adapters.hf_peft import peft_content, read_peft_config, without_score
from lamina.config import MethodConfig
from lamina.errors import AdapterError, ConfigError, LaminaError, Problem
from lamina.methods.shared.base import Injection, find_method, inject
from lamina.methods.shared.coverage import with_names
from lamina.methods.shared.score import SCORE, saved_form, with_saved_score
from lamina.structure.skeleton import build_skeleton, with_memory

Shapes = dict[str, tuple[int, ...]]


def check_before_training(injection: Injection) -> list[str]:
    """Checks that an adapter as it is now, once saved, can be loaded again.

    Returns:
        What could not be found out, in sentences.

    Raises:
        ConfigError: It could not be loaded.
    """
    saved = saved_form(injection)
    config = with_names(injection, saved.config)
    content = json.loads(json.dumps(peft_content(injection, config, "")))
    try:
        return _check(injection, config, content, _shapes(saved.tensors))
    except AdapterError as error:
        message = f"with these settings the adapter could not be loaded again: {error}"
        raise ConfigError(Problem("method", message, "use other settings, or another method")) from None


def check_written(path: Path, injection: Injection, digest: str) -> list[str]:
    """Reads an adapter that was just written, and checks that it holds what it should and can be loaded.

    Args:
        path: Its folder.
        injection: What was written.
        digest: Of what was in memory.

    Returns:
        What could not be found out, in sentences.

    Raises:
        AdapterError: It could not be loaded, or what was read is not what was written.
    """
    adapter = read_adapter(path)
    if adapter.digest != digest:
        raise AdapterError(f"{path}: what was read again ({adapter.digest}) is not what was written ({digest}).")
    try:
        return _check(injection, adapter.config, read_peft_config(path), _shapes(adapter.tensors))
    except AdapterError as error:
        raise AdapterError(
            f"{path}: the adapter was written, and its tensors are as they were trained, but it cannot be loaded "
            f"again: {error} Fix: use the tensors as they are (adapter_model.safetensors), and report this with the "
            "run's config.yaml."
        ) from None


def _check(injection: Injection, config: MethodConfig, content: Mapping[str, Any], found: Shapes) -> list[str]:
    notes = _check_fit(injection.model, config, found, "lamina.json")
    method = find_method(config.type)
    if not method.in_peft:
        return notes
    if SCORE in injection.layers:
        content = without_score(content)
        injection = replace(injection, layers={name: each for name, each in injection.layers.items() if name != SCORE})
    read = method.from_peft(content)
    # What peft's layers make of a configuration depends on the model. Of lamina's own methods, both say the same.
    if method.fallback and peft_content(injection, read, content["base_model_name_or_path"]) != content:
        notes += _check_fit(injection.model, read, found, "adapter_config.json")
    return notes


def _check_fit(model: PreTrainedModel, config: MethodConfig, found: Shapes, file: str) -> list[str]:
    """Checks that the configuration in a file makes an adapter of these tensors on the bare model.

    Raises:
        AdapterError: It does not.
    """
    errors: list[Exception] = []
    # Some of peft's methods begin with numbers that they read off the weights.
    for skeleton in (build_skeleton, lambda model: with_memory(build_skeleton(model))):
        try:
            fresh = with_saved_score(inject(skeleton(model), find_method(config.type).begun(config), seed=0), found)
        except Exception as error:  # whatever it is: it may be for want of weights
            errors.append(error)
            continue
        wanted = _shapes(fresh.saved_tensors())
        if wanted == found:
            return []
        different = sorted(name for name, _ in wanted.items() ^ found.items())
        raise AdapterError(f"by its {file}, it has other tensors (first: {different[0]}).")
    if isinstance(errors[-1], LaminaError):
        raise AdapterError(f"by its {file}: {errors[-1]}")
    return [f"whether the adapter can be loaded again could not be found out beforehand ({errors[-1]})"]


def _shapes(tensors: Mapping[str, torch.Tensor]) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}
