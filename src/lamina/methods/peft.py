"""Any method of the installed HF peft, through lamina's loop, run directory, lock and probes.

Mangrulkar et al. 2022, "PEFT: State-of-the-art Parameter-Efficient Fine-Tuning methods",
https://github.com/huggingface/peft. The equation is that of the method which `peft_type` names: peft's layers compute
it, and peft's own code merges it. What this file adds is the contract of `base.py`: small modules that stand for peft's
layers, the check of every field, and the reasons why some of peft's methods cannot be had this way.

peft's layers hold float32 masters beside a bfloat16 base and compute in float32, where lamina's own methods round to
the base's dtype.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from lamina.config.methods.peft import PeftConfig
from lamina.errors import AdapterError, ConfigError, Problem
from lamina.methods.base import PEFT_PREFIX, AdapterModule, Injection, Method, set_module
from lamina.methods.peft_types import SET_BY_LAMINA, build_peft_config, peft_fields, plain, refusal

ADAPTER_NAME = "default"


class PeftLayer(AdapterModule):
    """Stands for one of the layers that peft has put into the model."""

    def __init__(
        self,
        layer: Any,
        trained: Mapping[str, nn.Parameter],
        fixed: Mapping[str, torch.Tensor],
    ) -> None:
        """
        Args:
            layer: peft's `BaseTunerLayer` or `AuxiliaryTrainingWrapper`, in its place in the model.
            trained: Its trained tensors, by the names that peft saves them under.
            fixed: What peft saves beside them.
        """
        # In tuples and dictionaries, because these belong to peft's layer and not to this module; and before
        # `enabled` is set, which is passed on to that layer.
        self._layer = (layer,)
        super().__init__()
        self._trained = dict(trained)
        self._fixed = dict(fixed)

    @property
    def enabled(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether peft's layer takes part."""
        return not self._layer[0].disable_adapters

    @enabled.setter
    def enabled(self, value: bool) -> None:
        # peft asks for gradients again whenever it switches a layer on, also where nothing is trained.
        asked = [(parameter, parameter.requires_grad) for parameter in self._layer[0].parameters()]
        self._layer[0].enable_adapters(value)
        for parameter, requires_grad in asked:
            parameter.requires_grad_(requires_grad)

    def adapter_tensors(self) -> dict[str, nn.Parameter]:
        return self._trained

    def fixed_tensors(self) -> dict[str, torch.Tensor]:
        return self._fixed

    def fast_tensors(self) -> list[str]:
        """Those that peft calls B: `lora_B.weight`, `hira_B`, ..."""
        return [key for key in self._trained if any(part.endswith("_B") for part in key.split("."))]

    @property
    def base_module(self) -> nn.Module:
        from peft.utils import AuxiliaryTrainingWrapper

        layer = self._layer[0]
        return layer.original_module if isinstance(layer, AuxiliaryTrainingWrapper) else layer.get_base_layer()

    @torch.no_grad()
    def fold_in(self, model: PreTrainedModel, name: str) -> None:
        from peft.utils import AuxiliaryTrainingWrapper

        layer = self._layer[0]
        if isinstance(layer, AuxiliaryTrainingWrapper):
            merged = layer.unload_and_optionally_merge_module(merge=True, safe_merge=False, adapter_names=None)
        else:
            # peft adds in the base's dtype; in float32 the sum is rounded once, as for lamina's own methods.
            dtypes = {key: parameter.dtype for key, parameter in layer.get_base_layer().named_parameters()}
            _retype(layer.get_base_layer(), dict.fromkeys(dtypes, torch.float32))
            layer.merge()
            merged = layer.get_base_layer()
            _retype(merged, dtypes)
        set_module(model, name, merged.requires_grad_(False))


class PeftLayerApart(PeftLayer):
    """The same, of a method whose layers peft cannot merge."""

    merges = False


