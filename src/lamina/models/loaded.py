"""A base model that is in memory already, as a `Base`: training uses its weights as they are.

A run must also be found again later, so the weights need a folder. That is the folder that the model came from, if the
weights and the tokenizer in it are the same, and otherwise a copy.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lamina import files
from lamina.chat.tokenizer import fingerprint_tokenizer
from lamina.compute.ops.adapter import AdapterModule
from lamina.errors import ConfigError, LaminaError, ModelError, Problem
from lamina.machine.hardware import bound_product_cache
from lamina.machine.quiet import quiet_transformers
from lamina.models.copies import shared_copy
from lamina.models.fingerprint import weight_files
from lamina.models.load import Base, load_tokenizer
from lamina.models.source import ModelSource, find_model
from lamina.progress import Notify
from lamina.structure.causality import check_causal

_DIGITS = 12


def find_source(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, folder: Path, notify: Notify
) -> ModelSource:
    """Finds the folder that a model in memory came from, or writes one.

    Args:
        model: A causal language model of transformers, without an adapter.
        tokenizer: Its tokenizer; by default the one in the folder that it came from.
        folder: Where a copy goes, as `model-DIGEST`, if the weights are not those of the folder.
        notify: Told before a copy is written.

    Raises:
        ConfigError: It is no such model, or it needs a tokenizer.
        StorageError: The copy cannot be written.
    """
    check_kind(model)
    origin = _origin(model)
    if origin is not None and _same_tokenizer(origin, tokenizer) and same_weights(model, origin.folder):
        return origin
    if tokenizer is None and origin is not None:
        tokenizer = load_tokenizer(origin)
    if tokenizer is None:
        message = f"the model in memory ({type(model).__name__}) names no folder with a tokenizer"
        raise ConfigError(Problem("tokenizer", message, "give it: lamina.train(model=model, tokenizer=tokenizer, ...)"))
    target = folder / f"model-{_digest_of(model, tokenizer)[:_DIGITS]}"
    if not (target / "config.json").is_file():
        notify("The model in memory is not the one on disk, so the run keeps a copy of it ...")
        with files.new_folder(target) as new, quiet_transformers():
            model.save_pretrained(new)
            tokenizer.save_pretrained(new)
    return ModelSource(str(target), target)


@contextlib.contextmanager
def as_base(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, source: ModelSource) -> Iterator[Base]:
    """Yields a frozen base over the model's own weights. The model itself stays as it was.

    Raises:
        ModelError: It is not a causal language model.
    """
    bound_product_cache()
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    twin = shared_copy(model)
    twin.requires_grad_(False).eval()
    try:
        check_causal(twin)
        yield Base(twin, tokenizer or load_tokenizer(source), source, model.dtype)
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)


def same_weights(model: PreTrainedModel, folder: Path) -> bool:
    """Returns whether a folder has the weights of a model in memory, in whatever dtype it was loaded."""
    held = model.state_dict()
    seen: set[int] = set()
    try:
        for path in weight_files(folder):
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 - it is no dictionary
                    tensor = held.get(name)
                    if tensor is None or not torch.equal(file.get_tensor(name).to(tensor.dtype), tensor.cpu()):
                        return False
                    seen.add(tensor.data_ptr())
    except (ModelError, OSError, SafetensorError):
        return False
    return all(tensor.data_ptr() in seen for tensor in held.values())


def check_kind(model: object) -> None:
    """Checks that a model in memory can be a base.

    Raises:
        ConfigError: It is no causal language model of transformers, it has an adapter, or another library quantized it.
    """
    name = model.__name__ if isinstance(model, type) else type(model).__name__
    if isinstance(model, type):
        fix = f"give what {name}.from_pretrained(NAME) returns, or NAME alone"
        raise ConfigError(Problem("model", f"{name} is a class, not a model", fix))
    if hasattr(model, "peft_config") or getattr(model, "_hf_peft_config_loaded", False):
        fix = "give the base model and `method=`; to train an adapter further, use method={'from': FOLDER}"
        raise ConfigError(Problem("model", f"the {name} has an adapter of peft on it already", fix))
    if getattr(model, "is_quantized", False):
        fix = "give its name, and the setting quantization={'bits': 4}"
        raise ConfigError(Problem("model", f"the {name} in memory is quantized by another library", fix))
    if not isinstance(model, PreTrainedModel) or not model.can_generate():
        fix = "give a name, a folder, or what AutoModelForCausalLM.from_pretrained returned"
        raise ConfigError(Problem("model", f"a {name} is not a causal language model of transformers", fix))
    check_one_device(model)


def check_bare(model: PreTrainedModel) -> None:
    """Checks that a model in memory has no adapter of lamina's, which would become a part of the base.

    Raises:
        ConfigError: It has.
    """
    if any(isinstance(module, AdapterModule) for module in model.modules()):
        message = f"the {type(model).__name__} has an adapter of lamina's on it already"
        fix = "load the base again; or, to train the adapter, give the `PeftModel` that get_peft_model returned"
        raise ConfigError(Problem("model", message, fix))


def check_one_device(model: PreTrainedModel) -> None:
    """Checks that transformers has put a model on one device.

    Raises:
        ConfigError: A `device_map` has spread it over several, or left a part on disk.
    """
    placed = getattr(model, "hf_device_map", None) or {}
    places = sorted({f"cuda:{place}" if isinstance(place, int) else str(place) for place in placed.values()})
    if len(places) > 1 or "disk" in places:
        fix = (
            "load it on one device, such as device_map={'': 0}, or give its name: `lamina train CONFIG --nproc auto` "
            "divides a base that is larger than a GPU over several"
        )
        raise ConfigError(Problem("model", f"is spread over {', '.join(places)} by its device_map", fix))


def _origin(model: PreTrainedModel) -> ModelSource | None:
    """The folder on this machine that a model names as its own; None if there is none."""
    name = str(getattr(model, "name_or_path", "") or "")
    with contextlib.suppress(LaminaError, OSError, ValueError):
        if name and (Path(name).is_dir() or _is_cached(name)):
            return find_model(name)
    return None


def _is_cached(hub_id: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return hub_id.count("/") == 1 and isinstance(try_to_load_from_cache(hub_id, "config.json"), str)


def _same_tokenizer(origin: ModelSource, tokenizer: PreTrainedTokenizerBase | None) -> bool:
    if tokenizer is None:
        return True
    with contextlib.suppress(LaminaError):
        there = load_tokenizer(origin)
        return _tokenizer_text(there) == _tokenizer_text(tokenizer)
    return False


def _tokenizer_text(tokenizer: PreTrainedTokenizerBase) -> str:
    """What decides which tokens a conversation becomes."""
    return f"{fingerprint_tokenizer(tokenizer)} {tokenizer.special_tokens_map} {tokenizer.chat_template}"


def _digest_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> str:
    digest = hashlib.sha256(f"{model.config.to_json_string()}{_tokenizer_text(tokenizer)}".encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()
