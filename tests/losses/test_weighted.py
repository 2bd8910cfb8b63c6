"""DFT, EAFT and ASFT: each formula against the paper's in float64, the hot path against the formula, and whole runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import lamina
from lamina.compute.fusion import fast_path
from lamina.config import load_config
from lamina.data.batch import PACKED, Layout
from lamina.data.example import EncodedExample
from lamina.errors import ConfigError
from lamina.losses.base import Loss, build_loss
from lamina.losses.cross_entropy import CrossEntropy
from lamina.losses.dft import weighed
from lamina.losses.eaft import Eaft
from lamina.methods.shared.base import Injection, inject
from lamina.runs.events import Step
from lamina.structure.head import Head, find_head
from lamina.training.step import EvaluationResult, training_step
from lamina.verification.paths import fill_adapter
from tests.support.models_zoo import build_model
from tests.support.preferences import example_of
from tests.support.training import settings

LOSSES: dict[str, dict[str, Any]] = {
    "dft": {"type": "dft"},
    "eaft": {"type": "eaft", "eaft_alpha": 1.5, "eaft_k": 7},
    "asft": {"type": "asft", "asft_alpha": 0.3},
}
SEPARATE = Layout(together=False, own_attention=True)
PADDED = Layout(together=False, own_attention=True, padded=True)


@pytest.fixture(scope="module", params=["llama-lora", "gemma2-lora", "qwen2-full"])
def parts(request: pytest.FixtureRequest) -> tuple[Injection, Head]:
    """A head that is frozen, one with a softcap, and one that is trained."""
    name, _, method = request.param.partition("-")
    model = build_model(name)
    injection = inject(model, load_config({"data": {"train": "x"}, "method": {"type": method}}).method, 0)
    fill_adapter(injection, 0)
    return injection, find_head(model)


def built(name: str, injection: Injection) -> Loss:
    loss = build_loss(load_config({"data": {"train": "x"}, "loss": LOSSES[name]}).loss)
    base: Any = SimpleNamespace(model=injection.model)
    assert loss.attach(injection, base, 0, print) is injection
    return loss


def paper(name: str, logits: torch.Tensor, base: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The sum over tokens as the papers write it, with probabilities.

    Args:
        name: Of the loss.
        logits: (N, V), float64, with a gradient.
        base: The base's, (N, V).
        targets: (N,).
    """
    p = logits.softmax(-1)
    own = p.gather(1, targets[:, None])[:, 0]
    if name == "eaft":
        top = p.detach().sort(dim=-1, descending=True).values[:, :7]
        top = top / top.sum(-1, keepdim=True)
        entropy = -(top * top.log()).sum(-1) / math.log(7)
        return -(entropy**1.5 * own.log()).sum()
    total = -(own.detach() * own.log()).sum()
    if name == "asft":
        q = base.softmax(-1)
        total = total + 0.3 * (q * (q / p).log()).sum()
    return total