class PeftShared(AdapterModule):
    """Tensors that belong to all of peft's layers together, such as a bank of vectors."""

    def __init__(self, trained: Mapping[str, nn.Parameter], fixed: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        self._trained = dict(trained)
        self._fixed = dict(fixed)

    def adapter_tensors(self) -> dict[str, nn.Parameter]:
        return self._trained

    def fixed_tensors(self) -> dict[str, torch.Tensor]:
        return self._fixed

    def fold_in(self, model: PreTrainedModel, name: str) -> None:
        """Nothing: the layers that use the tensors fold them in."""


class Peft(Method):
    """Whatever the installed peft knows and lamina has no method of its own for."""

    fallback = True

    def attach(self, model: PreTrainedModel, config: PeftConfig, seed: int) -> Injection:
        given = build_peft_config(config)
        # No peft model is used afterwards: its layers are in `model` then. But it knows the tensors by the names that
        # peft saves them under, also those that layers share, which peft.inject_adapter_in_model cannot.
        from peft import PeftModel

        before = {name: (parameter, _sample(parameter)) for name, parameter in model.named_parameters()}
        devices = [model.device] if model.device.type == "cuda" else []
        try:
            with torch.random.fork_rng(devices=devices), warnings.catch_warnings(), _same_environment():
                # What peft warns of in this way is a setting that matches nothing and would be ignored.
                warnings.filterwarnings("error", category=RuntimeWarning, module=r"peft\.")
                torch.manual_seed(seed)
                wrapped = PeftModel(model, given, ADAPTER_NAME)
        except (ValueError, TypeError, KeyError, NotImplementedError, RuntimeError, RuntimeWarning) as error:
            raise ConfigError(Problem("method", f"peft refuses these settings: {error}")) from error
        del model.peft_config
        model.train(model.training)  # new modules begin in training mode, whatever the model is in
        layers = _stand_ins(wrapped, config)
        injection = Injection(model, config, layers)
        _check_base(before)
        _check_tensors(injection, config, wrapped)
        return injection

    def leaves_out(self, config: PeftConfig, name: str) -> bool:
        return True  # what peft's own all-linear selects is peft's choice

    def peft_config(self, config: PeftConfig, target_modules: list[str], base_ref: str) -> dict[str, Any]:
        content = {key: plain(value) for key, value in build_peft_config(config).to_dict().items()}
        # Which modules peft takes by default depends on its version; for trained tokens it is always the embedding, and
        # the tied head, which peft must find by itself.
        if config.peft_type != "TRAINABLE_TOKENS" and content.get("target_modules", "") is None:
            content["target_modules"] = [name for name in target_modules if name]
        return content | {"task_type": "CAUSAL_LM", "base_model_name_or_path": base_ref, "inference_mode": True}

    def reads_peft(self, peft_config: Mapping[str, Any]) -> bool:
        return isinstance(peft_config.get("peft_type"), str)

    def from_peft(self, peft_config: Mapping[str, Any]) -> PeftConfig:
        peft_type = peft_config["peft_type"]
        given = {key: value for key, value in peft_config.items() if key not in SET_BY_LAMINA}
        try:
            known = peft_fields(peft_type)
            reason = refusal(peft_type, given)
        except ConfigError as error:
            raise AdapterError(
                f"the adapter cannot be loaded: {'; '.join(p.message for p in error.problems)}"
            ) from None
        if reason is not None:
            raise AdapterError(f"the adapter's peft_type {peft_type} cannot be loaded: {reason}.")
        unknown = sorted(given.keys() - known.keys())
        if unknown:
            settings = ", ".join(f"{key}={given[key]!r}" for key in unknown)
            raise AdapterError(
                f"the adapter was saved with settings that the installed peft does not know: {settings}. Loading it "
                "without them could give another model. Fix: install the peft that it was saved with."
            )
        # Only what differs from peft's defaults, as a user would write it.
        return PeftConfig.model_validate(
            {"type": "peft", "peft_type": peft_type}
            | {key: value for key, value in given.items() if value != plain(known[key])}
        )


METHOD = Peft()


@contextlib.contextmanager
def _same_environment() -> Iterator[None]:
    """peft's BOFT compiles CUDA code with $CC and $CXX set to gcc, and leaves them so where that fails."""
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


def _stand_ins(wrapped: Any, config: PeftConfig) -> dict[str, AdapterModule]:
    """Modules that stand for peft's layers, by the names of the modules in their places, in the model's order."""
    from peft import get_peft_model_state_dict
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import AuxiliaryTrainingWrapper

    everything = wrapped.state_dict(keep_vars=True)
    saved = get_peft_model_state_dict(wrapped, everything, ADAPTER_NAME, save_embedding_layers=False)
    places: dict[str, Any] = {}
    for name, module in wrapped.base_model.model.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in places)
        if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper) and not inside:
            places[name] = module
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
        stand_in = PeftLayer if _merges(places[name], config) else PeftLayerApart
        layers[name] = stand_in(places[name], trained, fixed)  # pyright: ignore[reportArgumentType]
    return layers


