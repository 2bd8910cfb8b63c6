"""What peft's models and loaders take beside what lamina does: what changes nothing, and what is refused, and why."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lamina.errors import ConfigError, Problem

MANY = "lamina.load(RUN).load_beside(OTHER) has two adapters on one base, and lamina.Engine any number"

# Methods that peft or transformers has for models with adapters. transformers' own would act on the base alone.
REFUSED = {
    **dict.fromkeys(
        ("add_adapter", "load_adapter", "delete_adapter", "add_weighted_adapter"), f"a model has one adapter; {MANY}"
    ),
    **dict.fromkeys(
        ("merge_adapter", "unmerge_adapter"), "merge_and_unload() returns a merged copy, and this model stays as it is"
    ),
    **dict.fromkeys(
        ("unload", "disable_adapters", "enable_adapters", "disable_adapter_layers", "enable_adapter_layers"),
        "`with model.disable_adapter():` is the bare base",
    ),
    "push_to_hub": "save_pretrained(FOLDER), and upload it: `hf upload USER/NAME FOLDER`",
}

# What a script may set on the model, and the base reads.
OF_THE_BASE = ("config", "generation_config")

# Arguments of the loaders that change nothing here.
_IDLE = (
    "attn_implementation",
    "autocast_adapter_dtype",
    "cache_dir",
    "device_map",
    "ephemeral_gpu_offload",
    "force_download",
    "local_files_only",
    "low_cpu_mem_usage",
    "max_memory",
    "offload_dir",
    "offload_folder",
    "offload_index",
    "proxies",
    "token",
    "torch_device",
    "use_auth_token",
    "use_cache",
    "use_safetensors",
)

_AS_TRAINED = "leave it out: a base is read as it was when the adapter was trained"
_FIXES = {
    "quantization_config": _AS_TRAINED,
    "load_in_4bit": _AS_TRAINED,
    "load_in_8bit": _AS_TRAINED,
    "config": "leave it out: the adapter's own adapter_config.json is read",
    "revision": "download that revision, and give its folder: `hf download USER/NAME --revision REVISION`",
    "subfolder": "download the adapter, and give the folder itself: `hf download USER/NAME`",
}


def check_arguments(others: Mapping[str, Any]) -> None:
    """Checks the other arguments of a loader.

    Raises:
        ConfigError: One of them would change what is loaded.
    """
    problems = [
        Problem(name, f"{value!r} has no counterpart", _FIXES.get(name, "leave it out"))
        for name, value in others.items()
        if name not in _IDLE and value not in (None, False, "main", "")
    ]
    if problems:
        raise ConfigError(problems)
