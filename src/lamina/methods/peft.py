"""`type: peft`: any method of the installed HF peft, with lamina's training loop, run directory, lock and probes.

Mangrulkar et al. 2022, "PEFT: State-of-the-art Parameter-Efficient Fine-Tuning methods",
https://github.com/huggingface/peft. `peft_type` names the method: peft's layers compute it, and peft's own code merges
it. This file adds the interface of `methods/shared/base.py`: modules that wrap peft's layers, a check of every field,
and the reasons why some of peft's methods are not supported.

peft's layers have float32 weights on a bfloat16 base and compute in float32, where lamina's own methods round to the
base's dtype.
"""

from __future__ import annotations

import contextlib
import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn
from transformers import PreTrainedModel

from lamina.compute.ops.adapter import AdapterModule
from lamina.config import METHOD_CONFIGS, MethodConfig
from lamina.config.methods.peft import PeftConfig
from lamina.config.peft_objects import plain
from lamina.errors import AdapterError, ConfigError, LaminaError, Problem
from lamina.machine.seeding import seeded
from lamina.methods.shared.base import PEFT_PREFIX, Injection, Method, Saved, find_method
from lamina.methods.shared.peft_layers import PeftLayer, PeftShared, UnmergeablePeftLayer, merges, outermost_layers
from lamina.methods.shared.peft_types import (
    PLAIN_INITS,
    SET_BY_LAMINA,
    build_peft_config,
    check_loadable,
    check_trainable,
    has_layers,
    peft_fields,
)
from lamina.methods.shared.targets import short_targets
from lamina.structure.skeleton import build_skeleton

ADAPTER_NAME = "default"


