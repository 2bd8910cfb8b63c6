"""LoRA on a mixture's experts and router: what is reached, peft and plain autograd as oracles, files both ways."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import save_file
from torch.func import functional_call
from transformers import PreTrainedModel

from lamina.adapters.adapter import read_adapter
from lamina.adapters.fit import fit
from lamina.adapters.hf_peft import peft_content, write_peft
from lamina.compute.fusion import fast_path
from lamina.compute.ops.dropout import draw_dropout
from lamina.compute.ops.expert_linear import ExpertFactors, expert_linear
from lamina.compute.weights.experts import DenseExperts
from lamina.config.methods.lora import LoraConfig
from lamina.errors import ConfigError
from lamina.export.fold import fold_in
from lamina.methods.shared.base import Injection, find_method, inject
from lamina.methods.shared.coverage import find_coverage
from lamina.methods.shared.lora_parameters import LoraParameters
from tests.support.architectures import build_architecture
from tests.support.peft_oracle import disturb

IDS = torch.arange(3, 40)[None]

# Families whose experts peft's all-linear reaches, and others with the names of their experts' weights.
REACHED = ["mixtral", "qwen3_moe", "olmoe", "deepseek_v2", "deepseek_v3"]
NAMED = {
    "gpt_oss": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj", "router.weight"],
    "llama4_text": ["feed_forward.experts.gate_up_proj", "feed_forward.experts.down_proj"],
    "qwen2_moe": ["experts.gate_up_proj", "experts.down_proj", "mlp.gate.weight"],
    "jetmoe": ["mlp.input_linear.weight", "mlp.output_linear.weight"],
}
FAMILIES = [*REACHED, *NAMED]


def fields_of(architecture: str) -> dict[str, Any]:
    if architecture in REACHED:
        return {"target_modules": "all-linear"}
    return {"target_modules": ["q_proj"] if architecture != "jetmoe" else [], "target_parameters": NAMED[architecture]}


def attached(architecture: str, dtype: torch.dtype = torch.float32, **fields: Any) -> Injection:
    """An adapter that does something, in evaluation mode."""
    model = build_architecture(architecture).to(dtype)
    if dtype == torch.float64 and model.config._experts_implementation == "grouped_mm":
        model.set_experts_implementation("eager")  # the other has no float64
    injection = inject(model, LoraConfig(r=4, lora_alpha=8, **(fields or fields_of(architecture))), seed=0)
    injection.model.to(dtype).eval()
    disturb(injection.tensors())
    return injection


def logits(model: Any) -> torch.Tensor:
    return model(input_ids=IDS, use_cache=False).logits


def save(injection: Injection, folder: Path) -> dict[str, Any]:
    """The adapter as it is saved; returns its adapter_config.json."""
    folder.mkdir()
    saved = find_method("lora").saved(injection)
    content = peft_content(injection, saved.config, "base")
    write_peft(folder, content, saved.tensors)
    return content


def close(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float = 2e-5) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance * float(theirs.detach().abs().max()))


@pytest.mark.parametrize("architecture", FAMILIES)
def test_names_logits_and_gradients_are_pefts(architecture: str) -> None:
    injection = attached(architecture)
    theirs = peft.get_peft_model(
        build_architecture(architecture), peft.LoraConfig(r=4, lora_alpha=8, **fields_of(architecture))
    )
    trained = {name.replace(".default", ""): p for name, p in theirs.named_parameters() if p.requires_grad}
    ours = injection.tensors()
    assert trained.keys() <= ours.keys()
    # peft takes the layers of shared experts for those of experts; nothing else is in lamina's alone.
    assert all(re.search(r"mlp\.(shared_experts?\.)?(gate|up|down)_proj\.lora", name) for name in ours.keys() - trained)
    with torch.no_grad():
        for name, tensor in ours.items():
            if name in trained:
                trained[name].copy_(tensor)
            else:
                tensor.zero_()
    found, expected = logits(injection.model), logits(theirs)
    close(found, expected)
    weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(4))
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    for name, tensor in trained.items():
        assert tensor.grad is not None and ours[name].grad is not None
        close(ours[name].grad, tensor.grad, 1e-4)


@pytest.mark.parametrize("architecture", ["mixtral", "gpt_oss", "llama4_text", "jetmoe"])
def test_float64_gradients_are_those_of_the_plain_sum(architecture: str) -> None:
    injection = attached(architecture, torch.float64)
    bare = attached(architecture, torch.float64)
    model = bare.model
    with torch.no_grad():  # the other linear layers' paths stay zero
        for each in (injection, bare):
            for name, tensor in each.tensors().items():
                if "experts" not in name and "_linear" not in name:
                    tensor.zero_()
    deltas: dict[str, torch.Tensor] = {}
    for name, layer in bare.layers.items():
        if isinstance(layer, LoraParameters):
            stored = dict(layer.base.named_parameters(recurse=False))
            for key in layer.layers_of_parameters():
                deltas[f"{name}.base.{key}"] = stored[key] + layer.delta(key)
            layer.enabled = False
            layer._experts = None  # the family's own code
    found = logits(injection.model)
    expected = functional_call(model, deltas, (), {"input_ids": IDS, "use_cache": False}).logits
    close(found, expected, 1e-10)
    (found**2).sum().backward()
    (expected**2).sum().backward()
    for name, tensor in injection.tensors().items():
        if "experts" in name or "_linear" in name:
            close(tensor.grad, bare.tensors()[name].grad, 1e-9)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("architecture", FAMILIES)
def test_what_is_saved_loads_in_peft_and_here(architecture: str, tmp_path: Path) -> None:
    injection = attached(architecture)
    expected = logits(injection.model)
    content = save(injection, tmp_path / "adapter")
    assert content["lora_dropout"] == 0.0 and content["target_parameters"]
    theirs = peft.PeftModel.from_pretrained(build_architecture(architecture), tmp_path / "adapter")
    close(logits(theirs), expected)
    fitted = fit(read_adapter(tmp_path / "adapter"), build_architecture(architecture))
    assert fitted.injection.config.type == "lora" and not fitted.notes
    close(logits(fitted.injection.model.eval()), expected)


@pytest.mark.parametrize("architecture", ["mixtral", "gpt_oss", "llama4_text"])
def test_what_peft_saved_loads_here(architecture: str, tmp_path: Path) -> None:
    theirs = peft.get_peft_model(
        build_architecture(architecture),
        peft.LoraConfig(task_type="CAUSAL_LM", r=4, init_lora_weights=False, **fields_of(architecture)),
    ).eval()
    theirs.save_pretrained(tmp_path)
    fitted = fit(read_adapter(tmp_path), build_architecture(architecture))
    assert fitted.injection.config.type == "lora"
    close(logits(fitted.injection.model.eval()), logits(theirs))


def _earlier(architecture: str, folder: Path) -> PreTrainedModel:
    """Saves an adapter with a layer for each expert, as peft did on transformers 4; returns the merged model."""
    model: Any = build_architecture(architecture)
    generator, tensors = torch.Generator().manual_seed(0), dict[str, torch.Tensor]()

    def added(name: str, weight: torch.Tensor) -> torch.Tensor:
        A = 0.2 * torch.randn(4, weight.shape[1], generator=generator)
        B = 0.2 * torch.randn(weight.shape[0], 4, generator=generator)
        tensors[f"base_model.model.{name}.lora_A.weight"] = A
        tensors[f"base_model.model.{name}.lora_B.weight"] = B
        return 2.0 * (B @ A)

    mixtral = architecture == "mixtral"
    gate, up, down = ("w1", "w3", "w2") if mixtral else ("gate_proj", "up_proj", "down_proj")
    with torch.no_grad():
        for number, layer in enumerate(model.model.layers):
            block = f"model.layers.{number}.{'block_sparse_moe' if mixtral else 'mlp'}"
            dense = getattr(layer.mlp, "shared_experts", None) if hasattr(layer.mlp, "experts") else layer.mlp
            if dense is not None:
                inner = f"{block}.shared_experts" if hasattr(layer.mlp, "experts") else block
                for name in (gate, up, down):
                    weight = getattr(dense, name).weight
                    weight += added(f"{inner}.{name}", weight)
            if not hasattr(layer.mlp, "experts"):
                continue
            experts = layer.mlp.experts
            width = experts.down_proj.shape[2]
            for expert in range(len(experts.down_proj)):
                parts = {gate: experts.gate_up_proj[expert, :width], up: experts.gate_up_proj[expert, width:]}
                for name, weight in {**parts, down: experts.down_proj[expert]}.items():
                    weight += added(f"{block}.experts.{expert}.{name}", weight)
            layer.mlp.gate.weight += added(f"{block}.gate", layer.mlp.gate.weight)
    save_file(tensors, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8, "lora_dropout": 0.05}
    content = {**settings, "target_modules": [gate, up, down, "gate"], "base_model_name_or_path": "base"}
    (folder / "adapter_config.json").write_text(json.dumps(content))
    return model


@pytest.mark.parametrize("architecture", ["mixtral", "qwen3_moe", "deepseek_v3"])
def test_adapters_with_a_layer_for_each_expert_load(architecture: str, tmp_path: Path) -> None:
    expected = logits(_earlier(architecture, tmp_path))
    fitted = fit(read_adapter(tmp_path), build_architecture(architecture))
    close(logits(fitted.injection.model.eval()), expected)


@pytest.mark.parametrize("architecture", FAMILIES)
def test_merging_is_the_forward(architecture: str) -> None:
    injection = attached(architecture)
    expected = logits(injection.model)
    with injection.disabled():
        close(logits(injection.model), logits(build_architecture(architecture)))
    folds = fold_in(injection)
    assert folds.kept == pytest.approx(1.0, abs=1e-4)
    close(logits(injection.model), expected)


def test_frozen_experts_take_the_fast_way_and_trained_ones_their_own() -> None:
    injection = attached("qwen3_moe", target_modules=["q_proj"])
    expected = logits(injection.model)
    experts = injection.model.get_submodule("model.layers.0.mlp.experts")
    with fast_path(injection.model) as report:
        assert report.in_parts == 2 and "forward" in vars(experts)
        position_ids = torch.arange(IDS.shape[1])[None]
        given = {"position_ids": position_ids, "document_lengths": [IDS.shape[1]], "use_cache": False}
        close(injection.model(input_ids=IDS, **given).logits, expected)
        experts.requires_grad_(True)
        injection.model(input_ids=IDS, **given).logits.sum().backward()
        assert experts.down_proj.grad is not None
    assert "forward" not in vars(experts)


def test_dropout_is_the_same_in_the_backward() -> None:
    generator = torch.Generator().manual_seed(0)
    W, counts = torch.randn(3, 6, 8, generator=generator), [5, 0, 4]
    x, L, R = (torch.randn(shape, generator=generator) for shape in ((9, 8), (3, 6, 2), (3, 2, 8)))
    x, L, R = (tensor.requires_grad_() for tensor in (x, L, R))
    torch.manual_seed(7)
    y = expert_linear(x, DenseExperts(W, False), counts, None, ExpertFactors(L, R, 0.5, 0.4))
    g = torch.randn(y.shape, generator=generator)
    found = torch.autograd.grad(y, (x, L, R), g)
    torch.manual_seed(7)
    dropped = draw_dropout(x.detach(), 0.4)
    mask = dropped.apply(torch.ones_like(x))
    expert = torch.repeat_interleave(torch.arange(3), torch.tensor(counts))
    low = torch.einsum("sor,sri,si->so", L[expert], R[expert], x * mask)
    expected = torch.einsum("soi,si->so", W[expert], x) + 0.5 * low
    close(y, expected)
    for ours, theirs in zip(found, torch.autograd.grad(expected, (x, L, R), g), strict=True):
        close(ours, theirs)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"target_modules": ["w1", "q_proj"]}, "selects w1, which is one parameter with w3"),
    ({"target_modules": ["w2"], "use_dora": True}, "DoRA does not work on .*experts.*use `type: lora`"),
    ({"target_modules": ["w2"], "init_lora_weights": "pissa"}, "pissa does not work on .*use true, gaussian or false"),
    ({"target_parameters": ["experts.up_proj"]}, "'experts.up_proj' matches no weight with rows and columns"),
    ({"target_parameters": ["input_layernorm.weight"]}, "matches no weight with rows and columns"),
]


@pytest.mark.parametrize(("fields", "reason"), REFUSED)
def test_what_does_not_work_says_what_does(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        inject(build_architecture("mixtral"), LoraConfig(**fields), seed=0)


def test_layers_do_not_apply_to_parameters() -> None:
    config = LoraConfig(r=4, layers_to_transform=[0], target_parameters=["experts.down_proj"])
    with pytest.raises(ConfigError, match=r"does not apply to target_parameters.*layers\.0\.mlp\.experts\.down_proj"):
        find_method("lora").prepare(inject(build_architecture("mixtral"), config, seed=0), [])


def test_dora_on_all_linear_leaves_experts_out_and_says_so() -> None:
    injection = inject(build_architecture("mixtral"), LoraConfig(r=4, use_dora=True), seed=0)
    assert not any("experts" in name for name in injection.layers)
    (note,) = [note for note in find_coverage(injection).notes() if "stacked" in note]
    assert "type: lora" in note and "mlp.experts.gate_up_proj" in note


def test_patterns_exclusions_and_ranks_reach_experts() -> None:
    only_first = attached("mixtral", target_modules=r".*layers\.0\.mlp\.experts\.\w+\.?w?[123]?")
    assert list(only_first.layers) == ["model.layers.0.mlp.experts"]
    without = attached("mixtral", target_modules="all-linear", exclude_modules=["experts"])
    assert [name for name in without.layers if "mlp" in name] == [f"model.layers.{i}.mlp.gate" for i in (0, 1)]
    ranked = attached("mixtral", target_modules=["w1", "w2", "w3"], rank_pattern={"layers.0.mlp.experts.down_proj": 2})
    ranks = {name: tuple(tensor.shape) for name, tensor in ranked.tensors().items() if "lora_A" in name}
    assert ranks["base_model.model.model.layers.0.mlp.experts.lora_A.weight"] == (4 * 2, 96)
    assert ranks["base_model.model.model.layers.1.mlp.experts.lora_A.weight"] == (4 * 4, 96)
    assert ranks["base_model.model.model.layers.0.mlp.experts.base_layer.lora_A.weight"] == (4 * 8, 64)
    one = attached("mixtral", target_modules=[], target_parameters=["experts.down_proj"])
    coverage = find_coverage(one)
    assert list(coverage.stacked) == [f"model.layers.{i}.mlp.experts.gate_up_proj" for i in (0, 1)]
    assert coverage.adapted == 2 * 4 * 64 * 96
