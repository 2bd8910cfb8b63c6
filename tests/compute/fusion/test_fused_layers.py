"""Fused layers against the unfused ones, which `tests/compute/test_families.py` holds against transformers and peft."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from lamina.compute.fusion import FusionReport, Recompute, fast_path, fused_layers
from lamina.compute.fusion import layer as fused_layer
from lamina.compute.kernels import native
from lamina.compute.ops.attention import packed_attention
from lamina.compute.ops.linear_group import LinearGroup
from lamina.compute.ops.row_forms import LowRank
from lamina.data.batch import build_batch
from lamina.losses.cross_entropy import cross_entropy
from lamina.methods.shared.base import Injection
from lamina.structure.head import find_head
from tests.support.hot_path import FUSED, documents, loss_and_gradients, unfused, with_adapter
from tests.support.models_zoo import build_model

# Attention's kernel takes heads of 32 and leaves those of 8 to plain torch.
HEAD_SIZES = (8, 32)
NOT_FUSED = ("gpt2", "phi")


def both_ways(injection: Injection) -> tuple[FusionReport, float]:
    """The report, and the largest relative error of a gradient."""
    with unfused(injection.model):
        loss, grads = loss_and_gradients(injection)
    with fast_path(injection.model) as report:
        fused_loss, fused_grads = loss_and_gradients(injection)
    bfloat16 = injection.model.dtype == torch.bfloat16
    assert fused_loss == pytest.approx(loss, rel=1e-2 if bfloat16 else 1e-5)
    assert fused_grads.keys() == grads.keys()
    errors = [float((fused_grads[n] - grads[n]).norm() / grads[n].norm().clamp_min(1e-12)) for n in grads]
    return report, max(errors)


@pytest.mark.usefixtures("members")
@pytest.mark.parametrize("head_size", HEAD_SIZES)
@pytest.mark.parametrize("family", FUSED)
def test_loss_and_gradients_in_float32(family: str, head_size: int) -> None:
    report, error = both_ways(with_adapter(family, model=build_model(family, head_dim=head_size)))
    assert report.fused == report.layers == 2
    assert report.notes == []
    assert error < 1e-4


@pytest.mark.usefixtures("members")
@pytest.mark.parametrize("head_size", HEAD_SIZES)
@pytest.mark.parametrize("family", FUSED)
def test_loss_and_gradients_in_bfloat16(family: str, head_size: int) -> None:
    """All tensors together must agree much better than the worst one, whose gradient may be mostly rounding."""
    injection = with_adapter(family, model=build_model(family, torch.bfloat16, head_dim=head_size))
    with unfused(injection.model):
        _, grads = loss_and_gradients(injection)
    with fast_path(injection.model) as report:
        _, fused = loss_and_gradients(injection)
    assert report.fused == 2
    distance = sum(float((fused[n] - grads[n]).square().sum()) for n in grads) ** 0.5
    assert distance / sum(float(g.square().sum()) for g in grads.values()) ** 0.5 < 0.03


@pytest.fixture
def kernel_calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Grows by one with each backward of attention that goes through the kernel."""
    if native.unavailable() is not None:
        pytest.skip("no compiler")
    calls: list[Any] = []
    original = native.attention_backward

    def counted(*given: Any) -> None:
        calls.append(given)
        original(*given)

    monkeypatch.setattr(native, "attention_backward", counted)
    return calls


@pytest.mark.parametrize("family", FUSED)
def test_every_layer_attends_through_the_kernel(family: str, kernel_calls: list[Any]) -> None:
    """However its queries, keys and values come to lie: plain torch instead would be right, and slow in silence."""
    injection = with_adapter(family, model=build_model(family, torch.bfloat16, head_dim=32))
    with fast_path(injection.model) as report:
        kernel_calls.clear()  # those of the comparison with the model's own numbers
        loss_and_gradients(injection)
    assert len(kernel_calls) == report.fused == 2