class Peft(Method):
    """The methods of the installed peft that lamina does not implement itself."""

    fallback = True

    def check(self, model: PreTrainedModel, config: PeftConfig) -> None:
        check_trainable(config)
        own = METHOD_CONFIGS.get(config.peft_type.lower())
        if own is not None and self._is_own(own, model, config):
            message = f"lamina implements {own.title} itself, which is faster than peft's."
            raise ConfigError(Problem("method.peft_type", message, f"write `type: {config.peft_type.lower()}`"))

    def _is_own(self, own: type[MethodConfig], model: PreTrainedModel, config: PeftConfig) -> bool:
        """Whether lamina's own method accepts these settings on this model, and adapts the same modules."""
        name = config.peft_type.lower()
        method = find_method(name)
        try:
            begun = method.attach(build_skeleton(model), own.model_validate({"type": name, **config.fields}), seed=0)
            method.prepare(begun, [])
            if config.fields.get("target_modules") is None:
                return True
            # The same settings may select more modules in peft, such as the experts of a mixture.
            return self.attach(build_skeleton(model), config, seed=0).layers.keys() == begun.layers.keys()
        except (ValidationError, LaminaError, NotImplementedError):  # the last where it needs the weights themselves
            return False

    def attach(self, model: PreTrainedModel, config: PeftConfig, seed: int) -> Injection:
        given = build_peft_config(config)
        # The PeftModel is discarded afterwards: its layers are in `model` then. It is needed for the names under which
        # peft saves the tensors, including shared ones, which peft.inject_adapter_in_model does not handle.
        from peft import PeftModel

        empty = model.device.type == "meta"
        before = (
            {} if empty else {name: (parameter, _sample(parameter)) for name, parameter in model.named_parameters()}
        )
        try:
            with seeded(seed, model.device), _same_environment(), _useless() as useless:
                wrapped: Any = PeftModel(model, given, ADAPTER_NAME, low_cpu_mem_usage=empty)
                if config.peft_type == "ADALORA" and given.rank_pattern:  # the pruned ranks
                    wrapped.base_model.resize_modules_by_rank_pattern(given.rank_pattern, ADAPTER_NAME)
        except (ValueError, TypeError, LookupError, AttributeError, AssertionError, RuntimeError) as error:
            is_one_string = isinstance(given.target_modules, str) and "not found in the base model" in str(error)
            fix = "write target_modules as a list; one string is a regular expression over whole names"
            raise ConfigError(
                Problem("method", f"peft refuses these settings: {error}", fix if is_one_string else "")
            ) from error
        del model.peft_config
        model.train(model.training)  # new modules start in training mode, whatever the model's mode is
        layers = _wrapped_layers(wrapped, config)
        injection = Injection(model, config, layers, useless=[*useless, *_dead_patterns(wrapped, config)])
        _check_base(before)
        _check_tensors(injection, config, wrapped)
        return injection

    def prepare(self, injection: Injection, documents: Sequence[torch.Tensor]) -> Injection:
        """Runs the checks that apply only before training.

        Raises:
            ConfigError: A setting selects nothing, or small updates would be rounded away.
        """
        if injection.useless:
            raise ConfigError([Problem("method", what) for what in injection.useless])
        coarse = {name: tensor.dtype for name, tensor in injection.tensors().items() if tensor.dtype != torch.float32}
        if coarse:
            name, dtype = next(iter(coarse.items()))
            message = f"trained tensors are in {dtype} (first: {name}), so small updates would be rounded away."
            raise ConfigError(Problem("method", message, "use `dtype: float32`"))
        return injection

    def saved(self, injection: Injection) -> Saved:
        """Saves the names of the adapted modules, if peft chose them by its version and the model type."""
        config = injection.config
        assert isinstance(config, PeftConfig)
        chosen_by_peft = config.fields.get("target_modules") is None and config.peft_type != "TRAINABLE_TOKENS"
        if chosen_by_peft and "target_modules" in peft_fields(config.peft_type):
            names = [
                name for name, layer in injection.layers.items() if isinstance(layer, PeftLayer) and layer.is_target
            ]
            config = config.model_copy(update={"target_modules": short_targets(injection.model, names)})
        return Saved(config, injection.saved_tensors())

    def leaves_out(self, config: PeftConfig, name: str) -> bool:
        return True  # peft decides what its own all-linear selects

    def peft_config(self, config: PeftConfig, target_modules: list[str], base_ref: str) -> dict[str, Any]:
        content = {key: plain(value) for key, value in build_peft_config(config).to_dict().items()}
        return content | {"task_type": "CAUSAL_LM", "base_model_name_or_path": base_ref, "inference_mode": True}

    def reads_peft(self, peft_config: Mapping[str, Any]) -> bool:
        peft_type = peft_config.get("peft_type")
        return isinstance(peft_type, str) and (has_layers(peft_type) or peft_type.lower() not in METHOD_CONFIGS)

    def from_peft(self, peft_config: Mapping[str, Any]) -> PeftConfig:
        peft_type = peft_config["peft_type"]
        given = {key: value for key, value in peft_config.items() if key not in SET_BY_LAMINA}
        check_loadable(peft_type, given)
        try:
            known = peft_fields(peft_type)
        except ConfigError as error:
            problem = error.problems[0]
            fix = f" Fix: {problem.fix}" if problem.fix else ""
            raise AdapterError(f"the adapter cannot be loaded: {problem.message}{fix}") from None
        unknown = sorted(key for key, value in given.items() if key not in known and value not in (None, False, {}, []))
        if unknown:
            settings = ", ".join(f"{key}={given[key]!r}" for key in unknown)
            version = peft_config.get("peft_version") or "that it was saved with"
            raise AdapterError(
                f"the adapter was saved with settings that the installed peft does not have: {settings}. Without them "
                f"its output could differ. Fix: install the peft {version}."
            )
        if peft_type == "LORA" and given.get("init_lora_weights") in PLAIN_INITS:
            given["init_lora_weights"] = True  # initialization does not matter any more
        given.pop("bias", None)  # the file has the base's own biases, which are compared with those of the base
        # Only fields that differ from peft's defaults, as a user would write them.
        return PeftConfig.model_validate(
            {"type": "peft", "peft_type": peft_type}
            | {key: value for key, value in given.items() if key in known and value != plain(known[key])}
        )


METHOD = Peft()


@contextlib.contextmanager
def _same_environment() -> Iterator[None]:
    """Restores the environment: peft's BOFT sets $CC and $CXX to gcc, and on failure keeps them."""
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


