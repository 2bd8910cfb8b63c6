"""LoRA's settings against peft's: forward, gradients, ten steps, both directions on disk; and what each promises."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch

import lamina
from lamina.adapters.adapter import check_tensors, read_adapter
from lamina.compute.fusion import fast_path
from lamina.config.methods.lora import LoraConfig
from lamina.data.batch import build_batch
from lamina.errors import AdapterError
from lamina.export.fold import fold_in
from lamina.losses.cross_entropy import cross_entropy
from lamina.methods.lora import METHOD, ShiftedLoraLinear
from lamina.methods.shared.base import inject
from lamina.structure.head import find_head
from tests.support.documents import documents
from tests.support.lora_cases import IDS, attached, bare, disturb, in_peft, logits, on_disk, save, trained_by
from tests.support.models_zoo import build_model

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "gate_proj", "down_proj"]
TRAINED_HEAD = {"modules_to_save": ["lm_head"]}

# Family, and settings that both libraries take.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("llama", {"target_modules": ALL}),
    "ranks": (
        "llama",
        {
            "target_modules": ALL,
            "rank_pattern": {"q_proj": 8, r"layers\.1\.mlp\..*": 2},
            "alpha_pattern": {"layers.0.self_attn.v_proj": 12},
            "use_rslora": True,
        },
    ),
    "layers": ("llama", {"target_modules": ["q_proj", "up_proj"], "layers_to_transform": [1]}),
    "layers_of_h": ("gpt2", {"target_modules": ["c_attn"], "layers_to_transform": 0, "layers_pattern": "h"}),
    "excluded": ("llama", {"target_modules": ["q_proj", "v_proj"], "exclude_modules": ["layers.0.self_attn.q_proj"]}),
    "all_biases": ("gpt2", {"target_modules": ["c_attn"], "bias": "all"}),
    "lora_biases": ("qwen2", {"target_modules": ["q_proj", "o_proj"], "bias": "lora_only"}),
    "head": ("llama", {"target_modules": ["q_proj"], **TRAINED_HEAD}),
    "embedding": ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}),
    "both_ends": ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]}),
    "norms": ("llama", {"target_modules": ["q_proj", "v_proj"], "modules_to_save": ["norm"]}),
    "a_whole_mlp": ("llama", {"target_modules": ["q_proj", "up_proj"], "modules_to_save": ["1.mlp"]}),
    "pissa": ("llama", {"target_modules": ALL, "init_lora_weights": "pissa", "use_rslora": True}),
    "pissa_of_conv1d": ("gpt2", {"target_modules": ["c_attn", "c_proj"], "init_lora_weights": "pissa"}),
    "dora": ("llama", {"target_modules": ALL, "use_dora": True, "use_rslora": True}),
    "dora_of_gemma3": ("gemma3", {"target_modules": ALL, "use_dora": True}),
    "dora_of_conv1d": ("gpt2", {"target_modules": ["c_attn", "c_proj"], "use_dora": True}),
    "olora": ("llama", {"target_modules": ALL, "init_lora_weights": "olora"}),
}


@pytest.fixture(params=CASES, ids=list(CASES))
def case(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    return CASES[request.param]


@torch.no_grad()
def aligned(case: tuple[str, dict[str, Any]]) -> tuple[Any, peft.PeftModel]:
    """Our adapter and peft's, with the same tensors."""
    family, settings = case
    ours, theirs = disturb(attached(family, **settings)), in_peft(family, **settings)
    if str(settings.get("init_lora_weights")) in ("pissa", "olora"):
        _same_start(ours, theirs)
    tensors = trained_by(theirs)
    assert {name: t.shape for name, t in tensors.items()} == {n: t.shape for n, t in ours.tensors().items()}
    for name, tensor in ours.tensors().items():
        tensors[name].copy_(tensor)
    return ours, theirs


def _same_start(ours: Any, theirs: peft.PeftModel) -> None:
    """peft's start, with our signs, is ours: the part taken out of the base is the same."""
    for name, layer in ours.layers.items():
        other = theirs.get_submodule(f"base_model.model.{name}")
        B, A = other.lora_B["default"].weight, other.lora_A["default"].weight
        torch.testing.assert_close(layer.B0 @ layer.A0, B @ A, rtol=1e-4, atol=1e-5)
        assert layer.scaling == pytest.approx(other.scaling["default"])