@pytest.mark.parametrize("family", [*FUSED, *NOT_FUSED])
def test_layers_that_are_not_fused_attend_through_it_too(family: str, kernel_calls: list[Any]) -> None:
    wide = {"n_embd": 192} if family == "gpt2" else {"hidden_size": 192, "head_dim": 32}
    injection = with_adapter(family, model=build_model(family, torch.bfloat16, **wide))
    with packed_attention(injection.model):
        loss_and_gradients(injection)
    assert len(kernel_calls) == 2


def test_layers_are_counted_once_however_many_reasons_there_are() -> None:
    (note,) = FusionReport(1, 3, ["it has one thing", "it has another"]).notes
    assert note.startswith("2 of 3 decoder layers") and note.endswith("it has one thing; others: it has another.")


@pytest.mark.parametrize("family", NOT_FUSED)
def test_other_layers_are_left_alone_and_named(family: str) -> None:
    report, error = both_ways(with_adapter(family))
    assert report.fused == 0
    assert len(report.notes) == 1
    assert "which is slower" in report.notes[0]
    assert error < 1e-5


@pytest.mark.parametrize("backend", ["plain", "compiled"])
def test_other_kernels_give_the_same(backend: str) -> None:
    injection = with_adapter("gemma3" if backend == "plain" else "llama")
    with fast_path(injection.model) as report:
        loss, grads = loss_and_gradients(injection)
    with fast_path(injection.model, kernels=backend):
        other_loss, other = loss_and_gradients(injection)
    assert report.fused == 2
    assert other_loss == pytest.approx(loss, rel=1e-5)
    assert max(float((other[n] - grads[n]).norm() / grads[n].norm()) for n in grads) < 1e-4


@pytest.mark.usefixtures("members")
@pytest.mark.parametrize("recompute", [True, "selective"])
@pytest.mark.parametrize("settings", [{}, {"lora_dropout": 0.3}, {"use_dora": True}, {"bias": "all"}], ids=str)
@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_recomputed_is_bitwise_the_same(family: str, settings: dict[str, Any], recompute: Recompute) -> None:
    injection = with_adapter(family, torch.bfloat16, **settings)
    injection.model.train()
    with fast_path(injection.model):
        loss, grads = loss_and_gradients(injection)
        following = torch.rand(1)
    with fast_path(injection.model, recompute) as report:
        again, recomputed = loss_and_gradients(injection)
    assert report.fused == 2
    assert report.recompute == recompute
    assert torch.equal(following, torch.rand(1))
    assert loss == again
    assert all(torch.equal(grads[name], recomputed[name]) for name in grads)


