"""Puts an adapter as read from disk onto a model: every tensor in its place, or an error that says what does not fit.

What lamina wrote has to fit as it is. What peft wrote is taken as peft takes it: by the first method that fits, with
names that match nothing passed over, and copies of the base's own weights left out where they are equal to it. All of
that is noted.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import nn
from transformers import PreTrainedModel

from lamina.adapters.adapter import Adapter, check_tensors
from lamina.adapters.hf_peft import fallback_config
from lamina.adapters.tensor_names import find_places
from lamina.compute.ops.adapter import set_module
from lamina.compute.weights import PackedLinear, freeze_linear
from lamina.config import MethodConfig
from lamina.config.methods.peft import PeftConfig
from lamina.errors import AdapterError, ConfigError
from lamina.methods.shared.base import PEFT_PREFIX, Injection, find_method, inject
from lamina.methods.shared.peft_types import converted_tensors
from lamina.methods.shared.score import with_saved_score
from lamina.methods.shared.targets import FIELD as TARGETS

# The fields of a method that name modules and that peft does not mind naming some which are not there.
NAME_FIELDS = ("target_modules", "feedforward_modules")


# Under which of its own modules peft keeps the base's.
_AROUND_BASE = ("base_layer", "original_module", "token_adapter")


@dataclass(frozen=True)
class Fitted:
    """An adapter in its place.

    Attributes:
        injection: Its layers, with its tensors in them.
        tensors: Those, by the names that the model has for them.
        notes: What was passed over, in sentences.
    """

    injection: Injection
    tensors: Mapping[str, torch.Tensor]
    notes: list[str]


def fit(adapter: Adapter, model: PreTrainedModel) -> Fitted:
    """Puts an adapter onto a bare model, whose weights stay as they are.

    Raises:
        AdapterError: It does not fit.
    """
    base = _Base(model)
    try:
        return _fit(adapter, adapter.config, model, base)
    except (ConfigError, AdapterError) as error:
        problem = error if isinstance(error, AdapterError) else _misfit(adapter, error, base)
        about_targets = isinstance(error, ConfigError)
    if adapter.lock is not None or find_method(adapter.config.type).fallback:
        raise problem
    try:
        config = fallback_config(adapter.peft_config)
    except AdapterError as error:
        raise (AdapterError(f"{adapter.path}: {error}") if about_targets else problem) from None
    try:
        if config is not None:
            return _fit(adapter, config, model, base)
    except AdapterError as error:
        problem = error
    except ConfigError:
        pass  # of peft's, which knows no more of it
    raise problem


def _fit(adapter: Adapter, config: MethodConfig, model: PreTrainedModel, base: _Base) -> Fitted:
    """The same by one configuration. Where the tensors do not fit, the model is bare again afterwards."""
    used, notes = _without_dead_names(config, adapter, base.modules)
    _check_memory(adapter, config, base.modules)
    _check_tokens(adapter, config, base)
    classes = tuple((adapter.lock and adapter.lock.classes) or ())
    injection = with_saved_score(inject(model, used, seed=0), _shapes(adapter.tensors), classes)
    try:
        if adapter.lock is not None:
            check_tensors(adapter, injection)
        tensors = adapter.tensors if adapter.lock else _as_peft(adapter, injection, base, notes)
    except AdapterError:
        for name in injection.layers:
            if name and name in base.modules:
                set_module(model, name, base.modules[name])
        raise
    injection.load_tensors(tensors)
    return Fitted(injection, tensors, [*notes, *injection.useless])


class _Base:
    """What the bare model holds: its class, its vocabulary, its modules, and its weights by name."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.kind = type(model).__name__
        self.decoder = f"{PEFT_PREFIX}{model.base_model_prefix}."
        embedding: Any = model.get_input_embeddings()
        self.vocabulary = int(embedding.weight.shape[0])
        self.modules = dict(model.named_modules())
        self._parameters = dict(model.named_parameters(remove_duplicate=False))

    def module_of(self, name: str) -> str:
        """The innermost module that a tensor of an adapter's file is in by its name; empty if there is none."""
        parts = name.removeprefix(PEFT_PREFIX).split(".")
        starts = (".".join(parts[:length]) for length in range(len(parts) - 1, 0, -1))
        return next((start for start in starts if start in self.modules), "")

    def names_of_tied(self, name: str) -> list[str]:
        """What a tensor of an adapter's file would be called in the modules that share their weight with its own."""
        module = self.module_of(name)
        weight = self._parameters.get(f"{module}.weight")
        tied = [key.removesuffix(".weight") for key, each in self._parameters.items() if each is weight]
        return [name.replace(module, other, 1) for other in tied if other != module]

    def weight(self, name: str) -> torch.Tensor | None:
        """The weight that a tensor of an adapter's file is named after; None if there is none."""
        parts = name.removeprefix(PEFT_PREFIX).split(".")
        name = ".".join(part for part in parts if part not in _AROUND_BASE)
        module = self.modules.get(name.rpartition(".")[0])
        linear = freeze_linear(module) if isinstance(module, PackedLinear) else None
        if linear is not None and name.endswith(".weight"):
            return linear.weight(torch.float32)
        return self._parameters.get(name)


