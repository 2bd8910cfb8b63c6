"""Every optimizer in real runs: it learns, and a run that was cut and resumed ends at the same adapter, bit for bit."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from peft.optimizers import create_loraplus_optimizer

import lamina
from lamina.compute.ops.attention import packed_attention
from lamina.config import TrainConfig, load_config
from lamina.config.methods.full import FullConfig
from lamina.config.methods.lora import LoraConfig
from lamina.config.optimizers import OPTIMIZERS
from lamina.data.example import EncodedExample
from lamina.errors import ConfigError, TrainingError
from lamina.losses.cross_entropy import CrossEntropy
from lamina.methods.shared.base import inject
from lamina.optim import Layerwise, build_optimizer
from lamina.optim.muon import MuonWithAdamW
from lamina.runs.events import Event
from lamina.structure.head import find_head
from lamina.training.step import StepResult, training_step
from tests.support.models_zoo import build_model, build_tokenizer

NAMES = [name for name in OPTIMIZERS if not name.startswith("paged")]
LEARNING_RATES = {"lion": 1e-3, "muon": 0.01}
SOURCE = Path(__file__).resolve().parents[2] / "src" / "lamina" / "optim"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer base and its data."""
    path = tmp_path_factory.mktemp("optim")
    build_model("llama", vocab_size=259).save_pretrained(path / "base")
    build_tokenizer().save_pretrained(path / "base")
    rows = [{"prompt": f"say {word}", "completion": word * 3} for word in ("a", "bc", "d", "ef", "g", "hi")]
    (path / "train.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return path


def settings(folder: Path, run: Path, optim: str, **changes: Any) -> dict[str, Any]:
    train: dict[str, Any] = {
        "optim": optim,
        "max_steps": 6,
        "per_device_train_batch_size": 3,
        "save_steps": 1,
        "learning_rate": LEARNING_RATES.get(optim, 5e-3),
        "weight_decay": 0.01,
    }
    facts = OPTIMIZERS[optim]
    if "galore" in facts.reads:
        train["galore"] = {"rank": 8, "update_proj_gap": 2, "scale": 1.0}
    if "apollo" in facts.reads:
        train["apollo"] = {"rank": 8, "update_proj_gap": 2, "scale": 4.0}
    if "badam" in facts.reads:
        train["badam"] = {"switch_interval": 2}
    if facts.layerwise:
        train["max_grad_norm"] = 0.0
    return {
        "model": str(folder / "base"),
        "data": {"train": str(folder / "train.jsonl"), "eval": None, "max_length": 64, "packing": False},
        "method": {"type": "full"},
        "train": train | changes,
        "dtype": "float32",
        "output_dir": str(run),
    }


def cut_at(step: int) -> Callable[[Event], None]:
    def on_event(event: Event) -> None:
        if event.kind == "checkpoint" and event.step == step:
            raise KeyboardInterrupt

    return on_event


@pytest.mark.parametrize("optim", NAMES)
def test_it_learns_and_a_cut_run_goes_on_exactly(optim: str, folder: Path, tmp_path: Path) -> None:
    if "8bit" in optim:
        pytest.importorskip("bitsandbytes")
    whole = lamina.train(settings(folder, tmp_path / "whole", optim)).summary
    # Step 3 lies between two turns of a subspace, step 4 right before one.
    values = settings(folder, tmp_path / "cut", optim)
    for step in (3, 4):
        with pytest.raises(KeyboardInterrupt):
            lamina.train(values, cut_at(step), resume=step > 3)
    resumed = lamina.train(values, resume=True).summary
    assert whole is not None and resumed is not None
    assert resumed.adapter_digest == whole.adapter_digest
    assert whole.train_loss_last < 0.8 * whole.train_loss_first


def test_every_name_has_its_file_and_its_facts() -> None:
    files = {path.stem for path in SOURCE.glob("*.py") if "\ndef build(" in path.read_text(encoding="utf-8")}
    assert set(OPTIMIZERS) == files


def config_error(**train: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config({"data": {"train": "x"}, "method": {"type": "full"}, "train": train})
    return str(caught.value)


@pytest.mark.parametrize(
    ("optim", "setting"),
    [
        ("lion", {"adam_epsilon": 1e-8}),
        ("adafactor", {"adam_beta1": 0.9}),
        ("adafactor", {"adam_beta2": 0.9}),
        ("adamw_torch", {"galore": {"rank": 4}}),
        ("muon", {"galore": {}}),
        ("galore_adamw", {"apollo": {"rank": 4}}),
    ],
)
def test_a_setting_that_the_optimizer_does_not_read_is_an_error(optim: str, setting: dict[str, Any]) -> None:
    assert f"{next(iter(setting))} has no effect with optim '{optim}'" in config_error(optim=optim, **setting)


@pytest.mark.parametrize("optim", ["galore_adamw_layerwise", "apollo_adamw_layerwise"])
def test_layerwise_needs_whole_steps_and_no_clipping(optim: str) -> None:
    message = config_error(optim=optim, gradient_accumulation_steps=2, max_grad_norm=0.0)
    assert "set gradient_accumulation_steps to 1" in message
    assert "set max_grad_norm to 0" in config_error(optim=optim)


@pytest.mark.parametrize("optim", ["galore_adamw", "apollo_adamw", "badam"])
def test_what_saves_memory_of_whole_matrices_needs_the_method_full(optim: str) -> None:
    with pytest.raises(ConfigError, match="method 'lora' trains an adapter, whose tensors are already small"):
        load_config({"data": {"train": "x"}, "train": {"optim": optim}})


def test_defaults_of_the_learning_rate_follow_the_optimizer() -> None:
    rates = [
        load_config({"data": {"train": "x"}, "train": {"optim": optim}}).train.learning_rate
        for optim in ("adamw_torch", "lion")
    ]
    assert rates == [1e-3, pytest.approx(1e-4)]


def test_a_resolved_configuration_can_be_read_again() -> None:
    config = load_config({"data": {"train": "x"}, "train": {"optim": "lion", "loraplus_lr_ratio": True}})
    assert load_config(config.model_dump(mode="json")) == config


def build(optim: str, method: str = "full", **changes: Any) -> torch.optim.Optimizer:
    config = load_config({"data": {"train": "x"}, "method": {"type": method}})
    injection = inject(build_model("llama"), config.method, seed=0)
    train = TrainConfig.model_validate({"optim": optim, "learning_rate": 1e-3, **changes})
    return build_optimizer(train, injection.tensors(), injection.fast_tensors(), injection.vocabulary_tensors())


@pytest.mark.parametrize("name", ["galore", "apollo"])
def test_a_rank_that_projects_nothing_is_an_error(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"train.{name}.rank: 48 is not below .* \(the largest has 48\)"):
        build(f"{name}_adamw", **{name: {"rank": 48}})


def test_badam_trains_a_layer_at_a_time() -> None:
    """Two layers in turn, two steps each: nothing else moves, and only the layer has gradients and moments."""
    injection = inject(build_model("llama"), FullConfig(), seed=0)
    tensors, model = injection.tensors(), injection.model.train()
    values = {"optim": "badam", "learning_rate": 1e-2, "badam": {"switch_interval": 2, "switch_mode": "descending"}}
    optimizer = build_optimizer(TrainConfig.model_validate(values), tensors, (), injection.vocabulary_tensors())
    example = EncodedExample(np.arange(3, 20, dtype=np.int32), np.arange(17) > 0, row=1)
    head, parameters = find_head(model), list(tensors.values())
    for layer in (1, 1, 0, 0, 1):
        before, seen = {name: tensor.detach().clone() for name, tensor in tensors.items()}, set[str]()
        note = partial(_gradients_into, tensors, seen)
        with packed_attention(model):
            training_step(model, head, CrossEntropy(), optimizer, parameters, [[example]], 1e-2, 1.0, check=note)
        inside = {name for name in tensors if f".layers.{layer}." in name}
        assert seen == inside
        assert {name for name, tensor in tensors.items() if not torch.equal(tensor, before[name])} == inside
        assert {name for name, tensor in tensors.items() if optimizer.state.get(tensor)} == inside


def _gradients_into(tensors: Mapping[str, torch.nn.Parameter], seen: set[str]) -> None:
    seen |= {name for name, tensor in tensors.items() if tensor.grad is not None}


def test_badam_without_its_block_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"train.badam.start_block: 2 is none of the 2 blocks"):
        build("badam", badam={"start_block": 2})
    train = TrainConfig.model_validate({"optim": "badam", "learning_rate": 1e-3})
    with pytest.raises(ConfigError, match="no trained tensor is in one"):
        build_optimizer(train, {"model.norm.weight": torch.nn.Parameter(torch.ones(3))})
    assert "has no effect with switch_mode random" in config_error(
        optim="badam", badam={"switch_mode": "random", "start_block": 1}
    )


def test_muon_without_matrices_is_an_error() -> None:
    with pytest.raises(ConfigError, match="muon is for matrices"):
        build("muon", "ln_tuning")


@pytest.mark.parametrize("method", ["ia3", "prompt_tuning"])
def test_muon_takes_neither_vectors_stored_as_matrices_nor_embeddings(method: str) -> None:
    with pytest.raises(ConfigError, match="muon is for matrices"):
        build("muon", method)


@pytest.mark.parametrize(("method", "apart"), [("adalora", ("lora_E",)), ("p_tuning", ("embedding.weight", "bias"))])
def test_muon_leaves_singular_values_and_virtual_tokens_to_adamw(method: str, apart: tuple[str, ...]) -> None:
    config = load_config({"data": {"train": "x"}, "method": {"type": method}})
    injection = inject(build_model("llama"), config.method, seed=0)
    tensors = injection.tensors()
    train = TrainConfig.model_validate({"optim": "muon", "learning_rate": 1e-3})
    optimizer = build_optimizer(train, tensors, (), injection.vocabulary_tensors())
    assert isinstance(optimizer, MuonWithAdamW)
    muon, adamw = ({id(p) for group in part.param_groups for p in group["params"]} for part in optimizer.parts)
    assert adamw == {id(tensor) for name, tensor in tensors.items() if name.endswith(apart)}
    assert muon == {id(tensor) for tensor in tensors.values()} - adamw


def test_muon_and_galore_leave_embedding_and_head_to_adamw() -> None:
    injection = inject(build_model("qwen2"), FullConfig(), seed=0)
    assert injection.vocabulary_tensors() == {
        "base_model.model.model.embed_tokens.weight",
        "base_model.model.lm_head.weight",
    }


@pytest.mark.parametrize("optim", ["paged_adamw_8bit", "paged_adamw_32bit"])
def test_paged_optimizers_on_a_cpu_are_those_that_do_not_page_and_say_so(optim: str) -> None:
    instead = "adamw_8bit" if optim.endswith("8bit") else "adamw_torch"
    injection = inject(build_model("llama"), LoraConfig(), seed=0)
    notes: list[str] = []
    config = TrainConfig.model_validate({"optim": optim, "learning_rate": 1e-3})
    found = build_optimizer(config, injection.tensors(), notify=notes.append)
    expected = build_optimizer(config.model_copy(update={"optim": instead}), injection.tensors(), notify=notes.append)
    assert notes == [f"{optim}: there is no GPU memory to page, so {instead} is used, which computes the same"]
    assert type(found) is type(expected)
    assert getattr(found, "moments", None).__class__ is getattr(expected, "moments", None).__class__


def test_a_missing_package_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(name=name)

    monkeypatch.setattr(importlib, "import_module", missing)
    from lamina.optim._bitsandbytes import bitsandbytes

    with pytest.raises(ConfigError, match=r"adamw_8bit needs the package bitsandbytes.*pip install 'lamina\[bnb\]'"):
        bitsandbytes("adamw_8bit")


def test_a_gradient_that_is_not_finite_stops_a_layerwise_step() -> None:
    optimizer = build("galore_adamw_layerwise", galore={"rank": 4}, max_grad_norm=0.0)
    tensor = optimizer.param_groups[0]["params"][0]
    assert isinstance(optimizer, Layerwise)
    with pytest.raises(TrainingError, match="a gradient is not finite"), optimizer.moving():
        (tensor.sum() * float("nan")).backward()


def test_a_loss_that_is_not_finite_moves_nothing_layerwise() -> None:
    injection = inject(build_model("llama"), FullConfig(), seed=0)
    tensors = injection.tensors()
    values = {"optim": "galore_adamw_layerwise", "learning_rate": 1e-2, "galore": {"rank": 4}, "max_grad_norm": 0.0}
    optimizer = build_optimizer(TrainConfig.model_validate(values), tensors)
    example = EncodedExample(np.arange(3, 20, dtype=np.int32), np.arange(17) > 0, row=1)
    model, parameters = injection.model.train(), list(tensors.values())

    head = find_head(model)

    def step() -> StepResult:
        with packed_attention(model):
            return training_step(model, head, CrossEntropy(), optimizer, parameters, [[example]], 1e-2, 0.0)

    first = [parameter.detach().clone() for parameter in parameters]
    result = step()
    assert result.finite
    assert result.grad_norm > 0
    assert all(not torch.equal(before, after) for before, after in zip(first, parameters, strict=True))
    second = [parameter.detach().clone() for parameter in parameters]
    with torch.no_grad():
        parameters[0][10] = float("nan")
        second[0][10] = float("nan")
    assert not step().finite
    for before, after in zip(second, parameters, strict=True):
        torch.testing.assert_close(after.detach(), before, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(("ratio", "factor"), [(True, 16.0), (4.0, 4.0)])
def test_loraplus_is_that_of_peft(ratio: bool | float, factor: float) -> None:
    """Ten steps of the same gradients, decay included."""
    ours = inject(build_model("llama"), LoraConfig(r=4, target_modules=["q_proj", "v_proj"]), seed=0)
    model = peft.get_peft_model(
        build_model("llama"), peft.LoraConfig(r=4, lora_alpha=32, target_modules=["q_proj", "v_proj"])
    )
    named = {name.replace(".default", ""): p for name, p in model.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for name, tensor in ours.tensors().items():
            named[name].copy_(tensor)
    theirs = create_loraplus_optimizer(
        model, torch.optim.AdamW, lr=1e-2, loraplus_lr_ratio=factor, loraplus_weight_decay=0.1
    )
    config = TrainConfig.model_validate({"learning_rate": 1e-2, "loraplus_lr_ratio": ratio, "weight_decay": 0.1})
    optimizer = build_optimizer(config, ours.tensors(), ours.fast_tensors())
    for group in optimizer.param_groups:  # as a training step does
        group["lr"] = 1e-2 * group["lr_factor"]
    generator = torch.Generator().manual_seed(0)
    for _ in range(10):
        for name, tensor in ours.tensors().items():
            tensor.grad = torch.randn(tensor.shape, generator=generator)
            named[name].grad = tensor.grad.clone()
        optimizer.step()
        theirs.step()
    for name, tensor in ours.tensors().items():
        torch.testing.assert_close(tensor, named[name], rtol=1e-5, atol=1e-6)


def test_loraplus_reaches_a_run(folder: Path, tmp_path: Path) -> None:
    digests = []
    for name, ratio in (("plain", None), ("plus", True)):
        values = settings(folder, tmp_path / name, "adamw_torch", loraplus_lr_ratio=ratio, max_steps=2)
        run = lamina.train(values | {"method": {"type": "lora", "r": 4}})
        assert run.summary is not None
        digests.append(run.summary.adapter_digest)
    assert digests[0] != digests[1]


def test_loraplus_without_b_matrices_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"LoRA\+ gives the B matrices .* but this method has none"):
        build("adamw_torch", loraplus_lr_ratio=4.0)
