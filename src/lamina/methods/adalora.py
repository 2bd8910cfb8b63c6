"""AdaLoRA: y = x W^T + b + s (x A^T) diag(E) B^T, a low-rank product in the form of an SVD, whose ranks are pruned.

Zhang et al. 2023, "AdaLoRA: Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning", arXiv:2303.10512.
A (r, in) and B (out, r) are kept nearly orthonormal by a penalty in the loss,

    w mean over all A, B of ||A A^T - I||, ||B^T B - I||  (Frobenius)

so that |E| measures the contribution of each of the r triplets (a row of A, its E, a column of B). A parameter's score
is the moving average of its sensitivity |p dp|, times the moving average of the sensitivity's deviation from that
average. A triplet's score is the score of E, plus the mean scores of the row and of the column. The budget of ranks
falls along a cubic, from r per layer to `target_r` on average; the triplets with the lowest scores in the whole model
get E = 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from lamina.compute.weights import FrozenLinear
from lamina.config.methods.adalora import AdaLoraConfig
from lamina.errors import ConfigError, Problem
from lamina.methods.shared.base import PEFT_PREFIX, Hooks, Injection, Method, Saved
from lamina.methods.shared.linears import adapted_linears, check_rank, peft_fields, read_peft_fields, zeros
from lamina.methods.shared.low_rank import LowRankLinear
from lamina.methods.shared.targets import find_targets, replace_linears

INIT_STD = 0.02


class AdaLoraLinear(LowRankLinear):
    """A frozen linear layer with a low-rank path in the form of an SVD.

    Attributes:
        lora_A: A, (r, in_features), float32; normal with a standard deviation of 0.02.
        lora_E: E, (r, 1), float32; zero, so that the layer starts as the base.
        lora_B: B, (out_features, r), float32; initialized like A.
    """

    def __init__(
        self, frozen: FrozenLinear, r: int, scaling: float, dropout: float, generator: torch.Generator
    ) -> None:
        super().__init__(frozen, scaling, dropout)
        device = self.weight.device
        # Drawn on the CPU, so that a seed gives the same adapter for every device.
        self.lora_A = nn.Parameter((INIT_STD * torch.randn(r, frozen.in_features, generator=generator)).to(device))
        self.lora_E = zeros((r, 1), device)
        self.lora_B = nn.Parameter((INIT_STD * torch.randn(frozen.out_features, r, generator=generator)).to(device))

    @property
    def rank(self) -> int:
        return self.lora_A.shape[0]

    def factors(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.lora_A * self.lora_E, self.lora_B

    def adapter_tensors(self) -> dict[str, nn.Parameter]:
        return {"lora_A": self.lora_A, "lora_E": self.lora_E, "lora_B": self.lora_B}

    def fast_tensors(self) -> list[str]:
        return ["lora_B"]

    def kept(self) -> torch.Tensor:
        """Finds the ranks that are kept, (r,) bool: those with a nonzero E."""
        return self.lora_E.detach()[:, 0] != 0


class BudgetHooks(Hooks):
    """Computes the orthogonality penalty and the scores, and prunes ranks.

    Attributes:
        final: Layer name -> which ranks it keeps in the end, (r, 1) bool; empty before the last pruning.
    """

    def __init__(self, layers: Mapping[str, AdaLoraLinear], config: AdaLoraConfig, total_steps: int) -> None:
        self._layers = dict(layers)
        self._config = config
        self._last_cut = total_steps - config.tfinal
        self._initial = sum(layer.rank for layer in layers.values())
        self._target = config.target_r * len(layers)
        self._sensitivity: dict[str, torch.Tensor] = {}
        self._uncertainty: dict[str, torch.Tensor] = {}
        self.final: dict[str, torch.Tensor] = {}

    def penalty(self) -> torch.Tensor | None:
        if self._config.orth_reg_weight == 0.0:
            return None
        squares = [layer.lora_A @ layer.lora_A.T for layer in self._layers.values()]
        squares += [layer.lora_B.T @ layer.lora_B for layer in self._layers.values()]
        distances = [torch.norm(square - torch.eye(len(square), device=square.device)) for square in squares]
        return self._config.orth_reg_weight * torch.stack(distances).mean()

    @torch.no_grad()
    def after_update(self, step: int) -> None:
        if self.final:
            self._zero(self.final)  # again, since the optimizer's momentum changes them
            return
        # In a very short run the last pruning is in the first step, which needs scores too.
        if step < self._last_cut or not self._sensitivity:
            self._score_weights()
        if step >= self._last_cut:  # >= rather than ==: that step may have been skipped
            self.final = self._cut_to(self._target)
            self._sensitivity, self._uncertainty = {}, {}
        elif step > self._config.tinit and step % self._config.deltaT == 0:
            self._cut_to(self.budget(step))

    def keep_all(self) -> None:
        """Makes the ranks that are there final, so that none is pruned."""
        self.final = {name: torch.ones_like(layer.lora_E, dtype=torch.bool) for name, layer in self._layers.items()}

    def budget(self, step: int) -> int:
        """Computes the number of ranks, over all layers, that may remain after a step."""
        config = self._config
        if step <= config.tinit:
            return self._initial
        if step >= self._last_cut:
            return self._target
        left = 1 - (step - config.tinit) / (self._last_cut - config.tinit)
        return int((self._initial - self._target) * left**3 + self._target)

    def is_settled(self) -> bool:
        """Whether ranks are final: between prunings, momentum revives ranks, so only the last reaches `target_r`."""
        return bool(self.final)

    def figures(self) -> dict[str, int]:
        kept = sum(int(layer.kept().sum()) for layer in self._layers.values())
        return {"ranks_at_start": self._initial, "ranks_kept": kept, "ranks_target": self._target}

    def state(self) -> dict[str, torch.Tensor]:
        parts = {"sensitivity": self._sensitivity, "uncertainty": self._uncertainty, "final": self.final}
        return {f"{part}/{name}": tensor for part, named in parts.items() for name, tensor in named.items()}

    def load_state(self, state: Mapping[str, torch.Tensor]) -> None:
        parts: dict[str, dict[str, torch.Tensor]] = {"sensitivity": {}, "uncertainty": {}, "final": {}}
        device = next(iter(self._layers.values())).weight.device
        for key, tensor in state.items():
            part, _, name = key.partition("/")
            parts[part][name] = tensor.to(device)
        self._sensitivity, self._uncertainty, self.final = parts["sensitivity"], parts["uncertainty"], parts["final"]

    def _score_weights(self) -> None:
        beta1, beta2 = self._config.beta1, self._config.beta2
        for name, layer in self._layers.items():
            for key, tensor in layer.adapter_tensors().items():
                assert tensor.grad is not None, name
                key = f"{name}.{key}"
                now = (tensor * tensor.grad).abs()
                mean = self._sensitivity.get(key, torch.zeros_like(now))
                spread = self._uncertainty.get(key, torch.zeros_like(now))
                self._sensitivity[key] = mean = beta1 * mean + (1 - beta1) * now
                self._uncertainty[key] = beta2 * spread + (1 - beta2) * (now - mean).abs()

    def _cut_to(self, budget: int) -> dict[str, torch.Tensor]:
        """Sets E to zero for all but the `budget` best triplets. Returns which ranks remain, like `final`."""
        scores = {name: self._score(name) for name in self._layers}
        excess = self._initial - budget
        if excess == 0:
            return {name: torch.ones_like(score, dtype=torch.bool)[:, None] for name, score in scores.items()}
        threshold = torch.cat(list(scores.values())).kthvalue(excess).values
        kept = {name: (score > threshold)[:, None] for name, score in scores.items()}
        self._zero(kept)
        return kept

    def _score(self, name: str) -> torch.Tensor:
        """Computes the scores of a layer's triplets, (r,)."""
        A, E, B = (self._sensitivity[f"{name}.{key}"] * self._uncertainty[f"{name}.{key}"] for key in _TRIPLET)
        return E[:, 0] + (A.mean(1) + B.mean(0))

    def _zero(self, kept: Mapping[str, torch.Tensor]) -> None:
        for name, layer in self._layers.items():
            layer.lora_E.masked_fill_(~kept[name], 0.0)


