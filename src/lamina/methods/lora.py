"""LoRA: y = x W^T + b + s (x A^T) B^T. W and b are frozen; A (r, in) starts random, B (out, r) starts at zero.

    >>> config = LoraConfig(r=2, lora_alpha=4)  # s = lora_alpha / r = 2
    >>> linear = nn.Linear(5, 3, bias=False)
    >>> layer = LoraLinear(freeze_linear(linear), config, "q_proj", torch.Generator().manual_seed(0))
    >>> x, W, A, B = torch.randn(4, 5), linear.weight, layer.lora_A, layer.lora_B
    >>> bool(torch.equal(layer(x), linear(x)))  # B = 0: the adapter starts as the base
    True
    >>> _ = nn.init.normal_(B)
    >>> bool(torch.allclose(layer(x), x @ W.T + 2.0 * (x @ A.T) @ B.T, atol=1e-5))
    True

Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", arXiv:2106.09685. s = lora_alpha / r, or
lora_alpha / sqrt(r) with rsLoRA (Kalajdzievski 2023, arXiv:2312.03732).

To follow LoRA from its settings to this equation, read `config/methods/lora.py` (the settings), this file (the layer,
and where it goes), and `compute/ops/lora_linear.py` (the product, forward and backward). Other initializations are in
`methods/shared/lora_init.py` and `methods/shared/lora_eva.py`, the choice of modules in
`methods/shared/lora_modules.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from lamina.compute.ops.adapter import AdapterModule, set_module
from lamina.compute.ops.dora import row_norms, row_squares
from lamina.compute.ops.lora_linear import lora_linear
from lamina.compute.weights import FrozenLinear, freeze_linear
from lamina.config.methods.lora import LoftqConfig, LoraConfig
from lamina.errors import ConfigError, Problem
from lamina.methods.shared.base import Injection, Method, Saved, tensor_name
from lamina.methods.shared.linears import (
    adapted_linears,
    check_rank,
    frozen_linears,
)
from lamina.methods.shared.lora_embedding import (
    LoraEmbedding,
    TiedLoraHead,
    check_embedding,
    tied_ends,
    trained_whole,
    with_tied,
)
from lamina.methods.shared.lora_eva import fit_to_data
from lamina.methods.shared.lora_init import initial_factors
from lamina.methods.shared.lora_modules import (
    bias_modules,
    is_wanted,
    no_bias,
    trained_modules,
    useless_settings,
)
from lamina.methods.shared.lora_parameters import LoraParameters
from lamina.methods.shared.lora_peft import lora_from_peft, lora_peft_config
from lamina.methods.shared.lora_targets import Chosen, choose, spelled_out
from lamina.methods.shared.low_rank import LowRankLinear
from lamina.methods.shared.targets import short_targets
from lamina.methods.shared.token_rows import chosen_rows
from lamina.methods.shared.trained_copy import TrainedCopy
from lamina.quantization.loftq import LoftqPlan


class LoraLinear(LowRankLinear):
    """A frozen linear layer with a LoRA adapter.

    Attributes:
        lora_A: A, (r, in_features), float32.
        trains_A: Whether A is trained; False with `lora_fa`.
        lora_B: B, (out_features, r), float32.
        lora_bias: Trained copy of the base's bias, (out_features,), float32; None unless biases are trained.
    """

    def __init__(self, frozen: FrozenLinear, config: LoraConfig, name: str, generator: torch.Generator) -> None:
        """Initializes the adapter of the module `name` as `config` says."""
        super().__init__(frozen, config.scaling_of(name), config.lora_dropout)
        A, B = initial_factors(config.init_lora_weights, frozen, config.rank_of(name), self.scaling, generator)
        self.trains_A = not config.lora_fa
        self.lora_A = nn.Parameter(A, requires_grad=self.trains_A)
        self.lora_B = nn.Parameter(B)
        self.lora_bias = None
        if config.bias != "none" and self.bias is not None:
            self.lora_bias = nn.Parameter(self.bias.detach().float().clone())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Computes y = x W^T + b + s (drop(x) A^T) B^T, with x (..., in_features) and y (..., out_features)."""
        if not self.enabled:
            return self.frozen.matmul(x)
        A, B = self.factors()
        y = lora_linear(x, self.frozen, A, B, self.scaling, self.current_dropout(), self.columns())
        added = self.delta_bias()  # only if the bias is trained
        return y if added is None else y + added.to(y.dtype)

    def factors(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.lora_A, self.lora_B

    @property
    def rank(self) -> int | None:
        return self.lora_A.shape[0] if self.lora_bias is None else None

    def adapter_tensors(self) -> dict[str, nn.Parameter]:
        tensors = {"lora_A.weight": self.lora_A} if self.trains_A else {}
        tensors["lora_B.weight"] = self.lora_B
        if self.lora_bias is not None:
            tensors["base_layer.bias"] = self.lora_bias
        return tensors

    def fixed_tensors(self) -> dict[str, torch.Tensor]:
        return {} if self.trains_A else {"lora_A.weight": self.lora_A}

    def fast_tensors(self) -> list[str]:
        return ["lora_B.weight"]

    def delta_bias(self) -> torch.Tensor | None:
        if self.lora_bias is None or self.bias is None:
            return None
        return self.lora_bias - self.bias.float()


class DoraLinear(LoraLinear):
    """LoRA with outputs scaled to a trained magnitude (see `methods/dora.py`).

    Attributes:
        lora_magnitude_vector: m, (out_features,), float32; initially the row norms of W + s B A.
    """

    def __init__(self, frozen: FrozenLinear, config: LoraConfig, name: str, generator: torch.Generator) -> None:
        super().__init__(frozen, config, name, generator)
        self._squares = row_squares(frozen)
        self.lora_magnitude_vector = nn.Parameter(self._norms())

    def columns(self) -> torch.Tensor:
        norms = self._norms()
        return self.lora_magnitude_vector / norms.clamp_min(torch.finfo(norms.dtype).tiny)  # a row of zeros stays zero

    def adapter_tensors(self) -> dict[str, nn.Parameter]:
        return {**super().adapter_tensors(), "lora_magnitude_vector": self.lora_magnitude_vector}

    def delta_weight(self) -> torch.Tensor:
        weight = self.frozen.weight(torch.float32)
        return self.columns()[:, None] * (weight + super().delta_weight()) - weight

    def _norms(self) -> torch.Tensor:
        return row_norms(self.frozen, self._squares, *self.factors(), self.scaling)


class ShiftedLoraLinear(LoraLinear):
    """LoRA initialized with a part s B0 A0 of W, as in PiSSA and OLoRA.

    The papers subtract that part from W and train it: y = x (W - s B0 A0)^T + s x (B A)^T. Here W is unchanged, and the
    layer adds s (B A - B0 A0), written as a product of rank 2 r without cancellation:

        B A - B0 A0 = (B - B0) A + B0 (A - A0) = [B - B0, B0] [A; A - A0]

    So the layer starts exactly as the base, and small changes of A and B survive rounding to bfloat16. Dropout acts on
    the whole difference. (In peft, dropout acts on B A alone, so it also drops the part that was subtracted from W.)
    """

    def __init__(self, frozen: FrozenLinear, config: LoraConfig, name: str, generator: torch.Generator) -> None:
        super().__init__(frozen, config, name, generator)
        self.A0: torch.Tensor
        self.B0: torch.Tensor
        self.register_buffer("A0", self.lora_A.detach().clone(), persistent=False)
        self.register_buffer("B0", self.lora_B.detach().clone(), persistent=False)

    def factors(self) -> tuple[torch.Tensor, torch.Tensor]:
        A = torch.cat([self.lora_A, self.lora_A - self.A0])
        B = torch.cat([self.lora_B - self.B0, self.B0], dim=1)
        return A, B

    @property
    def rank(self) -> int | None:
        return 2 * self.lora_A.shape[0] if self.lora_bias is None else None


class Lora(Method):
    """Low-rank adaptation."""

    def attach(self, model: PreTrainedModel, config: LoraConfig, seed: int) -> Injection:
        chosen = choose(model, config)
        holders = {name.rpartition(".")[0] for name in chosen.parameters}
        tie = tied_ends(model) if config.ensure_weight_tying else None
        adapted = with_tied(chosen.linears, tie)
        whole = with_tied(trained_modules(model, config, [*adapted, *holders]), tie)
        rows = chosen_rows(model, config.trainable_token_indices, [*adapted, *holders, *whole])
        biased = bias_modules(model, [*adapted, *whole, *rows]) if config.bias == "all" else []
        generator = torch.Generator().manual_seed(seed)
        layers: dict[str, AdapterModule] = {}
        for name, module in list(model.named_modules()):
            if name in rows:
                layers[name] = rows[name]
            elif name in adapted:
                layers[name] = _adapter(config, name, module, tie and layers.get(tie.embedding), generator)
            elif name in holders:
                layers[name] = LoraParameters(module, chosen.in_module(name, config), config, generator)
            elif name in whole:
                layers[name] = trained_whole(module, tie and layers.get(tie.embedding))
            elif name in biased:
                layers[name] = TrainedCopy(module, ["bias"])
        if config.init_lora_weights == "loftq":
            _check_loftq(layers)
        for name, layer in layers.items():
            set_module(model, name, layer)
        return Injection(model, config, layers)

    def prepare(self, injection: Injection, documents: Sequence[torch.Tensor]) -> Injection:
        """Runs the checks that apply only before training, and EVA's initialization from the data.

        Raises:
            ConfigError: A rank is too large, or a setting selects nothing.
        """
        model, config, layers = injection.model, _config(injection), _lora_layers(injection)
        check_rank("method.r", config, adapted_linears(injection))
        problems = useless_settings(model, config, [*layers, *_parameters(injection)])
        biased = injection.layers if config.bias == "all" else layers
        if config.target_parameters and config.layers_to_transform is not None:
            message = "layers_to_transform does not apply to target_parameters, neither here nor in peft."
            fix = "give these with their layer, such as layers.0.mlp.experts.down_proj"
            problems.append(Problem("method.target_parameters", message, fix))
        if config.bias != "none" and not any(_trains_bias(layer) for layer in biased.values()):
            problems.append(no_bias(model, config))
        if problems:
            raise ConfigError(problems)
        if config.init_lora_weights != "eva":
            return injection
        return fit_to_data(
            injection, config, layers, documents, lambda fitted, name, at: _build(fitted, name, at, torch.Generator())
        )

    def leaves_out(self, config: LoraConfig, name: str) -> bool:
        return not is_wanted(name, config)

    def plan_loftq(self, config: LoraConfig) -> Callable[[PreTrainedModel], LoftqPlan] | None:
        if config.init_lora_weights != "loftq":
            return None
        rounds = (config.loftq_config or LoftqConfig()).loftq_iter

        def plan(model: PreTrainedModel) -> LoftqPlan:
            names = choose(model, config).linears
            check_rank("method.r", config, frozen_linears(model, names))
            return LoftqPlan(rounds, {name: (config.rank_of(name), config.scaling_of(name)) for name in names})

        return plan

    def saved(self, injection: Injection) -> Saved:
        """Returns a plain LoRA: without its initialization, and with twice the rank for `ShiftedLoraLinear`."""
        tensors, layers = injection.saved_tensors(), _lora_layers(injection)
        config = _config(injection)
        if self.plan_loftq(config) is None:
            named = [name for name, layer in injection.layers.items() if isinstance(layer, LoraLinear | LoraEmbedding)]
            config = spelled_out(injection.model, config, Chosen(named, _parameters(injection)))
        changes: dict[str, Any] = {"init_lora_weights": True, "eva_config": None}
        if config.init_lora_weights == "loftq":
            changes.clear()  # loading quantizes the base again with these settings
        if config.starts_in_the_base:
            for name, layer in layers.items():
                A, B = layer.factors()
                tensors[tensor_name(name, "lora_A.weight")] = A.detach()
                tensors[tensor_name(name, "lora_B.weight")] = B.detach()
            # Keeps s at twice the rank.
            more = 2**0.5 if config.use_rslora else 2.0
            changes["r"], changes["lora_alpha"] = 2 * config.r, more * config.lora_alpha
            changes["rank_pattern"] = {key: 2 * r for key, r in config.rank_pattern.items()}
            changes["alpha_pattern"] = {key: more * alpha for key, alpha in config.alpha_pattern.items()}
        if config.everywhere and len(layers) < len(injection.layers):
            changes["target_modules"] = short_targets(injection.model, list(layers))
        return Saved(config.model_copy(update=changes), tensors)

    def begun(self, config: LoraConfig) -> LoraConfig:
        return config.model_copy(update={"init_lora_weights": True, "eva_config": None, "loftq_config": None})

    def peft_config(self, config: LoraConfig, target_modules: list[str], base_ref: str) -> dict[str, Any]:
        return lora_peft_config(config, target_modules, base_ref)

    def reads_peft(self, peft_config: Mapping[str, Any]) -> bool:
        return peft_config.get("peft_type") == "LORA"

    def from_peft(self, peft_config: Mapping[str, Any]) -> LoraConfig:
        return lora_from_peft(peft_config)


METHOD = Lora()


def _config(injection: Injection) -> LoraConfig:
    assert isinstance(injection.config, LoraConfig)
    return injection.config


def _lora_layers(injection: Injection) -> dict[str, LoraLinear]:
    return {name: layer for name, layer in injection.layers.items() if isinstance(layer, LoraLinear)}


def _parameters(injection: Injection) -> dict[str, int]:
    """The adapted parameters, as in `Chosen`."""
    return {
        f"{name}.{key}": layers
        for name, layer in injection.layers.items()
        if isinstance(layer, LoraParameters)
        for key, layers in layer.layers_of_parameters().items()
    }


def _trains_bias(layer: AdapterModule) -> bool:
    return any(key.rpartition(".")[2] == "bias" for key in layer.adapter_tensors())


def _adapter(
    config: LoraConfig, name: str, module: nn.Module, tied_to: AdapterModule | None, generator: torch.Generator
) -> AdapterModule:
    """The adapter of a linear layer or of the embedding; for a head, of the embedding that it is tied to."""
    if isinstance(module, nn.Embedding):
        check_embedding(config, name, module)
        return LoraEmbedding(module, config, name, generator)
    frozen = freeze_linear(module)
    assert frozen is not None, name
    if isinstance(tied_to, LoraEmbedding) and module.weight is tied_to.base.weight:
        return TiedLoraHead(frozen, tied_to)
    return _build(config, name, frozen, generator)


def _build(config: LoraConfig, name: str, frozen: FrozenLinear, generator: torch.Generator) -> LoraLinear:
    if config.starts_in_the_base:
        check_rank("method.r", config, {name: frozen})  # a decomposition has no more components than that
        return ShiftedLoraLinear(frozen, config, name, generator)
    return (DoraLinear if config.use_dora else LoraLinear)(frozen, config, name, generator)


def _check_loftq(layers: Mapping[str, AdapterModule]) -> None:
    if all(layer.frozen.is_exact for layer in layers.values() if isinstance(layer, LoraLinear)):
        message = "'loftq' compensates for quantization, but none of the layers with an adapter is quantized."
        raise ConfigError(Problem("method.init_lora_weights", message, "leave it out, or quantize these layers"))
