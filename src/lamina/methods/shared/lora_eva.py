"""EVA: initializes A with the principal components of a layer's inputs, and distributes ranks by explained variance.

Paischer et al. 2024, "Parameter Efficient Fine-tuning via Explained Variance Adaptation", arXiv:2410.07170. The inputs
X (T, in) of each adapted layer are collected over training documents, and their principal components V (k, in) are
updated by incremental singular value decomposition:

    [S V; X - mean; correction of the mean] = U S' V'          explained = S'^2 / total variance

The components of all layers that explain most are selected, as many as the sum of all ranks; A = V[:rank].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedModel

from lamina.compute.ops.adapter import AdapterLinear, set_module
from lamina.compute.weights import FrozenLinear
from lamina.config.methods.lora import EvaConfig, LoraConfig
from lamina.machine.seeding import seeded
from lamina.methods.shared.base import Injection
from lamina.methods.shared.low_rank import LowRankLinear
from lamina.methods.shared.trained_copy import TrainedCopy
from lamina.structure.inputs import run_once, with_same_input

# Documents are repeated until all components converge, but at most this many steps: ranks that still change by then
# differ by little.
MAX_STEPS = 256

# Seed of the random start of the truncated decomposition; peft's, so that both results agree up to rounding.
_SEED = 42


class IncrementalPca:
    """Incremental principal component analysis, over data that arrives in batches.

    Attributes:
        directions: Principal components, (k, in), float32: orthonormal rows in the order of their singular values.
        singular_values: (k,), float32.
        explained: Each component's share of the total variance, (k,).
        change: Cosine of each component with its value before the last update, (k,); -1 before the second update.
    """

    def __init__(self, k: int) -> None:
        self.k = k
        self.directions = self.singular_values = self.explained = torch.empty(0)
        self.change = torch.full((k,), -1.0)
        self._rows = 0
        self._mean = self._squares = torch.zeros((), dtype=torch.float64)

    def update(self, x_TI: torch.Tensor) -> None:
        """Adds a batch of T >= k rows."""
        x, new, old = x_TI.double(), x_TI.shape[0], self._rows
        mean, total = x.mean(0), old + new
        centred = (x_TI - mean).float()
        # Squared deviations from the common mean: those within the batches, plus that between their means.
        shift = self._mean.to(mean) - mean if old else torch.zeros_like(mean)
        squares = centred.double().square().sum(0) + shift.square() * (old * new / total)
        self._squares = squares if not old else self._squares + squares
        if old:
            correction = shift * (old * new / total) ** 0.5
            kept = self.singular_values[:, None] * self.directions
            centred = torch.cat([kept, centred, correction.float()[None]])
        S, V = _truncated_svd(centred, self.k)
        if old:
            self.change = torch.nn.functional.cosine_similarity(V, self.directions).cpu()
        self.directions, self.singular_values = V, S
        share = S.double().square() / self._squares.sum()
        self.explained = share.nan_to_num(0.0).cpu()  # 0 / 0 for a constant input, which has no variance
        self._mean = (mean * new + self._mean.to(mean) * old) / total
        self._rows = total


@dataclass
class _Group:
    """Layers with the same input, which share one analysis.

    Attributes:
        names: Names of the layers.
        pca: The analysis of their input.
        waiting: Inputs of documents that were too short for an update.
    """

    names: list[str]
    pca: IncrementalPca
    waiting: list[torch.Tensor] = field(default_factory=list)

    def take(self, given: torch.Tensor) -> None:
        self.waiting.append(given.flatten(0, -2))
        if sum(len(x) for x in self.waiting) >= self.pca.k:
            self.pca.update(torch.cat(self.waiting))
            self.waiting = []


@torch.no_grad()
def eva_factors(
    model: PreTrainedModel,
    layers: Mapping[str, AdapterLinear],
    ranks: Mapping[str, int],
    config: EvaConfig,
    documents: Sequence[torch.Tensor],
) -> dict[str, torch.Tensor]:
    """Computes the initial A of every layer.

    Args:
        model: The model that contains the layers.
        layers: The layers by name.
        ranks: Each layer's rank before ranks are redistributed; their sum stays the same.
        config: Settings of EVA.
        documents: Token ids (1, T) of each document, accessed one at a time and repeated if there are few.

    Returns:
        For each layer A, (new rank, in_features), float32; the new rank may be 0.
    """
    training = model.training
    model.eval()
    limits = {
        name: min(round(ranks[name] * config.rho), layer.frozen.in_features, layer.frozen.out_features)
        for name, layer in layers.items()
    }
    alike = with_same_input(model, layers, documents[0])
    groups = [_Group(names, IncrementalPca(max(limits[n] for n in names))) for names in alike]
    chosen, found = dict(limits), False
    for step in range(MAX_STEPS):
        unfinished = [
            group
            for group in groups
            if bool((group.pca.change[: max(chosen[n] for n in group.names)] < config.tau).any())
        ]
        if found and not unfinished:
            break
        document = documents[step % len(documents)]
        run_once(model, document, {layers[group.names[0]]: group.take for group in unfinished})
        found = all(len(group.pca.directions) for group in groups)
        if found:
            chosen = _distribute(groups, limits, sum(ranks.values()))
    model.train(training)
    assert found, "no documents"
    factors = {}
    for group in groups:
        for name in group.names:
            A = group.pca.directions[: chosen[name]]
            if config.whiten:
                A = A / group.pca.singular_values[: chosen[name], None].sqrt()
            factors[name] = A
    return {name: factors[name] for name in layers}


def _distribute(groups: list[_Group], limits: Mapping[str, int], budget: int) -> dict[str, int]:
    """Distributes `budget` ranks: each layer's number among the components that explain most."""
    # On ties, the first layer of each group precedes the others, as in peft.
    order = [(group, group.names[0]) for group in groups]
    order += [(group, name) for group in groups for name in group.names[1:]]
    owners = [name for _, name in order for _ in range(limits[name])]
    explained = torch.cat([group.pca.explained[: limits[name]] for group, name in order])
    ranks = dict.fromkeys(limits, 0)
    for index in explained.argsort(descending=True, stable=True)[:budget].tolist():
        ranks[owners[index]] += 1
    return ranks


