"""What `all-linear` and the methods' defaults leave out is named, the adapter is found again, and ways out work."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import yaml
from torch import nn
from transformers import PreTrainedModel
from transformers.models.auto import AutoModelForCausalLM

import lamina
from lamina.compute.ops.adapter import AdapterLinear
from lamina.compute.weights import freeze_linear
from lamina.config import METHOD_CONFIGS, MethodConfig
from lamina.errors import ConfigError
from lamina.methods.shared.base import Injection, find_method, inject
from lamina.methods.shared.coverage import check_reach, find_coverage
from lamina.methods.shared.targets import find_targets, width
from lamina.models.experts import old_names
from lamina.runs.events import Note
from lamina.structure.reach import modules_out_of_reach
from tests.support.architectures import MIXTURES, build_architecture, build_vision_language
from tests.support.models_zoo import build_tokenizer
from tests.support.training import write_rows

# Architectures with linear layers narrower than any usual rank, and their ends.
NARROW = {
    "qwen2_moe": {"mlp.shared_expert_gate"},
    "qwen3_next": {"mlp.shared_expert_gate", "linear_attn.in_proj_ba"},
    "gemma3n_text": {
        "altup.correction_coefs",  # which does not run in training either
        "altup.modality_router",
        "altup.prediction_coefs",
        "laurel.linear_left",
        "laurel.linear_right",
    },
    "jetmoe": {"mlp.router.layer", "self_attention.experts.router.layer"},
    "doge": {"self_attn.dt_proj"},
}

# Methods whose layers have a rank that must fit, with a rank of 12.
RANKED: dict[str, dict[str, Any]] = {
    "lora": {"type": "lora", "r": 12},
    "lora, rsLoRA, FA": {"type": "lora", "r": 12, "use_rslora": True, "lora_fa": True},
    "pissa": {"type": "lora", "r": 12, "init_lora_weights": "pissa"},
    "olora": {"type": "lora", "r": 12, "init_lora_weights": "olora"},
    "eva": {"type": "lora", "r": 12, "init_lora_weights": "eva"},
    "dora": {"type": "dora", "r": 12},
    "adalora": {"type": "adalora", "init_r": 12, "target_r": 6, "tinit": 0, "tfinal": 0},
    "loha": {"type": "loha", "r": 12},
}


def method(settings: dict[str, Any]) -> MethodConfig:
    return METHOD_CONFIGS[settings["type"]].model_validate(settings)


def ends(names: list[str]) -> set[str]:
    return {re.sub(r"^.*\.\d+\.", "", name) for name in names}


def on_disk(model: PreTrainedModel, folder: Path) -> Path:
    for name, parameter in model.named_parameters():
        if parameter.ndim >= 2 and "A_log" not in name:
            parameter.normal_(0.0, 0.4 if "embed" in name or "lm_head" in name else 0.12)
    model.save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return folder


def trained(model: Path, settings: dict[str, Any], folder: Path, steps: int = 2, **changes: Any) -> Any:
    """A run of a few steps with its notes."""
    values = {
        "model": str(model),
        "data": {"train": str(write_rows(folder / "rows.jsonl", 8)), "eval": None, "max_length": 64},
        "method": settings,
        "train": {"max_steps": steps, "learning_rate": 1e-2},
        "dtype": "float32",
        "output_dir": str(folder / "run"),
        **changes,
    }
    return lamina.train(values)


def notes(run: Any) -> list[str]:
    return [note.message for note in run.events(Note)]


@pytest.mark.parametrize("architecture", NARROW)
@pytest.mark.parametrize("case", RANKED)
def test_layers_that_are_narrower_than_the_rank_are_left_out_and_named(case: str, architecture: str) -> None:
    if case == "eva":
        pytest.skip("it looks at data first; see the runs below")
    config = method(RANKED[case])
    injection = inject(build_architecture(architecture), config, seed=0)
    injection = find_method(config.type).prepare(injection, [])
    coverage = find_coverage(injection)
    assert ends(coverage.narrow) == NARROW[architecture]
    assert all(width(layer.frozen) >= 12 for layer in injection.layers.values() if isinstance(layer, AdapterLinear))
    bare = build_architecture(architecture)
    everything = set(find_targets(bare, "all-linear"))
    linears = {name for name, layer in injection.layers.items() if isinstance(layer, AdapterLinear)}
    assert {*linears, *coverage.narrow} - modules_out_of_reach(bare) == everything
    text = "\n".join(coverage.notes())
    assert all(end in text for end in NARROW[architecture])


@pytest.mark.parametrize("case", RANKED)
def test_an_adapter_without_them_is_found_again_by_lamina_and_by_peft(case: str, tmp_path: Path) -> None:
    model = on_disk(build_architecture("qwen2_moe"), tmp_path / "model")
    run = trained(model, RANKED[case], tmp_path, steps=3)
    assert [note for note in notes(run) if "narrower than the rank: model.layers.*.mlp.shared_expert_gate (2" in note]
    assert lamina.load(run.path).certify().passed
    ids = torch.tensor([[5, 9, 17, 33, 4, 101, 7, 60]])
    theirs = peft.PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32), str(run.adapter)
    )
    ours = lamina.load(run.path).model(input_ids=ids).logits
    torch.testing.assert_close(theirs.eval()(input_ids=ids).logits, ours, rtol=1e-4, atol=1e-4)
    assert not any("shared_expert_gate" in name for name, _ in theirs.named_parameters() if "lora" in name)


@pytest.mark.parametrize("case", ["pissa", "olora"])
def test_twice_the_rank_when_it_is_saved_leaves_no_more_out(case: str, tmp_path: Path) -> None:
    """Their adapters are saved as LoRAs of rank 24; the narrowest adapted layer is 16 wide."""
    model = on_disk(build_architecture("llama", num_key_value_heads=1), tmp_path / "model")
    run = trained(model, RANKED[case], tmp_path)
    loaded = lamina.load(run.path)
    assert loaded.certify().passed and len(loaded.injection.layers) == 14


@pytest.mark.parametrize("case", RANKED)
def test_a_narrow_layer_that_is_asked_for_is_an_error_whose_ways_out_work(case: str) -> None:
    def attach(**changes: Any) -> Injection:
        config = method({**RANKED[case], "target_modules": ["q_proj", "mlp.shared_expert_gate"], **changes})
        injection = inject(build_architecture("qwen2_moe"), config, seed=0)
        return injection if case == "eva" else find_method(config.type).prepare(injection, [])

    if case == "eva":
        pytest.skip("it needs data to be prepared, after the same check")
    with pytest.raises(
        ConfigError, match=r"r: 12 is larger than the smaller side of .*shared_expert_gate \(1\)"
    ) as caught:
        attach()
    (problem,) = caught.value.problems
    rank = "init_r" if case == "adalora" else "r"
    assert problem.field == f"method.{rank}" and "use at most 1" in problem.fix
    if "target_r" not in RANKED[case]:
        assert len(attach(**{rank: 1}).layers) == 4
    if METHOD_CONFIGS[RANKED[case]["type"]].takes("exclude_modules"):
        (end,) = re.findall(r"add (\S+) to the list method.exclude_modules", problem.fix)
        assert len(attach(exclude_modules=[end]).layers) == 2
    else:
        assert "all-linear, which leaves such ones out" in problem.fix
        assert len(attach(target_modules="all-linear").layers) > 2


def test_a_rank_that_is_given_by_name_is_no_reason_to_leave_a_layer_out() -> None:
    config = method({"type": "lora", "r": 4, "rank_pattern": {"shared_expert_gate": 2}})
    with pytest.raises(ConfigError, match=r"2 is larger than the smaller side of .*shared_expert_gate \(1\)"):
        find_method("lora").prepare(inject(build_architecture("qwen2_moe"), config, seed=0), [])


def test_a_rank_above_every_layer_names_the_widest() -> None:
    with pytest.raises(ConfigError, match=r"every linear layer is narrower than the rank 65; the widest is .* \(64\)"):
        inject(build_architecture("llama"), method({"type": "lora", "r": 65}), seed=0)


# --- what a text does not call


@pytest.mark.parametrize("name", sorted(METHOD_CONFIGS))
def test_defaults_of_every_method_leave_out_what_a_text_does_not_reach(name: str, tmp_path: Path) -> None:
    model = on_disk(build_vision_language(), tmp_path / "model")
    needs = {"peft": {"peft_type": "OFT", "target_modules": r".*language_model.*q_proj", "oft_block_size": 8}}
    settings = {"type": name, **needs.get(name, {}), **({"tinit": 0, "tfinal": 0} if name == "adalora" else {})}
    reasons = {"bitfit": r"has none except in modules that do not run on a text \(first: model.vision_tower"}
    reasons |= dict.fromkeys(("p_tuning", "prefix_tuning", "prompt_tuning"), "builds its decoder's masks itself")
    if name in reasons:
        with pytest.raises(ConfigError, match=rf"method.type: .*{reasons[name]}.* Fix: use "):
            trained(model, settings, tmp_path)
        return
    run = trained(model, settings, tmp_path, steps=3)
    loaded = lamina.load(run.path)
    assert loaded.certify().passed
    assert not any("vision_tower" in layer or "projector" in layer for layer in loaded.injection.layers)
    if name in ("lora", "vera", "lokr", "full", "ln_tuning"):
        assert [note for note in notes(run) if "not called when the model runs over a text: model.vision_tower" in note]
        assert any("vision_tower" in key for key in run.manifest.weights.left_out.not_called)


@pytest.mark.parametrize("name", ["lora", "vera", "ia3"])
def test_a_tower_that_is_asked_for_is_an_error_whose_ways_out_work(name: str) -> None:
    def attach(**settings: Any) -> Injection:
        injection = inject(build_vision_language(), method({"type": name, **settings}), seed=0)
        check_reach(injection)
        return injection

    feedforward = {"feedforward_modules": []} if name == "ia3" else {}
    with pytest.raises(
        ConfigError, match=r"target_modules: selects linear layers that are not called .*vision_tower"
    ) as e:
        attach(target_modules=["q_proj"], **feedforward)
    fix = e.value.problems[0].fix
    excluded = re.findall(r"method\.exclude_modules=('.*')", fix)
    assert bool(excluded) == (name == "lora")
    for pattern in excluded:
        layers = attach(target_modules=["q_proj"], exclude_modules=yaml.safe_load(pattern)).layers
        assert list(layers) == [f"model.language_model.layers.{n}.self_attn.q_proj" for n in (0, 1)]
    assert len(attach(target_modules="all-linear", **feedforward).layers) >= 14


# --- stacked weights


def stacked_names(model: PreTrainedModel) -> set[str]:
    """Parameters of experts, found another way: those of three dimensions with an expert each."""
    return {
        name
        for name, parameter in model.named_parameters()
        if parameter.ndim == 3 and parameter.shape[0] == 4 and "conv" not in name
    }


@pytest.mark.parametrize("architecture", MIXTURES)
def test_experts_are_named_with_their_share_and_with_a_way_that_works(architecture: str) -> None:
    model = build_architecture(architecture)
    experts = stacked_names(model)
    head = model.get_output_embeddings()
    outside = sum(
        parameter.numel()
        for module in model.modules()
        if not isinstance(module, nn.Embedding) and module is not head
        for parameter in module.parameters(recurse=False)
    )
    injection = inject(build_architecture(architecture), method({"type": "lora", "r": 4}), seed=0)
    coverage = find_coverage(injection)
    assert coverage.weights == outside
    if not experts or old_names(model):  # where peft's all-linear reaches them, lamina's does
        assert not coverage.stacked and not [note for note in coverage.notes() if "stacked" in note]
        return
    assert set(coverage.stacked) == experts
    linears = sum(linear.in_features * linear.out_features for linear in _frozen(injection))
    biases = sum(linear.base.bias.numel() for linear in _frozen(injection) if linear.base.bias is not None)
    assert coverage.adapted == linears + biases
    (note,) = [note for note in coverage.notes() if "stacked in one tensor" in note]
    share = sum(parameter.numel() for name, parameter in model.named_parameters() if name in experts) / outside
    assert f"{share:.1%} of the weights outside of embeddings and head" in note

    (way,) = re.findall(r"`method: (\{.*\})`", note)
    theirs = inject(build_architecture(architecture), method(yaml.safe_load(way)), seed=0)
    adapted = {name for name in experts if any(name.startswith(f"{layer}.") for layer in theirs.layers)}
    assert adapted == experts
    assert find_coverage(theirs).adapted == coverage.adapted + sum(coverage.stacked.values())
    assert find_coverage(theirs).stacked == {}
    theirs.model(input_ids=torch.arange(3, 20)[None], use_cache=False).logits.sum().backward()
    assert all(tensor.grad is not None for tensor in theirs.tensors().values())


def _frozen(injection: Injection) -> list[Any]:
    return [layer.frozen for layer in injection.layers.values() if isinstance(layer, AdapterLinear)]


@pytest.mark.parametrize("architecture", ["gpt_oss", "granitemoe", "jetmoe"])
@pytest.mark.parametrize("pattern", [r".*experts.*", ["down_proj"], ["experts"], ["w1"], ["gate_up_proj"], ["up_prj"]])
def test_experts_that_are_asked_for_by_name_lead_to_the_way_that_works(pattern: Any, architecture: str) -> None:
    model = build_architecture(architecture)
    names = [name for name, _ in model.named_modules()]
    if architecture == "jetmoe" and pattern == r".*experts.*":
        pytest.skip("it has linear layers of that name")
    with pytest.raises(ConfigError) as caught:
        find_targets(model, pattern)
    (problem,) = caught.value.problems
    (way,) = re.findall(r"`method: (\{.*\})`", problem.fix)
    assert "o_proj'?" not in problem.fix and "Did you mean 'o_proj'" not in str(problem)
    parameters = yaml.safe_load(way)["target_parameters"]
    assert parameters and not {*parameters} & {*names}
    injection = inject(build_architecture(architecture), method(yaml.safe_load(way)), seed=0)
    assert find_coverage(injection).stacked == {}


def test_a_run_says_which_share_it_adapts(tmp_path: Path) -> None:
    model = on_disk(build_architecture("granitemoe"), tmp_path / "model")
    run = trained(model, {"type": "lora", "r": 4}, tmp_path)
    weights = run.manifest.weights
    assert run.summary.adapted_weights_share == weights.adapted / weights.outside_embeddings_and_head < 0.3
    assert list(weights.left_out.stacked) == [
        "model.layers.*.block_sparse_moe.experts.gate_up_proj",
        "model.layers.*.block_sparse_moe.experts.down_proj",
    ]
    names = "block_sparse_moe.experts.gate_up_proj, block_sparse_moe.experts.down_proj"
    assert [note for note in notes(run) if f"target_parameters: [{names}]" in note]


def test_a_dense_model_has_nothing_to_note(tmp_path: Path) -> None:
    run = trained(on_disk(build_architecture("llama"), tmp_path / "model"), {"type": "lora", "r": 4}, tmp_path)
    assert not [note for note in notes(run) if "all-linear" in note or "Left out" in note]
    assert run.summary.adapted_weights_share > 0.99
    assert '"target_modules": "all-linear"' in (run.adapter / "lamina.json").read_text()
    assert not any(vars(run.manifest.weights.left_out).values())


def test_layers_of_another_kind_are_not_counted_as_linear() -> None:
    model = build_architecture("mixtral")
    assert all(freeze_linear(model.get_submodule(name)) is not None for name in find_targets(model, "all-linear"))