def _without_dead_names(
    config: MethodConfig, adapter: Adapter, modules: Collection[str]
) -> tuple[MethodConfig, list[str]]:
    """The configuration without names that match no module, where others match some; and a note of each."""
    changes, notes = {}, []
    values = config.fields if isinstance(config, PeftConfig) else dict(config)
    for field in NAME_FIELDS if adapter.lock is None else ():
        given = values.get(field)
        if not isinstance(given, list):
            continue
        dead = [name for name in given if not any(f".{module}".endswith(f".{name}") for module in modules)]
        # A name with tensors is that of a module which the model should have.
        dead = [name for name in dead if not any(f".{name}." in tensor for tensor in adapter.tensors)]
        if dead and len(dead) < len(given):
            changes[field] = [name for name in given if name not in dead]
            notes.append(f"nothing is called {' or '.join(map(repr, dead))}, which its {field} name beside others")
    if isinstance(config, PeftConfig):  # peft itself passes over them
        return config, notes
    return config.model_copy(update=changes), notes


def _check_memory(adapter: Adapter, config: MethodConfig, modules: Mapping[str, nn.Module]) -> None:
    packed = next((name for name, module in modules.items() if isinstance(module, PackedLinear)), None)
    if packed is not None and not config.base_is_read_only and adapter.lock is None:
        raise AdapterError(
            f"{adapter.path}: needs layers of peft's own, which take no base that is packed or left on disk, as "
            f"{packed} is. Fix: load it where the whole base fits in memory."
        )


def _check_tokens(adapter: Adapter, config: MethodConfig, base: _Base) -> None:
    """Trained rows of the embedding must be there before anything is put in their place."""
    fields = config.fields if isinstance(config, PeftConfig) else dict(config)
    given = fields.get("token_indices") or fields.get("trainable_token_indices") or []
    tokens = [token for some in given.values() for token in some] if isinstance(given, dict) else given
    if tokens and max(tokens) >= base.vocabulary:
        sizes = (
            _resized(tuple(tensor.shape), (base.vocabulary, *tensor.shape[1:]), base)
            for tensor in adapter.tensors.values()
        )
        _refuse_vocabulary(adapter, max(max(tokens) + 1, *(size or 0 for size in sizes)), base)


def _misfit(adapter: Adapter, error: ConfigError, base: _Base) -> AdapterError:
    """What is wrong with the settings of an adapter that is finished, and so cannot be given others."""
    reasons = " ".join(problem.message for problem in error.problems)
    fix = "use it with peft"
    if any(problem.field == TARGETS for problem in error.problems) or "not found in the base model" in reasons:
        fix = (
            f"load it on the base it was trained on{_named(adapter)}, with a version of transformers that names its "
            "modules so"
        )
    return AdapterError(f"{adapter.path}: does not fit {base.kind}: {reasons} Fix: {fix}.")


def _as_peft(adapter: Adapter, injection: Injection, base: _Base, notes: list[str]) -> Mapping[str, torch.Tensor]:
    """The tensors of an adapter that peft wrote, by the names that the model has for them; adds to the notes."""
    found, wanted = adapter.tensors, _shapes(injection.saved_tensors())
    places = find_places(found, wanted)
    if len(places.names) < len(wanted):
        found = converted_tensors(injection.model, found)
        places = find_places(found, wanted)
    tensors = {place: found[name] for name, place in places.names.items()}
    others = {name: tensor for name, tensor in found.items() if name not in places.names}
    _check_shapes(adapter, tensors, wanted, base)
    _check_complete(adapter, tensors, wanted, others, base)
    for name, tensor in others.items():
        _check_copy(adapter, name, tensor, tensors, injection.layers.keys(), base)
    if places.removed:
        parts = ", ".join(map(repr, places.removed))
        notes.append(
            f"its tensors are named as the model was wrapped in training; {parts} in their names were left out"
        )
    if others:
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        notes.append(f"{next(iter(others))}{more} in its file are the base's own weights, and were not needed")
    return tensors


def _check_shapes(
    adapter: Adapter, tensors: Mapping[str, torch.Tensor], wanted: Mapping[str, tuple[int, ...]], base: _Base
) -> None:
    for name, shape in _shapes(tensors).items():
        if shape != wanted[name]:
            rows = _resized(shape, wanted[name], base)
            if rows is not None:
                _refuse_vocabulary(adapter, rows, base)
            raise AdapterError(
                f"{adapter.path}: does not fit {base.kind}: {name} has the shape {shape}, and by the model and its "
                f"adapter_config.json it is {wanted[name]}. {_whichever(adapter, 'copy both of its files again')}"
            )