def test_forward_gradients_and_ten_steps_are_those_of_peft(case: tuple[str, dict[str, Any]]) -> None:
    ours, theirs = aligned(case)
    torch.testing.assert_close(logits(ours.model), logits(theirs), rtol=1e-5, atol=2e-5)
    ours_trained, theirs_trained = ours.tensors(), trained_by(theirs)
    optimizers = [torch.optim.AdamW(t.values(), lr=1e-3) for t in (ours_trained, theirs_trained)]
    for step in range(10):
        for model, optimizer in zip((ours.model, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            model(input_ids=IDS, labels=IDS).loss.backward()
        if step == 0:
            for name, tensor in ours_trained.items():
                scale = float(theirs_trained[name].grad.abs().max())
                torch.testing.assert_close(
                    tensor.grad, theirs_trained[name].grad, rtol=1e-4, atol=1e-5 * scale + 1e-8, msg=name
                )
        for optimizer in optimizers:
            optimizer.step()
    for name, tensor in ours_trained.items():
        mine, other = tensor.detach(), theirs_trained[name].detach()
        if name.endswith("c_attn.base_layer.bias"):
            # A bias of keys moves all of a query's weights alike: its gradient is rounding, which AdamW makes large.
            mine, other = (torch.cat([bias[:48], bias[96:]]) for bias in (mine, other))
        assert (mine - other).norm() < 1e-5 * other.norm(), name


def test_peft_and_lamina_load_what_was_saved(case: tuple[str, dict[str, Any]], tmp_path: Path) -> None:
    family, settings = case
    base = on_disk(family, tmp_path / "base")
    ours = disturb(attached(family, **settings))
    save(ours, base, tmp_path / "adapter")
    expected = logits(ours.model)

    theirs = peft.PeftModel.from_pretrained(bare(family), tmp_path / "adapter")
    torch.testing.assert_close(logits(theirs), expected, rtol=1e-4, atol=1e-4)

    adapter = read_adapter(tmp_path / "adapter")
    assert adapter.config == METHOD.saved(ours).config
    again = inject(base.model, adapter.config, seed=9)
    check_tensors(adapter, again)
    again.load_tensors(adapter.tensors)
    torch.testing.assert_close(logits(again.model), expected, rtol=0, atol=1e-6)


def test_lamina_loads_what_peft_saved(case: tuple[str, dict[str, Any]], tmp_path: Path) -> None:
    family, _ = case
    on_disk(family, tmp_path / "base")
    _, theirs = aligned(case)
    theirs.get_base_model().config._name_or_path = str(tmp_path / "base")
    theirs.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    theirs.save_pretrained(tmp_path / "adapter")
    loaded = lamina.load(tmp_path / "adapter", dtype="float32")
    torch.testing.assert_close(logits(loaded.model), logits(theirs), rtol=1e-4, atol=1e-4)


OURS_ALONE: dict[str, tuple[str, dict[str, Any]]] = {
    "some_layers_of_all": ("llama", {"layers_to_transform": [0]}),
    "all_biases_of_all": ("gpt2", {"bias": "all"}),
    "gaussian": ("llama", {"init_lora_weights": "gaussian"}),
    "orthogonal": ("llama", {"init_lora_weights": "orthogonal"}),
    "pissa_niter": ("gemma3", {"init_lora_weights": "pissa_niter_4", "modules_to_save": ["lm_head"]}),
    "pissa_with_dropout": ("llama", {"init_lora_weights": "pissa", "lora_dropout": 0.5}),
    "lora_fa": ("llama", {"lora_fa": True, "lora_dropout": 0.25}),
}


@pytest.mark.parametrize("case", [*CASES.values(), *OURS_ALONE.values()], ids=[*CASES, *OURS_ALONE])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_begins_as_the_base_and_leaves_it_alone(case: tuple[str, dict[str, Any]], dtype: torch.dtype) -> None:
    family, settings = case
    expected = logits(bare(family).to(dtype))
    ours = attached(family, dtype=dtype, **settings)
    if settings.get("init_lora_weights") != "orthogonal":  # whose product is zero but for rounding
        torch.testing.assert_close(logits(ours.model), expected, rtol=0, atol=0)
    elif dtype == torch.float32:
        torch.testing.assert_close(logits(ours.model), expected, rtol=0, atol=2e-5)
    disturb(ours)
    assert (logits(ours.model) - expected).abs().max() > 0.01
    with ours.disabled():
        torch.testing.assert_close(logits(ours.model), expected, rtol=0, atol=0)


@pytest.mark.parametrize("case", [*CASES.values(), *OURS_ALONE.values()], ids=[*CASES, *OURS_ALONE])
def test_merged_is_the_adapter(case: tuple[str, dict[str, Any]], tmp_path: Path) -> None:
    family, settings = case
    ours = disturb(attached(family, **settings))
    expected = logits(ours.model)
    assert fold_in(ours).modules == len(ours.layers)
    torch.testing.assert_close(logits(ours.model), expected, rtol=1e-4, atol=1e-4)
    ours.model.save_pretrained(tmp_path)
    written = type(ours.model).from_pretrained(tmp_path, dtype=torch.float32)
    torch.testing.assert_close(logits(written), expected, rtol=1e-4, atol=1e-4)


FUSED = ("pissa", "dora", "dora_of_gemma3", "ranks", "lora_fa", "pissa_niter")


@pytest.mark.parametrize("name", [*FUSED, "norms", "lora_biases"])
def test_packed_and_fused_is_one_at_a_time(name: str) -> None:
    family, settings = (CASES | OURS_ALONE)[name]
    settings = settings | {"lora_dropout": 0.0}
    packed, apart = disturb(attached(family, **settings)), disturb(attached(family, **settings))
    packed.model.train()
    apart.model.train()
    head = find_head(packed.model)
    with fast_path(packed.model, kernels="plain") as report:
        assert bool(report.fused) == (name in FUSED)
        ours = cross_entropy(packed.model, head, build_batch(documents()))
        ours.backward()
    losses = []
    for document in documents():
        batch = build_batch([document])
        labels = torch.full_like(batch.input_ids, -100)
        labels[0, batch.predicting + 1] = batch.targets
        losses.append(apart.model(input_ids=batch.input_ids, labels=labels).loss * document.supervised_tokens)
    theirs = torch.stack(losses).sum()
    theirs.backward()
    torch.testing.assert_close(ours.detach(), theirs.detach(), rtol=1e-4, atol=0)
    for (key, tensor), other in zip(packed.tensors().items(), apart.tensors().values(), strict=True):
        scale = float(other.grad.abs().max())
        torch.testing.assert_close(tensor.grad, other.grad, rtol=1e-3, atol=1e-3 * scale, msg=key)


@pytest.mark.parametrize("use_rslora", [False, True])
def test_what_was_shifted_is_saved_as_a_plain_adapter_of_twice_the_rank(use_rslora: bool) -> None:
    settings = {"rank_pattern": {"k_proj": 12}, "alpha_pattern": {"v_proj": 3.0}, "use_rslora": use_rslora}
    ours = disturb(attached("llama", init_lora_weights="pissa", **settings))
    saved = METHOD.saved(ours)
    assert isinstance(saved.config, LoraConfig)
    assert saved.config.r == 8 and saved.config.init_lora_weights is True
    for name, layer in ours.layers.items():
        assert isinstance(layer, ShiftedLoraLinear)
        A = saved.tensors[f"base_model.model.{name}.lora_A.weight"]
        B = saved.tensors[f"base_model.model.{name}.lora_B.weight"]
        assert len(A) == saved.config.rank_of(name) == 2 * len(layer.A0)
        assert saved.config.scaling_of(name) == pytest.approx(layer.scaling, rel=1e-12)
        change = layer.scaling * (layer.lora_B @ layer.lora_A - layer.B0 @ layer.A0)
        torch.testing.assert_close(saved.config.scaling_of(name) * (B @ A), change.detach(), rtol=1e-4, atol=1e-5)


def test_small_changes_of_a_shifted_layer_survive_bfloat16() -> None:
    """Rounding A and A0 each to bfloat16 would lose a change of a thousandth; rounding their difference does not."""
    ours = attached("llama", dtype=torch.bfloat16, init_lora_weights="pissa")
    layer = next(layer for layer in ours.layers.values() if isinstance(layer, ShiftedLoraLinear))
    with torch.no_grad():
        layer.lora_A *= 1.001
    x = torch.randn(3, layer.frozen.in_features, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    A, B = layer.factors()
    rounded = (x.float() @ A.bfloat16().float().T) @ B.bfloat16().float().T
    exact = (x.float() @ layer.A0.T @ layer.B0.T) * 0.001
    assert (rounded - exact).norm() < 0.02 * exact.norm()


def test_beginnings_draw_as_peft_does() -> None:
    from peft.tuners.lora.layer import Linear
    from torch import nn

    from lamina.compute.weights import freeze_linear
    from lamina.methods.shared.lora_init import initial_factors

    for init in (True, "gaussian", "orthogonal", "pissa_niter_3"):
        base = nn.Linear(24, 10)
        frozen = freeze_linear(base)
        assert frozen is not None
        A, B = initial_factors(init, frozen, 6, 1.0, torch.Generator().manual_seed(5))
        theirs = Linear(base, "default", peft.LoraConfig(init_lora_weights=True), r=6, lora_alpha=6)
        torch.manual_seed(5)
        if init == "pissa_niter_3":
            torch.manual_seed(int(torch.randint(2**31, ())))
            theirs.pissa_init("default", init)
        elif init == "orthogonal":
            theirs.orthogonal_init("default")
        else:
            theirs.reset_lora_parameters("default", init)
        torch.testing.assert_close(A, theirs.lora_A["default"].weight.detach())
        torch.testing.assert_close(B, theirs.lora_B["default"].weight.detach())
        if init == "orthogonal":
            assert B.abs().max() > 0.01 and (B @ A).abs().max() < 1e-6


def test_false_begins_away_from_the_base() -> None:
    ours = attached("llama", init_lora_weights=False)
    assert (logits(ours.model) - logits(bare("llama"))).abs().max() > 0.01


def test_pissa_niter_draws_its_own_numbers() -> None:
    model = bare("llama")
    state = torch.get_rng_state()
    inject(model, LoraConfig(r=4, init_lora_weights="pissa_niter_2"), seed=0)
    assert torch.equal(torch.get_rng_state(), state)


def test_lora_fa_trains_b_alone_and_keeps_no_input() -> None:
    ours = attached("llama", lora_fa=True)
    assert all(name.endswith("lora_B.weight") for name in ours.tensors())
    assert {name.replace("lora_A", "lora_B") for name in ours.saved_tensors()} == set(ours.tensors())
    before = {name: tensor.clone() for name, tensor in ours.saved_tensors().items()}
    disturb(ours)
    optimizer = torch.optim.AdamW(ours.tensors().values(), lr=1e-2)
    ours.model(input_ids=IDS, labels=IDS).loss.backward()
    optimizer.step()
    for name, tensor in ours.saved_tensors().items():
        assert torch.equal(tensor, before[name]) == ("lora_A" in name)
    layer = next(iter(ours.layers.values()))
    x = torch.randn(5, 48, requires_grad=True)
    kept: list[torch.Size] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        layer(x)
    assert torch.Size([5, 4]) in kept and torch.Size([5, 48]) not in kept


def test_an_unknown_beginning_of_peft_is_refused() -> None:
    fields = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}
    for init in ("pissa_niter_4", "corda", "loftq"):
        with pytest.raises(AdapterError, match=f"init_lora_weights='{init}'"):
            METHOD.from_peft({**fields, "init_lora_weights": init})
    with pytest.raises(AdapterError, match="configuration: layers_to_transform"):
        METHOD.from_peft({**fields, "layers_to_transform": [-1]})


def test_doras_layer_with_a_row_of_zeros_is_the_base() -> None:
    """A pruned output has no direction, and its magnitude stays zero."""
    model = build_model("llama")
    projection = model.get_submodule("model.layers.0.self_attn.q_proj")
    with torch.no_grad():
        projection.weight[3] = 0.0
    ids = torch.arange(3, 13)[None]
    base = model(input_ids=ids).logits.detach()
    injection = inject(model, LoraConfig(r=4, use_dora=True), seed=0)
    logits = model(input_ids=ids).logits
    torch.testing.assert_close(logits.detach(), base)
    logits.sum().backward()
    for name, tensor in injection.tensors().items():
        assert tensor.grad is not None and bool(torch.isfinite(tensor.grad).all()), name
