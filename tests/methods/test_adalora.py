"""AdaLoRA's own: scores, budget and cuts as peft's allocator makes them, the cut adapter on disk, and resume."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

import lamina
from lamina.config import load_config
from lamina.config.methods.adalora import AdaLoraConfig
from lamina.errors import ConfigError
from lamina.methods.adalora import METHOD, BudgetHooks
from lamina.methods.shared.base import Injection, inject
from lamina.training.step import EvaluationResult
from tests.support.models_zoo import build_model, build_tokenizer
from tests.support.peft_oracle import (
    check_loads_what_peft_saved,
    check_peft_loads_what_lamina_saved,
    check_same_training,
    close,
    disturb,
    pair,
    peft_tensors,
)

TARGETS = ["q_proj", "k_proj", "down_proj"]
LAYERS = 2 * len(TARGETS)
SCHEDULE = {"target_r": 2, "init_r": 5, "tinit": 2, "tfinal": 3, "deltaT": 2}
STEPS = 14


def ours(**settings: object) -> AdaLoraConfig:
    return AdaLoraConfig(**{**SCHEDULE, "lora_alpha": 7, "target_modules": TARGETS, **settings})


def theirs(**settings: object) -> peft.AdaLoraConfig:
    chosen = {**SCHEDULE, "lora_alpha": 7, "target_modules": TARGETS, "total_step": STEPS, **settings}
    return peft.AdaLoraConfig(task_type="CAUSAL_LM", **chosen)


def ranks(injection: Injection) -> dict[str, list[bool]]:
    return {name: layer.kept().tolist() for name, layer in injection.layers.items()}


def set_gradients(tensors: dict[str, torch.nn.Parameter], step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for _, tensor in sorted(tensors.items()):
        tensor.grad = torch.randn(tensor.shape, generator=generator)


def run_schedule(injection: Injection, hooks: BudgetHooks, steps: range) -> None:
    """Steps of plain gradient descent on made-up gradients."""
    for step in steps:
        set_gradients(injection.tensors(), step)
        with torch.no_grad():
            for tensor in injection.tensors().values():
                tensor -= 0.01 * tensor.grad
        hooks.after_update(step)


def test_trains_as_in_peft() -> None:
    injection, model = pair("llama", ours(), theirs())
    hooks = METHOD.hooks(injection, STEPS)
    check_same_training(injection, model, hooks.penalty)


def test_trains_as_in_peft_without_the_orthogonality_term() -> None:
    injection, model = pair("gpt2", ours(target_modules=["c_attn"], orth_reg_weight=0.0), theirs_of_gpt2())
    hooks = METHOD.hooks(injection, STEPS)
    assert hooks.penalty() is None
    check_same_training(injection, model)


def theirs_of_gpt2() -> peft.AdaLoraConfig:
    return theirs(target_modules=["c_attn"], orth_reg_weight=0.0)


@pytest.mark.parametrize(
    "settings", [{}, {"tinit": 0, "tfinal": 0, "deltaT": 1}, {"deltaT": 3, "beta1": 0.5, "beta2": 0.95}, {"init_r": 12}]
)
def test_every_step_cuts_what_pefts_allocator_cuts(settings: dict[str, object]) -> None:
    injection, model = pair("llama", ours(**settings), theirs(**settings))
    hooks = METHOD.hooks(injection, STEPS)
    others = dict(peft_tensors(model))
    cuts = set()
    for step in range(1, STEPS + 1):
        run_schedule(injection, hooks, range(step, step + 1))
        set_gradients(others, step)
        with torch.no_grad():
            for tensor in others.values():
                tensor -= 0.01 * tensor.grad
        model.base_model.update_and_allocate(step)
        for name, tensor in injection.tensors().items():
            assert torch.equal(tensor == 0, others[name] == 0), (step, name)
            close(tensor, others[name], f"{name} after step {step}")
        cuts.add(sum(map(sum, ranks(injection).values())))
        pattern = model.peft_config["default"].rank_pattern
        if pattern is not None and step >= STEPS - injection.config.tfinal:
            assert {name.removesuffix(".lora_E.default"): kept for name, kept in pattern.items()} == ranks(injection)
    assert len(cuts) > 3, "the budget fell by and by"
    assert min(cuts) == hooks.budget(STEPS) == 2 * LAYERS


def test_budget() -> None:
    hooks = METHOD.hooks(inject(build_model("llama"), ours(), seed=0), 100)
    assert [hooks.budget(step) for step in (1, 2, 3, 50, 96, 97, 100)] == [30, 30, 29, 14, 12, 12, 12]


def test_the_last_cut_comes_although_its_step_was_skipped() -> None:
    injection = inject(build_model("llama"), ours(), seed=0)
    disturb(injection.tensors())
    hooks = METHOD.hooks(injection, STEPS)
    run_schedule(injection, hooks, range(1, STEPS - 3))
    assert not hooks.final
    run_schedule(injection, hooks, range(STEPS - 2, STEPS + 1))
    assert sum(map(sum, ranks(injection).values())) == 2 * LAYERS
    assert {name: mask[:, 0].tolist() for name, mask in hooks.final.items()} == ranks(injection)


def test_a_single_step_cuts_by_its_own_gradients() -> None:
    injection = inject(build_model("llama"), ours(tinit=0, tfinal=0), seed=0)
    disturb(injection.tensors())
    run_schedule(injection, METHOD.hooks(injection, 1), range(1, 2))
    assert sum(map(sum, ranks(injection).values())) == 2 * LAYERS


def test_equal_ranks_cut_nothing() -> None:
    injection = inject(build_model("llama"), ours(target_r=5), seed=0)
    disturb(injection.tensors())
    run_schedule(injection, METHOD.hooks(injection, STEPS), range(1, STEPS + 1))
    assert all(map(all, ranks(injection).values()))
    assert METHOD.saved(injection).config == injection.config


@pytest.mark.parametrize("cut", [3, 6, STEPS - 3, STEPS - 1])
def test_a_resumed_run_cuts_alike(cut: int) -> None:
    whole, resumed = (inject(build_model("llama"), ours(), seed=0) for _ in range(2))
    disturb(whole.tensors())
    hooks = METHOD.hooks(whole, STEPS)
    run_schedule(whole, hooks, range(1, cut + 1))
    state = {name: tensor.clone() for name, tensor in hooks.state().items()}
    assert state
    resumed.load_tensors(whole.tensors())
    run_schedule(whole, hooks, range(cut + 1, STEPS + 1))
    again = METHOD.hooks(resumed, STEPS)
    again.load_state(state)
    run_schedule(resumed, again, range(cut + 1, STEPS + 1))
    assert all(torch.equal(a, b) for a, b in zip(whole.tensors().values(), resumed.tensors().values(), strict=True))
    assert hooks.state().keys() == again.state().keys()
    forgetful = inject(build_model("llama"), ours(), seed=0)
    forgetful.load_tensors(resumed.tensors())
    assert METHOD.hooks(forgetful, STEPS).state() == {}


def test_the_saved_adapter_has_lost_the_ranks_that_were_cut(tmp_path: Path) -> None:
    injection = inject(build_model("llama", vocab_size=259), ours(), seed=0)
    disturb(injection.tensors())
    run_schedule(injection, METHOD.hooks(injection, STEPS), range(1, STEPS + 1))
    kept = ranks(injection)
    assert len({sum(mask) for mask in kept.values()}) > 1, "some layers keep more than others"
    model = check_peft_loads_what_lamina_saved("llama", tmp_path, injection)
    assert {tuple(t.shape) for n, t in model.named_parameters() if "lora_E" in n} == {
        (sum(mask), 1) for mask in kept.values()
    }
    loaded = lamina.load(tmp_path / "adapter", dtype="float32")
    for name, layer in loaded.injection.layers.items():
        assert layer.rank == sum(kept[name])
        assert loaded.adapter.tensors[f"base_model.model.{name}.lora_B"].shape[1] == layer.rank
        torch.testing.assert_close(layer.delta_weight(), injection.layers[name].delta_weight())
    assert loaded.adapter.config.rank_pattern == {f"{name}.lora_E": mask for name, mask in kept.items()}
    assert METHOD.saved(loaded.injection).config == loaded.adapter.config
    assert all(torch.equal(t, loaded.adapter.tensors[n]) for n, t in METHOD.saved(loaded.injection).tensors.items())


def test_a_layer_that_lost_all_its_ranks_is_the_base_again(tmp_path: Path) -> None:
    injection = inject(build_model("llama", vocab_size=259), ours(), seed=0)
    disturb(injection.tensors())
    with torch.no_grad():
        injection.layers["model.layers.0.self_attn.q_proj"].lora_E.zero_()
    check_peft_loads_what_lamina_saved("llama", tmp_path, injection)
    loaded = lamina.load(tmp_path / "adapter", dtype="float32")
    layer, x = loaded.injection.layers["model.layers.0.self_attn.q_proj"], torch.randn(3, 48)
    assert layer.rank == 0
    assert torch.equal(layer(x), layer.frozen.matmul(x))


def test_an_adapter_that_was_never_trained_keeps_its_ranks() -> None:
    injection = inject(build_model("llama"), ours(), seed=0)
    assert METHOD.saved(injection).config == injection.config
    assert METHOD.saved(injection).tensors.keys() == injection.tensors().keys()


def test_loads_what_peft_saved(tmp_path: Path) -> None:
    check_loads_what_peft_saved("phi", tmp_path, theirs(target_modules=["fc2", "q_proj"]))


def test_loads_what_peft_saved_with_cut_ranks(tmp_path: Path) -> None:
    base = build_model("llama", vocab_size=259)
    base.save_pretrained(tmp_path / "base")
    build_tokenizer().save_pretrained(tmp_path / "base")
    base.config._name_or_path = base.name_or_path = str(tmp_path / "base")
    model = peft.get_peft_model(base, theirs())
    tensors = dict(peft_tensors(model))
    disturb(tensors)
    for step in range(1, STEPS + 1):
        set_gradients(tensors, step)
        model.base_model.update_and_allocate(step)
    model.save_pretrained(tmp_path / "adapter")
    ids = torch.tensor([[5, 9, 17, 33]])
    loaded = lamina.load(tmp_path / "adapter", dtype="float32")
    assert sum(layer.rank for layer in loaded.injection.layers.values()) == 2 * LAYERS
    with torch.no_grad():
        close(loaded.model(input_ids=ids).logits, model.eval()(input_ids=ids).logits, "logits")


def settings_of_a_run(tmp_path: Path, run: str, method: dict[str, object], steps: int) -> dict[str, Any]:
    base = build_model("llama", vocab_size=259)
    base.save_pretrained(tmp_path / "base")
    build_tokenizer().save_pretrained(tmp_path / "base")
    rows = [{"prompt": f"say {word}", "completion": word * 3} for word in ("a", "bc", "d", "ef", "g", "hi")]
    (tmp_path / "train.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return {
        "model": str(tmp_path / "base"),
        "data": {"train": str(tmp_path / "train.jsonl"), "eval": None, "max_length": 64, "packing": False},
        "method": {"type": "adalora", **SCHEDULE, "target_modules": TARGETS, **method},
        "train": {"max_steps": steps, "learning_rate": 0.02, "save_steps": 100, "per_device_train_batch_size": 1},
        "dtype": "float32",
        "output_dir": str(tmp_path / run),
    }


def test_a_run_reaches_its_budget_and_proves_itself(tmp_path: Path) -> None:
    run = lamina.train(settings_of_a_run(tmp_path, "run", {}, 10))
    loaded = lamina.load(run.path, dtype="float32")
    assert sum(layer.rank for layer in loaded.injection.layers.values()) == 2 * LAYERS
    assert loaded.certify().passed, loaded.certify().reasons
    assert lamina.merge(run.path, tmp_path / "merged").certificate.passed


def test_no_evaluation_before_the_last_cut_makes_the_best_adapter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The losses rise, so that without that rule the first evaluation would be the best one, and the last."""
    losses = itertools.count(1.0)
    monkeypatch.setattr("lamina.training.loop.evaluate_loss", lambda *_: EvaluationResult(next(losses), {}))
    settings = settings_of_a_run(tmp_path, "run", {"deltaT": 4, "tinit": 4}, 12)
    settings["data"]["eval"] = 0.34
    settings["train"] |= {"eval_steps": 1, "early_stopping_patience": 2}
    run = lamina.train(settings)
    assert run.summary is not None
    assert (run.summary.adapter_step, run.summary.steps) == (9, 11), "cut at 9; two evaluations without gain"
    budget = {"ranks_at_start": 5 * LAYERS, "ranks_kept": 2 * LAYERS, "ranks_target": 2 * LAYERS}
    assert run.summary.figures == budget
    loaded = lamina.load(run.path, dtype="float32")
    assert sum(layer.rank for layer in loaded.injection.layers.values()) == 2 * LAYERS