def _truncated_svd(matrix: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Computes the `k` largest singular values, and their right vectors (k, columns) with a fixed sign."""
    if 2 * k > min(matrix.shape):
        _, S, V = torch.linalg.svd(matrix, full_matrices=False)
    else:
        with seeded(_SEED, matrix.device):
            _, S, V = torch.svd_lowrank(matrix, q=2 * k, niter=4)
        V = V.T
    V = V[:k]
    largest = V.gather(1, V.abs().argmax(1, keepdim=True))
    return S[:k], V * largest.sign()


def fit_to_data(
    injection: Injection,
    config: LoraConfig,
    layers: Mapping[str, LowRankLinear],
    documents: Sequence[torch.Tensor],
    build: Callable[[LoraConfig, str, FrozenLinear], LowRankLinear],
) -> Injection:
    """Applies EVA to an adapter.

    Args:
        injection: The adapter.
        config: Its configuration.
        layers: Its low-rank layers, by name.
        documents: Token ids (1, T) of each training document.
        build: Builds a layer of a rank that the configuration gives, with an A that is replaced here.

    Returns:
        The adapter with its factors, and its new ranks in the configuration's patterns.
    """
    model, eva = injection.model, config.eva_config or EvaConfig()
    ranks = {name: config.rank_of(name) for name in layers}
    factors = eva_factors(model, layers, ranks, eva, documents)
    fitted = _with_ranks(config, ranks, factors, eva)
    new_layers = dict(injection.layers)
    for name, A in factors.items():
        frozen = layers[name].frozen
        if len(A):
            new_layers[name] = layer = build(fitted, name, frozen)
            with torch.no_grad():
                layer.factors()[0].copy_(A)
        elif config.bias == "all" and frozen.base.bias is not None:
            new_layers[name] = TrainedCopy(frozen.base, ["bias"])
        else:
            del new_layers[name]
            set_module(model, name, frozen.base)
            continue
        set_module(model, name, new_layers[name])
    return Injection(model, fitted, new_layers)


def _with_ranks(
    config: LoraConfig, ranks: Mapping[str, int], factors: Mapping[str, torch.Tensor], eva: EvaConfig
) -> LoraConfig:
    rank_pattern, alpha_pattern = {}, {}
    for name, A in factors.items():
        alpha = config.alpha_of(name)
        if eva.adjust_scaling_factors:
            alpha *= len(A) / ranks[name]
        if len(A) and len(A) != config.r:
            rank_pattern[name] = len(A)
        if len(A) and alpha != config.lora_alpha:
            alpha_pattern[name] = alpha
    changes: dict[str, Any] = {"rank_pattern": rank_pattern, "alpha_pattern": alpha_pattern}
    if not all(len(A) for A in factors.values()):
        changes["target_modules"] = [name for name, A in factors.items() if len(A)]
    return config.model_copy(update=changes)