def sequences(model: Any, example: EncodedExample) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A document's logits by the model's own code, which of them predict a supervised token, and these tokens."""
    ids = torch.from_numpy(example.input_ids).long()
    mask = torch.from_numpy(example.supervised)[1:]
    return model(input_ids=ids[None], use_cache=False).logits[0], mask, ids[1:][mask]


def examples_of(lengths: Sequence[tuple[int, int]]) -> list[EncodedExample]:
    return [example_of([each], row=row) for row, each in enumerate(lengths)]


EXAMPLES = examples_of([(5, 9), (1, 1), (12, 4), (3, 17)])


@pytest.mark.parametrize("name", LOSSES)
def test_the_formula_is_the_papers(name: str, parts: tuple[Injection, Head]) -> None:
    injection, _ = parts
    loss, model = built(name, injection), injection.model.eval()
    for example in EXAMPLES:
        logits, mask, targets = (each.detach() for each in sequences(model, example))
        with injection.disabled():
            base = sequences(model, example)[0].detach()[:-1][mask].double()
        ours, theirs = (logits.double().requires_grad_() for _ in range(2))
        got, expected = loss.formula([ours], example), paper(name, theirs[:-1][mask], base, targets)
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-9)
        of_ours, of_theirs = torch.autograd.grad(got, ours)[0], torch.autograd.grad(expected, theirs)[0]
        torch.testing.assert_close(of_ours, of_theirs, rtol=1e-6, atol=1e-8)


def step(
    loss: Loss, parts: tuple[Injection, Head], micro_batches: Sequence[Sequence[EncodedExample]], layout: Layout
) -> tuple[float, dict[str, torch.Tensor], dict[str, tuple[float, float]]]:
    """Loss, gradients and metrics of one optimizer step, taken before the update."""
    injection, head = parts
    tensors, taken = injection.tensors(), {}

    def take() -> None:
        for name, tensor in tensors.items():
            taken[name] = torch.zeros_like(tensor) if tensor.grad is None else tensor.grad.clone()

    optimizer = torch.optim.SGD(tensors.values(), lr=0.0)
    given = (injection.model, head, loss, optimizer, list(tensors.values()), micro_batches)
    result = training_step(*given, learning_rate=0.0, max_grad_norm=0.0, check=take, layout=layout)
    return result.loss, taken, result.metrics


@pytest.mark.parametrize("name", LOSSES)
def test_the_hot_path_is_the_formula(name: str, parts: tuple[Injection, Head]) -> None:
    """Values and gradients, against autograd of the model's own outputs in float64; the metrics against their names."""
    injection, _ = parts
    loss, model, tensors = built(name, injection), injection.model.eval(), injection.tensors()
    with fast_path(model, longest=64) as path:
        value, got, metrics = step(loss, parts, [EXAMPLES], path.layout)
    total, nll, tokens = torch.zeros((), dtype=torch.float64), 0.0, 0
    for example in EXAMPLES:
        logits, mask, targets = sequences(model, example)
        total = total + loss.formula([logits.double()], example)
        nll -= float(logits.detach()[:-1][mask].double().log_softmax(-1).gather(1, targets[:, None]).sum())
        tokens += len(targets)
    assert loss.count(EXAMPLES) == tokens
    expected = torch.autograd.grad(total / tokens, list(tensors.values()), allow_unused=True)
    assert value == pytest.approx(float(total.detach()) / tokens, rel=1e-5)
    assert metrics["nll_loss"] == (pytest.approx(nll, rel=1e-5), tokens)
    size = torch.stack([each.norm() for each in expected if each is not None]).norm()
    for (key, _), each in zip(tensors.items(), expected, strict=True):
        if each is not None:
            assert float((got[key] - each).norm()) <= 1e-4 * float(size), key


@pytest.mark.parametrize("name", LOSSES)
def test_any_division_gives_the_same_step(name: str, parts: tuple[Injection, Head]) -> None:
    loss, model = built(name, parts[0]), parts[0].model.eval()
    with fast_path(model, longest=64) as path:
        assert path.layout == PACKED
        whole = step(loss, parts, [EXAMPLES], path.layout)
        others = [
            step(loss, parts, [[example] for example in EXAMPLES], path.layout),
            step(loss, parts, [EXAMPLES[::-1]], path.layout),
        ]
    others += [step(loss, parts, [EXAMPLES], layout) for layout in (SEPARATE, PADDED)]
    size = torch.stack([tensor.norm() for tensor in whole[1].values()]).norm()
    for value, tensors, _ in others:
        assert value == pytest.approx(whole[0], rel=1e-5)
        difference = torch.stack([(tensors[key] - tensor).norm() for key, tensor in whole[1].items()]).norm()
        assert float(difference) <= 1e-4 * float(size)