@pytest.mark.parametrize("recompute", [False, "selective", True])
def test_recomputing_lets_go(recompute: Recompute, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of gate and up alone, or of all that is large."""
    computations: list[Any] = []
    forward = fused_layer._Computation.forward

    def recorded(self: Any, x: torch.Tensor) -> torch.Tensor:
        computations.append(self)
        return forward(self, x)

    monkeypatch.setattr(fused_layer._Computation, "forward", recorded)
    injection = with_adapter("llama")
    injection.model.train()
    with fast_path(injection.model, recompute):
        computations.clear()  # those of trying whether the fused layers are right
        cross_entropy(injection.model, find_head(injection.model), build_batch(documents()))
    assert len(computations) == 2
    for computation in computations:
        assert (computation.gate is None) == bool(recompute)
        assert (computation.heads is None) == (computation.middle is None) == (recompute is True)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_recomputing_asks_for_no_gradient_below_the_lowest_adapter(family: str) -> None:
    injection = with_adapter(family, layers_to_transform=[1])
    injection.model.train()
    asked: list[bool] = []
    layers = injection.model.get_decoder()
    lowest = (layers.layers if family == "llama" else layers.h)[0]
    lowest.register_forward_hook(lambda module, inputs, output: asked.append(output[0].requires_grad))
    with fast_path(injection.model, recompute=True):
        asked.clear()  # what the comparison with the model's own numbers asked for
        loss, grads = loss_and_gradients(injection)
    assert asked
    assert not any(asked)
    assert grads.keys() == injection.tensors().keys()
    with fast_path(injection.model):
        assert loss_and_gradients(injection)[0] == loss


def test_dropout_is_that_of_the_formula(members: str) -> None:
    """A group with dropout, its masks known, against plain autograd."""
    torch.manual_seed(0)
    linears = [nn.Linear(10, 6), nn.Linear(10, 4)]
    for linear in linears:
        linear.requires_grad_(False)
    weights = [linear.weight.clone() for linear in linears]
    paths = [
        LowRank(nn.Parameter(torch.randn(rank, 10)), nn.Parameter(torch.randn(out, rank)), 0.7, p)
        for out, rank, p in ((6, 5, 0.4), (4, 3, 0.0))
    ]
    group = LinearGroup(linears, [5, 3])
    assert group.extra_width == (8 if members == "shared" else 5)
    group.refresh(paths)
    x = torch.randn(9, 10, requires_grad=True)
    x_ext = torch.full((9, 10 + group.extra_width), float("nan"))
    x_ext[:, :10] = x.detach()
    y, state = group.forward(x_ext, paths)
    assert state.dropouts[1] is None
    dropout = state.dropouts[0]
    assert dropout is not None
    kept = dropout.apply(torch.ones(9, 10))
    assert kept.unique().tolist() == [0.0, pytest.approx(1 / 0.6, rel=1e-4)]
    dropped = (x * kept, x)
    expected = torch.cat(
        [
            x @ w.T + linear.bias + d.scaling * (xi @ d.A.T) @ d.B.T
            for w, linear, d, xi in zip(weights, linears, paths, dropped, strict=True)
        ],
        1,
    )
    torch.testing.assert_close(y, expected)
    grad = torch.randn_like(y)
    wanted = torch.autograd.grad(expected, [x, *(t for d in paths for t in (d.A, d.B))], grad)
    dx, gh = group.backward_input(grad, state, paths)
    got = [dx, *group.backward_paths(grad, gh, x.detach(), state.h, state, paths)]
    for ours, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(ours, theirs)
    group.release()
    assert all(
        torch.equal(linear.weight, w) and linear.weight.is_contiguous()
        for linear, w in zip(linears, weights, strict=True)
    )


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], ["down_proj"], r".*\.1\..*(up_proj|o_proj)"])
def test_adapters_on_some_modules(targets: list[str] | str) -> None:
    report, error = both_ways(with_adapter("llama", target_modules=targets))
    assert report.fused == 2
    assert error < 1e-4


def test_nothing_is_done_below_the_lowest_adapter(monkeypatch: pytest.MonkeyPatch) -> None:
    injection = with_adapter("llama", target_modules=r".*\.1\..*(up_proj|o_proj)")
    backwards = []
    real = fused_layer._Computation.backward

    def counted(self, grad: torch.Tensor, wants_dx: bool):
        backwards.append(wants_dx)
        return real(self, grad, wants_dx)

    monkeypatch.setattr(fused_layer._Computation, "backward", counted)
    with fast_path(injection.model):
        backwards.clear()  # those of the comparison with the model's own numbers
        loss_and_gradients(injection)
    assert backwards == [False]


def test_biases_of_the_base() -> None:
    model = build_model("llama", attention_bias=True, mlp_bias=True)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_()
    report, error = both_ways(with_adapter("llama", model=model))
    assert report.fused == 2
    assert error < 1e-4


def test_an_adapter_that_is_switched_off_is_the_bare_base() -> None:
    bare = build_model("llama")
    injection = with_adapter("llama")
    batch = build_batch(documents())
    with fast_path(injection.model), injection.disabled(), torch.no_grad():
        off = cross_entropy(injection.model, find_head(injection.model), batch)
    with fast_path(bare), torch.no_grad():
        expected = cross_entropy(bare, find_head(bare), batch)
    assert float(off) == pytest.approx(float(expected), rel=1e-6)


def test_tied_embeddings_and_an_adapter_on_the_head() -> None:
    model = build_model("llama", tie_word_embeddings=True)
    targets = ["q_proj", "down_proj", "lm_head"]
    report, error = both_ways(with_adapter("llama", model=model, target_modules=targets))
    assert report.fused == 2
    assert error < 1e-4


def test_the_model_is_as_before_afterwards() -> None:
    injection = with_adapter("qwen3")
    model = injection.model
    before = {name: (value.clone(), value.stride()) for name, value in model.state_dict().items()}
    with fused_layers(model) as report:
        assert report.fused == 2
    assert all("forward" not in layer.__dict__ for layer in model.model.layers)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name][0]), name
        assert value.stride() == before[name][1], name


def _train_a_norm(model: PreTrainedModel) -> None:
    model.model.layers[1].input_layernorm.weight.requires_grad_(True)


def _hook(model: PreTrainedModel) -> None:
    model.model.layers[1].mlp.register_forward_hook(lambda module, inputs, output: output)


def _share(model: PreTrainedModel) -> None:
    mlp = model.model.layers[1].mlp
    mlp.up_proj.weight = mlp.gate_proj.weight


def _other_activation(model: PreTrainedModel) -> None:
    model.model.layers[1].mlp.act_fn = nn.ReLU()


def _other_forward(model: PreTrainedModel) -> None:
    """Parts as usual, but the layer does something else with them."""
    layer = model.model.layers[1]
    real = type(layer).forward

    class Scaled(type(layer)):
        def forward(self, hidden_states: torch.Tensor, *args, **kwargs) -> torch.Tensor:
            return hidden_states + 0.9 * (real(self, hidden_states, *args, **kwargs) - hidden_states)

    layer.__class__ = Scaled


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_train_a_norm, "input_layernorm.weight is trained"),
        (_hook, "a hook is registered"),
        (_share, "share a weight"),
        (_other_activation, "ReLU"),
        (_other_forward, "gives other numbers"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_is_not_understood_is_not_fused(change: Callable[[PreTrainedModel], None], reason: str) -> None:
    model = build_model("llama")
    model.requires_grad_(False)
    change(model)
    with packed_attention(model), fused_layers(model) as report:
        assert (report.fused, report.layers) == (1, 2)
        assert reason in report.reasons[0]


def test_layers_as_wide_as_real_ones_are_told_apart() -> None:
    """Sums of thousands round further in float32 than those of small layers, above all without AVX512."""
    sizes = {"hidden_size": 2048, "intermediate_size": 5632, "num_attention_heads": 32, "num_key_value_heads": 4}
    model = build_model("llama", **sizes, head_dim=64, vocab_size=64)
    model.requires_grad_(False)
    with packed_attention(model), fused_layers(model) as report:
        assert (report.fused, report.layers) == (2, 2), report.reasons
    _other_forward(model)
    with packed_attention(model), fused_layers(model) as report:
        assert (report.fused, report.layers) == (1, 2)


def test_hooks_of_a_layer_itself_run_around_the_fused_one() -> None:
    model = build_model("llama")
    model.requires_grad_(False)
    ids, called = torch.tensor([[5, 6, 7, 8]]), []
    for layer in model.model.layers:
        layer.register_forward_pre_hook(lambda module, args: called.append("before"))
        layer.register_forward_hook(lambda module, args, output: called.append("after"))
    expected = model(input_ids=ids).logits
    with packed_attention(model), fused_layers(model) as report:
        assert report.fused == 2
        called.clear()
        found = model(input_ids=ids, document_lengths=[4], use_cache=False).logits
    assert called == ["before", "after"] * 2
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_attention_dropout_is_left_to_transformers_while_training() -> None:
    model = build_model("llama", attention_dropout=0.1)
    model.requires_grad_(False)
    with packed_attention(model.train()), fused_layers(model) as report:
        assert report.fused == 0
        assert "attention has dropout" in report.reasons[0]
    with packed_attention(model.eval()), fused_layers(model) as report:
        assert report.fused == 2


def test_generation_with_a_cache_goes_past_the_fused_layers() -> None:
    model = build_model("llama")
    model.requires_grad_(False)
    ids = torch.tensor([[5, 6, 7]])
    expected = model.generate(ids, max_new_tokens=5, do_sample=False)
    with fused_layers(model):
        assert torch.equal(model.generate(ids, max_new_tokens=5, do_sample=False), expected)