class AdaLora(Method):
    """Adaptive low-rank adaptation."""

    def check(self, model: PreTrainedModel, config: AdaLoraConfig) -> None:
        if config.rank_pattern is not None:
            message = "holds the remaining ranks of a trained adapter; a new one starts with init_r in every layer."
            raise ConfigError(Problem("method.rank_pattern", message, "remove it"))

    def attach(self, model: PreTrainedModel, config: AdaLoraConfig, seed: int) -> Injection:
        names = find_targets(model, config.target_modules, config.narrowest)
        ranks = iter(_ranks(config, names))
        generator = torch.Generator().manual_seed(seed)

        def build(frozen: FrozenLinear) -> AdaLoraLinear:
            return AdaLoraLinear(frozen, next(ranks), config.scaling, config.lora_dropout, generator)

        return Injection(model, config, replace_linears(model, names, build))

    def prepare(self, injection: Injection, documents: Sequence[torch.Tensor]) -> Injection:
        """Checks the rank, which matters only before training.

        Raises:
            ConfigError: The rank is too large.
        """
        check_rank("method.init_r", injection.config, adapted_linears(injection))
        return injection

    def hooks(self, injection: Injection, total_steps: int) -> BudgetHooks:
        config = injection.config
        assert isinstance(config, AdaLoraConfig)
        hooks = BudgetHooks(_layers(injection), config, total_steps)
        if config.rank_pattern is not None:  # training goes on from an adapter whose ranks are final
            hooks.keep_all()
            return hooks
        problems = []
        if config.total_step not in (None, total_steps):
            message = f"{config.total_step} is not the run's number of optimizer steps, {total_steps}."
            fix = f"set it to {total_steps}; in a configuration it can also be left out"
            problems.append(Problem("method.total_step", message, fix))
        if config.tinit + config.tfinal >= total_steps:
            message = (
                f"{config.tinit} steps before the first pruning and {config.tfinal} (method.tfinal) after the last "
                f"leave none of the run's {total_steps} steps for pruning ranks."
            )
            problems.append(Problem("method.tinit", message, "lower method.tinit or method.tfinal, or train longer"))
        if problems:
            raise ConfigError(problems)
        return hooks

    def saved(self, injection: Injection) -> Saved:
        """Returns the adapter without the pruned ranks."""
        config, layers = injection.config, _layers(injection)
        assert isinstance(config, AdaLoraConfig)
        kept = {name: layer.kept() for name, layer in layers.items()}
        whole = all(bool(mask.all()) for mask in kept.values())
        untrained = not any(bool(mask.any()) for mask in kept.values())
        if whole or untrained or config.rank_pattern is not None:
            return Saved(config, injection.saved_tensors())
        tensors = {}
        for name, tensor in injection.saved_tensors().items():
            module, _, key = name.rpartition(".")
            mask = kept[module.removeprefix(PEFT_PREFIX)]
            tensors[name] = tensor[:, mask] if key == "lora_B" else tensor[mask]
        pattern = {f"{name}.lora_E": mask.tolist() for name, mask in kept.items()}
        return Saved(config.model_copy(update={"rank_pattern": pattern}), tensors)

    def peft_config(self, config: AdaLoraConfig, target_modules: list[str], base_ref: str) -> dict[str, Any]:
        return peft_fields("ADALORA", config.target_modules, target_modules, base_ref) | {
            "target_r": config.target_r,
            "init_r": config.init_r,
            "tinit": config.tinit,
            "tfinal": config.tfinal,
            "deltaT": config.deltaT,
            "beta1": config.beta1,
            "beta2": config.beta2,
            "orth_reg_weight": config.orth_reg_weight,
            # peft cannot load an adapter without a total_step that fits the schedule, although the schedule is over.
            "total_step": config.total_step or config.tinit + config.tfinal + 1,
            "rank_pattern": config.rank_pattern,
            "lora_alpha": config.lora_alpha,
            "lora_dropout": config.lora_dropout,
            "fan_in_fan_out": False,
            "bias": "none",
            "init_lora_weights": True,
        }

    def reads_peft(self, peft_config: Mapping[str, Any]) -> bool:
        return peft_config.get("peft_type") == "ADALORA"

    def from_peft(self, peft_config: Mapping[str, Any]) -> AdaLoraConfig:
        pattern = peft_config.get("rank_pattern") or None
        return read_peft_fields(AdaLoraConfig, {**peft_config, "rank_pattern": pattern}, _NO_EFFECT_FIELDS)


METHOD = AdaLora()

_TRIPLET = ("lora_A", "lora_E", "lora_B")


# Fields that peft's AdaLoRA ignores, or that describe the initialization.
_NO_EFFECT_FIELDS = {
    "alpha_pattern",
    "init_lora_weights",
    "loftq_config",
    "megatron_core",
    "qalora_group_size",
    "r",
    "use_rslora",
}


def _layers(injection: Injection) -> dict[str, AdaLoraLinear]:
    layers = {name: layer for name, layer in injection.layers.items() if isinstance(layer, AdaLoraLinear)}
    assert len(layers) == len(injection.layers)
    return layers


def _ranks(config: AdaLoraConfig, names: list[str]) -> list[int]:
    """Computes the initial rank of each layer."""
    if config.rank_pattern is None:
        return [config.init_r] * len(names)
    wanted = {f"{name}.lora_E" for name in names}
    different = sorted(wanted ^ config.rank_pattern.keys())
    if different:
        message = f"its layers are not those that target_modules selects (first: {different[0]})."
        raise ConfigError(Problem("method.rank_pattern", message, "remove it"))
    return [sum(config.rank_pattern[f"{name}.lora_E"]) for name in names]