@contextlib.contextmanager
def _useless() -> Iterator[list[str]]:
    """Collects peft's warnings inside the block about settings that match nothing, which it ignores."""
    found: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.filterwarnings("always", category=RuntimeWarning, module=r"peft\.")
        yield found
    for warning in caught:
        message = str(warning.message)
        if issubclass(warning.category, RuntimeWarning):
            if "_pattern keys" not in message:  # peft ignores parameters here; see `_dead_patterns`
                found.append(message)
        else:
            warnings.showwarning(warning.message, warning.category, warning.filename, warning.lineno)


def _dead_patterns(wrapped: Any, config: PeftConfig) -> list[str]:
    """Finds entries of rank_pattern and alpha_pattern that match nothing with an adapter."""
    tuner = wrapped.base_model
    names = [*tuner.targeted_module_names, *tuner.targeted_parameter_names]
    return [
        f"{field}: {key!r} did not match anything that gets an adapter, and was ignored."
        for field in ("rank_pattern", "alpha_pattern")
        for key in config.fields.get(field) or ()
        if not any(re.match(rf"(.*\.)?({key})$", name) for name in names)
    ]


def _wrapped_layers(wrapped: Any, config: PeftConfig) -> dict[str, AdapterModule]:
    """Wraps peft's layers, by the names of the modules that they replaced, in the model's order."""
    from peft import get_peft_model_state_dict

    everything = wrapped.state_dict(keep_vars=True)
    saved = get_peft_model_state_dict(wrapped, everything, ADAPTER_NAME, save_embedding_layers=False)
    places = outermost_layers(wrapped.base_model.model)
    own: dict[str, dict[str, torch.Tensor]] = {name: {} for name in ["", *places]}
    for key, tensor in saved.items():
        module = key.removeprefix(PEFT_PREFIX)
        home = next((name for name in places if key.startswith(PEFT_PREFIX) and module.startswith(f"{name}.")), "")
        own[home][module.removeprefix(f"{home}.") if home else key] = tensor
    layers: dict[str, AdapterModule] = {}
    taken: set[int] = set()
    for name, tensors in own.items():
        # A tensor that several layers share is trained once; peft saves it under each of its names.
        trained = {k: t for k, t in tensors.items() if _is_trained(t) and id(t) not in taken}
        taken |= {id(tensor) for tensor in trained.values()}
        fixed = {key: tensor for key, tensor in tensors.items() if key not in trained}
        if not name:
            if tensors:
                layers[name] = PeftShared(trained, fixed)  # pyright: ignore[reportArgumentType]
            continue
        wrapper = PeftLayer if merges(places[name], config) else UnmergeablePeftLayer
        layers[name] = wrapper(places[name], trained, fixed)  # pyright: ignore[reportArgumentType]
    return layers


def _is_trained(tensor: torch.Tensor) -> bool:
    return isinstance(tensor, nn.Parameter) and tensor.requires_grad


def _sample(parameter: torch.Tensor) -> torch.Tensor:
    """Samples a few elements; an initialization that moves weights into the adapter changes nearly all of them."""
    flat = parameter.detach().reshape(-1)
    return flat[:: max(1, len(flat) // 64)].clone()


def _check_base(before: Mapping[str, tuple[nn.Parameter, torch.Tensor]]) -> None:
    """Checks that the base is unchanged: some initializations move a part of its weights into the adapter."""
    changed = [name for name, (parameter, sample) in before.items() if not torch.equal(_sample(parameter), sample)]
    if changed:
        raise ConfigError(
            Problem(
                "method",
                f"with these settings peft changes the base's own weights (first: {changed[0]}), so the original base "
                "could not be restored, and the adapter could not be loaded on it.",
                "use another initialization, or one of lamina's own methods",
            )
        )


def _check_tensors(injection: Injection, config: PeftConfig, wrapped: nn.Module) -> None:
    """Checks that peft saves every trained tensor."""
    trained = injection.tensors()
    if not trained:
        raise ConfigError(Problem("method.peft_type", f"with these settings {config.peft_type} trains nothing."))
    saved = {id(tensor) for tensor in trained.values()}
    lost = [name for name, p in wrapped.named_parameters() if p.requires_grad and id(p) not in saved]
    if lost:
        raise ConfigError(
            Problem(
                "method",
                f"{config.peft_type} trains {len(lost)} tensors that peft does not save (first: {lost[0]}), so the "
                "adapter could not be loaded again.",
            )
        )