def _merges(layer: Any, config: PeftConfig) -> bool:
    """Whether peft can fold a layer in, which it does not say before it tries."""
    from peft.utils import AuxiliaryTrainingWrapper

    if isinstance(layer, AuxiliaryTrainingWrapper):
        return True
    adds_bias = config.peft_type == "BEFT" or bool(config.fields.get("lora_bias"))
    return config.peft_type != "LILY" and not (adds_bias and layer.get_base_layer().bias is None)


def _is_trained(tensor: torch.Tensor) -> bool:
    return isinstance(tensor, nn.Parameter) and tensor.requires_grad


def _sample(parameter: torch.Tensor) -> torch.Tensor:
    """A few of its elements: what moves weights into an adapter changes nearly all of them."""
    flat = parameter.detach().reshape(-1)
    return flat[:: max(1, len(flat) // 64)].clone()


def _check_base(before: Mapping[str, tuple[nn.Parameter, torch.Tensor]]) -> None:
    """Some ways of initialising an adapter move a part of the base's weights into it."""
    changed = [name for name, (parameter, sample) in before.items() if not torch.equal(_sample(parameter), sample)]
    if changed:
        raise ConfigError(
            Problem(
                "method",
                f"with these settings peft changes the base's own weights (first: {changed[0]}), so that the bare base "
                "could not be had back, nor the adapter be loaded on it.",
                "use another initialisation, or one of lamina's own methods",
            )
        )


def _check_tensors(injection: Injection, config: PeftConfig, wrapped: nn.Module) -> None:
    """Every trained tensor must be saved, and be a float32 master."""
    trained = injection.tensors()
    if not trained:
        raise ConfigError(Problem("method.peft_type", f"with these settings {config.peft_type} trains nothing."))
    saved = {id(tensor) for tensor in trained.values()}
    lost = [name for name, p in wrapped.named_parameters() if p.requires_grad and id(p) not in saved]
    if lost:
        raise ConfigError(
            Problem(
                "method",
                f"{config.peft_type} trains {len(lost)} tensors that peft does not save (first: {lost[0]}), so that "
                "the adapter could not be loaded again.",
            )
        )
    coarse = [name for name, tensor in trained.items() if tensor.dtype != torch.float32]
    if coarse:
        raise ConfigError(
            Problem(
                "method",
                f"{config.peft_type} holds trained tensors in {trained[coarse[0]].dtype} (first: {coarse[0]}), and "
                "small updates would be rounded away.",
                "use `dtype: float32`",
            )
        )


def _retype(module: nn.Module, dtypes: Mapping[str, torch.dtype]) -> None:
    """Puts new parameters of other dtypes in the place of a module's; they may share their memory with others."""
    for name, dtype in dtypes.items():
        owner, _, leaf = name.rpartition(".")
        value = getattr(module.get_submodule(owner), leaf).detach().to(dtype, copy=True)
        setattr(module.get_submodule(owner), leaf, nn.Parameter(value, requires_grad=False))