def _check_complete(
    adapter: Adapter,
    tensors: Mapping[str, torch.Tensor],
    wanted: Mapping[str, tuple[int, ...]],
    others: Mapping[str, torch.Tensor],
    base: _Base,
) -> None:
    missing = [name for name in wanted if name not in tensors]
    if not missing:
        return
    if not tensors and all(name.replace(PEFT_PREFIX, base.decoder, 1) in wanted for name in others):
        raise AdapterError(
            f"{adapter.path}: does not fit {base.kind}: it was trained on the decoder alone (transformers' AutoModel), "
            f"without a language model's head (first: {next(iter(others))}). Fix: use it with peft, on AutoModel."
        )
    what = f"{len(missing)} of its {len(wanted)} tensors are missing (first: {missing[0]})"
    if others:
        what += f", and {len(others)} have no place (first: {next(iter(others))})"
    raise AdapterError(
        f"{adapter.path}: does not fit {base.kind}: {what}. {_whichever(adapter, 'copy the adapter again')}"
    )


def _check_copy(
    adapter: Adapter,
    name: str,
    saved: torch.Tensor,
    tensors: Mapping[str, torch.Tensor],
    adapted: Collection[str],
    base: _Base,
) -> None:
    """Checks that a tensor which the adapter does not need is equal to what the model has there.

    Args:
        adapter: Where it is from.
        name: Its name in the file.
        saved: The tensor.
        tensors: Those that the adapter needs.
        adapted: The modules that it goes on.
        base: The bare model.

    Raises:
        AdapterError: It is not; the reason says what it may be.
    """
    names = [name.replace(".modules_to_save.", ".", 1)]
    if base.module_of(name) in adapted:
        names += base.names_of_tied(name)
    if any(twin in tensors and torch.equal(saved, tensors[twin]) for twin in names):  # the adapter's own, once more
        return
    if name.replace(".original_module.", ".", 1) in tensors:  # what a trained copy stands in for
        return
    own = base.weight(name)
    module = base.module_of(name)
    if own is None and module:
        raise AdapterError(
            f"{adapter.path}: holds {name.removeprefix(PEFT_PREFIX)}, and by its adapter_config.json {module} gets no "
            "such tensor; peft would pass over it, which is not the model that was trained. Fix: if an adapter was "
            f"trained there, name {module.rpartition('.')[2]!r} in the target_modules of its adapter_config.json."
        )
    if own is None:
        raise AdapterError(
            f"{adapter.path}: was trained on a model that has {name.removeprefix(PEFT_PREFIX)}, and {base.kind} has no "
            f"such weight. Fix: give that model with --model{_named(adapter)}."
        )
    if saved.shape != own.shape:
        rows = _resized(tuple(saved.shape), tuple(own.shape), base)
        if rows is not None:
            _refuse_vocabulary(adapter, rows, base)
        raise AdapterError(
            f"{adapter.path}: was trained on another base: {name} has the shape {tuple(saved.shape)}, here it is "
            f"{tuple(own.shape)}. Fix: give that base with --model{_named(adapter)}."
        )
    if not _is_copy(saved, own):
        difference = float((saved - own.detach().to("cpu", torch.float32)).abs().max())
        raise AdapterError(
            f"{adapter.path}: its {name} differs from the base's own (by up to {difference:.2g}): it was trained too, "
            "or this is not the base that the adapter was trained on. Fix: in peft, make a base of it, "
            f"`PeftModel.from_pretrained(base, {str(adapter.path)!r}).unload().save_pretrained(FOLDER)`, put the "
            "tokenizer beside it, and load with --model FOLDER."
        )


def _is_copy(saved: torch.Tensor, own: torch.Tensor) -> bool:
    """Whether two tensors are one, rounded as the one or the other is stored."""
    own = own.detach().cpu()
    if torch.equal(saved.to(own.dtype), own):
        return True
    return any(torch.equal(saved, own.to(dtype).float()) for dtype in (torch.bfloat16, torch.float16))


def _resized(shape: tuple[int, ...], wanted: tuple[int, ...], base: _Base) -> int | None:
    """The rows of the adapter's vocabulary, where that is all in which two shapes differ."""
    different = [(a, b) for a, b in zip(shape, wanted, strict=False) if a != b]
    is_vocabulary = len(shape) == len(wanted) and len(different) == 1 and different[0][1] == base.vocabulary
    return different[0][0] if is_vocabulary else None


def _refuse_vocabulary(adapter: Adapter, rows: int, base: _Base) -> NoReturn:
    raise AdapterError(
        f"{adapter.path}: was trained with a vocabulary of {rows} tokens, and the base has {base.vocabulary}: it was "
        "resized before training, and the new rows are not in the base. Fix: in peft, make a base with them, "
        f"`base.resize_token_embeddings({rows})` and `PeftModel.from_pretrained(base, {str(adapter.path)!r}).unload()"
        ".save_pretrained(FOLDER)`, put the tokenizer with the new tokens beside it, and load with --model FOLDER."
    )


def _whichever(adapter: Adapter, otherwise: str) -> str:
    """The fix for what may come of the wrong base, or of a damaged adapter."""
    return f"Fix: give the base that it was trained on with --model{_named(adapter)}; if this is the one, {otherwise}."


def _named(adapter: Adapter) -> str:
    return f" (it names {adapter.base_ref!r})" if adapter.base_ref else ""


def _shapes(tensors: Mapping[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}