def test_a_tokens_gradient_in_dft_is_cross_entropys_times_its_probability() -> None:
    log_probs = torch.tensor([-1e-9, -0.3, -2.0, -40.0, -200.0], dtype=torch.float64, requires_grad=True)
    losses = weighed(log_probs)
    (gradient,) = torch.autograd.grad(losses.sum(), log_probs)
    torch.testing.assert_close(gradient, -log_probs.detach().exp(), rtol=1e-12, atol=0)
    torch.testing.assert_close(losses, -log_probs.detach() * log_probs.detach().exp(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("k", [2, 20, 100])
def test_the_entropy_is_1_for_even_tokens_and_0_for_a_certain_one(k: int) -> None:
    logits = torch.zeros(2, 40)
    logits[1] = -math.inf
    logits[1, 3] = 2.0
    torch.testing.assert_close(Eaft(1.0, k).entropy(logits), torch.tensor([1.0, 0.0]))


def test_without_its_weight_each_is_another_loss(parts: tuple[Injection, Head]) -> None:
    """EAFT with exponent 0 is cross entropy; ASFT with weight 0 is DFT."""
    injection, _ = parts
    pairs = [({"type": "eaft", "eaft_alpha": 0.0}, CrossEntropy()), ({"type": "asft", "asft_alpha": 0.0}, None)]
    with fast_path(injection.model.eval(), longest=64) as path:
        for values, other in pairs:
            LOSSES["plain"] = values
            try:
                got = step(built("plain", injection), parts, [EXAMPLES], path.layout)
            finally:
                del LOSSES["plain"]
            expected = step(other or built("dft", injection), parts, [EXAMPLES], path.layout)
            assert got[0] == pytest.approx(expected[0], rel=1e-6)
            for name, tensor in expected[1].items():
                torch.testing.assert_close(got[1][name], tensor, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_a_run_goes_on_from_an_adapter_and_shows_cross_entropy(name: str, tmp_path: Path, model_folder: Path) -> None:
    """From random weights DFT learns next to nothing: the right tokens are as improbable as all others."""
    start = lamina.train(settings(tmp_path, model_folder, "start"))
    assert start.summary is not None and start.summary.eval_loss is not None
    values = settings(tmp_path, model_folder, "run", loss=LOSSES[name])
    values["method"] = {"from": str(start.path), "lora_dropout": 0.0}
    run = lamina.train(values)
    summary = run.summary
    assert summary is not None and summary.eval_metrics is not None and summary.eval_metrics_first is not None
    assert summary.loss_type == name
    assert summary.eval_metrics_first["nll_loss"] == pytest.approx(start.summary.eval_loss, rel=1e-4)
    if name == "eaft":
        assert summary.eval_metrics["nll_loss"] < summary.eval_metrics_first["nll_loss"]
    else:
        assert summary.eval_metrics["probability"] > summary.eval_metrics_first["probability"]
    steps = list(run.events(Step))
    assert all("nll_loss" in each.metrics for each in steps)
    if name == "asft":
        assert summary.eval_metrics_first["kl"] > 0.01, "the anchor is the base, not the start"
    if name == "eaft":
        assert all(0.0 < each.metrics["entropy"] <= 1.0 for each in steps)
    found = lamina.evaluate(run.path)
    assert found.loss == pytest.approx(summary.eval_loss, rel=1e-4)
    assert found.perplexity is None, "its loss is no likelihood"
    assert found.metrics["nll_loss"] == pytest.approx(summary.eval_metrics["nll_loss"], rel=1e-4)


@pytest.mark.parametrize("name", LOSSES)
def test_the_best_evaluation_is_not_the_one_of_the_least_loss(
    name: str, tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """-p log p grows with p while p is small, and EAFT's weights fall as the model grows certain."""
    worst = {"nll_loss": 9.0, "probability": 0.0001, "kl": 0.0, "entropy": 0.1}
    results = [EvaluationResult(3.0, worst)]  # of the base
    results += [
        EvaluationResult(loss, {**worst, "nll_loss": nll, "probability": probability})
        for loss, nll, probability in ((1.0, 8.0, 0.001), (2.0, 6.0, 0.01), (1.5, 7.0, 0.005))
    ]
    monkeypatch.setattr("lamina.training.loop._Loop._evaluate", lambda *_: results.pop(0))
    values = settings(tmp_path, model_folder, "run", loss=LOSSES[name])
    values["train"] = {"max_steps": 3, "eval_steps": 1}
    summary = lamina.train(values).summary
    assert summary is not None and not results
    assert (summary.adapter_step, summary.eval_loss) == (2, 2.0)


@pytest.mark.parametrize(
    ("name", "standing"), [("dft", 0.25), ("asft", 0.25 + LOSSES["asft"].get("asft_alpha", 0.1) * 2.0), ("eaft", 0.5)]
)
def test_standings_are_of_what_is_learned(name: str, standing: float) -> None:
    """A probability that grows from 0.002 to 0.003 is little learned, so what is left of 1 counts."""
    metrics = {"nll_loss": 0.5, "probability": 0.75, "kl": 2.0}
    loss = build_loss(load_config({"model": "m", "data": {"train": "r.jsonl"}, "loss": LOSSES[name]}).loss)
    assert loss.standing(9.0, metrics) == pytest.approx(standing)


def test_asft_with_all_weights_trained_is_anchored_to_the_bases_files(tmp_path: Path, model_folder: Path) -> None:
    values = settings(tmp_path, model_folder, "run", loss={"type": "asft"})
    values["method"] = {"type": "full"}
    summary = lamina.train(values).summary
    assert summary is not None and summary.eval_metrics is not None and summary.eval_metrics_first is not None
    assert summary.eval_metrics_first["kl"] == pytest.approx(0.0, abs=1e-6)
    assert summary.eval_metrics["kl"] > 1e-4


@pytest.mark.parametrize(
    ("name", "key", "fix"), [("eaft", "alpha", "eaft_alpha"), ("eaft", "k", "eaft_k"), ("asft", "alpha", "asft_alpha")]
)
def test_the_papers_names_of_settings_lead_to_the_keys(name: str, key: str, fix: str) -> None:
    with pytest.raises(ConfigError, match=rf"loss.{key}: unknown key; .* Fix: set {fix}$"):
        load_config({"model": "m", "data": {"train": "rows.jsonl"}, "loss": {"type": name, key: 1}})