def test_schedules_that_leave_no_step_are_errors(tmp_path: Path) -> None:
    settings = settings_of_a_run(tmp_path, "run", {"tinit": 4, "tfinal": 6, "total_step": 11}, 10)
    with pytest.raises(ConfigError) as caught:
        lamina.train(settings)
    assert [problem.field for problem in caught.value.problems] == ["method.total_step", "method.tinit"]
    assert "none of the run's 10 steps" in str(caught.value)


def test_training_does_not_begin_with_cut_ranks() -> None:
    pattern = {f"model.layers.{i}.{part}.lora_E": [True, False] for i in (0, 1) for part in ("mlp.up_proj",)}
    config = ours(target_modules=["up_proj"], rank_pattern=pattern)
    with pytest.raises(ConfigError, match=r"method\.rank_pattern: holds the remaining ranks"):
        METHOD.check(build_model("llama"), config)
    injection = inject(build_model("llama"), config, seed=0)
    assert [layer.rank for layer in injection.layers.values()] == [1, 1]
    hooks = METHOD.hooks(injection, STEPS)  # training that goes on from an adapter prunes no more
    assert hooks.is_settled()
    with pytest.raises(ConfigError, match=r"are not those that target_modules selects \(first: .*mlp.down_proj"):
        inject(build_model("llama"), ours(target_modules=["down_proj"], rank_pattern=pattern), seed=0)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ({"target_r": 9, "init_r": 8}, r"target_r \(9\) is above init_r \(8\)"),
        ({"tinit": 3, "tfinal": 2, "total_step": 5}, "leave no steps for pruning out of the 5 steps of total_step"),
        ({"use_dora": True}, "AdaLoRA has no DoRA form"),
        ({"r": 8}, "init_r at the start, and target_r on average at the end"),
        ({"beta1": 1.0}, "beta1"),
    ],
)
def test_combinations_that_cannot_be(method: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config({"data": {"train": "x"}, "method": {"type": "adalora", **method}})


def test_rank_above_the_width_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"method.init_r: 17 is larger than the smaller side of .*k_proj \(16\)"):
        METHOD.prepare(inject(build_model("llama"), AdaLoraConfig(init_r=17, target_modules=["k_proj"]), seed=0), [])


def test_trained_biases_of_a_model_without_any_change_nothing(tmp_path: Path) -> None:
    check_loads_what_peft_saved("llama", tmp_path, theirs(bias="all"))


@pytest.mark.parametrize("more", [{"modules_to_save": ["norm"]}, {"exclude_modules": ["v_proj"]}])
def test_what_only_peft_has_is_loaded_through_peft(more: dict[str, list[str]], tmp_path: Path) -> None:
    loaded = check_loads_what_peft_saved("llama", tmp_path, theirs(**more))
    assert loaded.injection.config.type == "peft"


def test_initial_tensors() -> None:
    layer = inject(build_model("llama"), AdaLoraConfig(), seed=0).layers["model.layers.0.mlp.gate_proj"]
    assert 0.018 < layer.lora_A.std() < 0.022
    assert 0.018 < layer.lora_B.std() < 0.022
    assert not layer.lora_E.any()
