"""The adapter that training starts from (`method.from`), or a new one.

A run keeps a copy of the adapter that it started from, so that it can be resumed and evaluated whatever becomes of the
original.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace

import torch

from lamina import files
from lamina.adapters.adapter import Adapter, read_adapter
from lamina.adapters.fit import fit
from lamina.adapters.load import adapter_folder
from lamina.chat.template import ChatTemplate
from lamina.config import Config, MethodConfig
from lamina.config.methods.peft import PeftConfig
from lamina.errors import AdapterError, BaseMismatchError, ConfigError, Problem
from lamina.methods.shared.base import Injection, find_method, inject
from lamina.methods.shared.coverage import check_reach
from lamina.models.load import Base
from lamina.progress import Notify
from lamina.registry.adapter_files import ADAPTER_FILES
from lamina.runs import Run

FIELD = "method.from"
DROPOUT = "lora_dropout"


def read_start(config: Config, run: Run) -> Adapter | None:
    """Reads the adapter that a run starts from: the run's own copy, or what `method.from` names; None for a new one.

    Raises:
        ConfigError: It is not there, or it is no adapter of the configured method.
    """
    if config.method.start is None:
        return None
    try:
        adapter = read_adapter(run.start if run.start.is_dir() else adapter_folder(config.method.start))
    except AdapterError as error:
        raise ConfigError(Problem(FIELD, str(error))) from None
    found, wanted = _method_of(adapter.config), _method_of(config.method)
    if found != wanted:
        message = f"{config.method.start} is an adapter of method '{' '.join(found)}', not '{' '.join(wanted)}'."
        fix = "set " + " and ".join(
            f"method.{field} to {value}" for field, value in zip(("type", "peft_type"), found, strict=False)
        )
        raise ConfigError(Problem(FIELD, message, fix))
    return replace(adapter, config=adapter.config.model_copy(update=_dropout(config, adapter)))


def _method_of(method: MethodConfig) -> tuple[str, ...]:
    return (method.type, method.peft_type) if isinstance(method, PeftConfig) else (method.type,)


def _dropout(config: Config, adapter: Adapter) -> dict[str, float]:
    """The dropout to train the adapter with, where its method has one.

    Dropout makes an adapter differ from its own frozen copy, which is the reference, so it is off beside one.
    """
    if not type(adapter.config).takes(DROPOUT):
        return {}
    if DROPOUT in config.method.model_fields_set:
        return {DROPOUT: getattr(config.method, DROPOUT)}
    return {DROPOUT: 0.0} if config.loss.reference_name is not None else {}


def keep_start(adapter: Adapter | None, run: Run) -> None:
    """Copies the adapter that a run starts from into the run, once.

    Raises:
        StorageError: It cannot be written.
    """
    if adapter is None or run.start.is_dir():
        return
    with files.new_folder(run.start) as folder:
        for name in ADAPTER_FILES:  # not what lies beside them, such as the rest of a checkpoint
            if (adapter.path / name).is_file():
                shutil.copyfile(adapter.path / name, folder / name)


def check_start_fits(adapter: Adapter, base: Base, template: ChatTemplate, notify: Notify) -> None:
    """Checks that the adapter that training starts from was trained on this base.

    Raises:
        ConfigError: It was trained on another one.
    """
    lock = adapter.lock
    if lock is None:
        notify(f"{adapter.path} has no lamina.json, so it could not be checked that it was trained on this base.")
    elif lock.base_tensors != base.fingerprint.tensors:
        message = (
            f"{adapter.path} was trained on another base: {lock.base!r} with the weights {lock.base_tensors}, and this "
            f"is {base.source.ref!r} with {base.fingerprint.tensors}."
        )
        raise ConfigError(Problem(FIELD, message, f"set model to {lock.base}, or start from an adapter of this base"))
    elif lock.chat_template_digest != template.digest:
        notify(
            f"{adapter.path} was trained with another chat template ({lock.chat_template!r}) than this run's "
            f"({template.name!r}), so its prompts now look otherwise to it."
        )


def put_on(adapter: Adapter, base: Base, notify: Notify) -> Injection:
    """Puts the adapter that training starts from onto the base.

    Raises:
        ConfigError: It does not fit.
    """
    try:
        fitted = fit(adapter, base.model)
    except (AdapterError, BaseMismatchError) as error:
        raise ConfigError(Problem(FIELD, str(error))) from None
    for note in fitted.notes:
        notify(note)
    return fitted.injection


def new_adapter(config: Config, base: Base) -> Injection:
    """Attaches a new adapter of the configured method.

    Raises:
        ConfigError: The configuration does not fit the model.
    """
    find_method(config.method.type).check(base.model, config.method)
    injection = inject(base.model, config.method, config.seed)
    check_reach(injection)
    return injection


def prepare_new(injection: Injection, documents: Sequence[torch.Tensor]) -> Injection:
    """Prepares a new adapter, for example by initializing it from the training data."""
    return find_method(injection.config.type).prepare(injection, documents)
