"""A run's checkpoints are adapters: lamina's commands and peft load them, and training starts from them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import lamina
from lamina.adapters.adapter import read_adapter
from lamina.cli.app import main
from lamina.config import METHOD_CONFIGS
from lamina.engine.subject import find_subject
from lamina.errors import AdapterError, ConfigError
from lamina.methods.shared.base import find_method
from lamina.runs import Run
from tests.support.method_cases import CASES
from tests.support.training import settings

IDS = torch.tensor([[5, 9, 17, 33, 4, 101, 7, 60]])


def trained(folder: Path, model: Path, method: dict[str, Any], **changes: Any) -> Run:
    train = {"max_steps": 3, "save_steps": 1, "eval_steps": None, "save_total_limit": 3, **changes.pop("train", {})}
    values = settings(folder, model, train=train, **changes)
    return lamina.train({**values, "method": method})


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model(input_ids=IDS).logits[:, -IDS.shape[1] :].float()


# Those whose tensors are saved in another form than they are trained in, beside LoRA.
_QUICK = ("lora", "lora that begins in the base", "adalora", "p_tuning", "peft")


@pytest.mark.parametrize(
    "case", [case if case in _QUICK else pytest.param(case, marks=pytest.mark.slow) for case in CASES]
)
def test_the_last_checkpoint_of_every_method_is_its_adapter(case: str, tmp_path: Path, model_folder: Path) -> None:
    method = {"type": case} | CASES[case]
    method.pop("lora_dropout", None)
    if method["type"] == "adalora":
        method |= {"tinit": 0, "tfinal": 1, "deltaT": 1}
    if method["type"] == "bitfit" or method.get("bias", "none") != "none":
        method = {"type": "lora", "r": 3, "lora_fa": True}  # the model has no biases
    run = trained(tmp_path, model_folder, method)
    checkpoints = sorted(run.checkpoints.glob("step-*"))
    assert [path.name for path in checkpoints] == [f"step-0000000{step}" for step in (1, 2, 3)]
    last, adapter = read_adapter(checkpoints[-1]), read_adapter(run.adapter)
    assert last.digest == adapter.digest
    assert last.lock == adapter.lock and last.lock is not None
    first = lamina.load(checkpoints[0], dtype="float32")
    assert not torch.equal(logits(first.model), logits(lamina.load(run.path, dtype="float32").model))
    if find_method(method["type"]).in_peft:
        base = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
        theirs = peft.PeftModel.from_pretrained(base, checkpoints[0]).eval()
        torch.testing.assert_close(logits(first.model), logits(theirs), rtol=0, atol=1e-5)


def test_tensors_that_are_saved_as_they_are_trained_take_no_more_room(tmp_path: Path, model_folder: Path) -> None:
    plain = trained(tmp_path, model_folder, {"type": "lora", "r": 3}).checkpoints / "step-00000003"
    assert (plain / "adapter.safetensors").samefile(plain / "adapter_model.safetensors")
    assert set(json.loads((plain / "state.json").read_text())["sha256"]) == {
        f"{name}.safetensors" for name in ("adapter", "method", "optimizer")
    }
    shifted = {"type": "lora", "r": 3, "init_lora_weights": "pissa"}
    values = {**settings(tmp_path, model_folder, "shifted", train={"max_steps": 1, "save_steps": 1}), "method": shifted}
    folder = lamina.train(values).checkpoints / "step-00000001"
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    assert load_file(folder / "adapter.safetensors")[name].shape[0] == 3
    assert load_file(folder / "adapter_model.safetensors")[name].shape[0] == 6


def test_the_best_checkpoint_is_an_adapter_too(tmp_path: Path, model_folder: Path) -> None:
    run = trained(tmp_path, model_folder, {"type": "lora", "r": 3}, train={"eval_steps": 1})
    (best,) = run.checkpoints.glob("best-*")
    assert read_adapter(best).digest == read_adapter(run.adapter).digest


def test_commands_take_a_checkpoint(tmp_path: Path, model_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = trained(tmp_path, model_folder, {"type": "lora", "r": 3})
    shutil.rmtree(run.adapter)
    folder = run.checkpoints / "step-00000002"

    def call(*arguments: object, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
        monkeypatch.setattr("sys.argv", ["lamina", *map(str, arguments), "--json"])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        written = capsys.readouterr()
        assert ended.value.code == 0, written.err
        return json.loads(written.out)

    with pytest.MonkeyPatch.context() as patch:
        generated = call("generate", folder, "-p", "red green", "--max-new-tokens", "4", monkeypatch=patch)
        assert generated["answers"][0]["prompt"] == "red green"
        evaluated = call("eval", folder, monkeypatch=patch)
        assert evaluated["rows"] > 0  # the run's own held-out rows
        merged = call("merge", folder, "--out", tmp_path / "merged", monkeypatch=patch)
        assert merged["certificate"]["passed"]
    ours = logits(lamina.load(folder, dtype="float32").model)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    torch.testing.assert_close(logits(plain), ours, rtol=0, atol=1e-4)
    adapter = find_subject(str(folder)).adapter
    assert adapter is not None and adapter[0] == "run-step-00000002"


def test_a_run_without_an_adapter_names_its_newest_checkpoint(tmp_path: Path, model_folder: Path) -> None:
    run = trained(tmp_path, model_folder, {"type": "lora", "r": 3})
    shutil.rmtree(run.adapter)
    with pytest.raises(AdapterError, match=r"no adapter yet.*newest checkpoint, \S*checkpoints/step-00000003"):
        lamina.load(run.path)


def test_training_starts_from_a_checkpoint_and_keeps_no_more_of_it_than_the_adapter(
    tmp_path: Path, model_folder: Path
) -> None:
    run = trained(tmp_path, model_folder, {"type": "lora", "r": 3})
    folder = run.checkpoints / "step-00000002"
    values = settings(
        tmp_path, model_folder, "more", train={"max_steps": 1, "learning_rate": 1e-9, "warmup_ratio": 0.0}
    )
    more = lamina.train({**values, "method": {"from": str(folder)}})
    assert sorted(path.name for path in more.start.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "lamina.json",
    ]
    before, after = read_adapter(folder).tensors, read_adapter(more.adapter).tensors
    assert before.keys() == after.keys()
    assert all(torch.allclose(before[name], tensor, rtol=0, atol=1e-7) for name, tensor in after.items())


@pytest.mark.parametrize(
    ("config", "method"),
    [
        (peft.LoraConfig(task_type="CAUSAL_LM", r=3, target_modules=["q_proj"]), {}),
        (peft.IA3Config(task_type="CAUSAL_LM", target_modules=["k_proj"], feedforward_modules=[]), {"type": "ia3"}),
        (
            peft.LoraConfig(task_type="CAUSAL_LM", r=3, target_modules=["q_proj"], lora_bias=True),
            {"type": "peft", "peft_type": "LORA"},
        ),
    ],
    ids=["lora", "ia3", "peft"],
)
def test_training_starts_from_an_adapter_of_pefts(
    config: Any, method: dict[str, Any], tmp_path: Path, model_folder: Path
) -> None:
    model: Any = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32), config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape)
    model.save_pretrained(tmp_path / "theirs")
    wanted = logits(model.eval())
    values = settings(tmp_path, model_folder, train={"max_steps": 1, "learning_rate": 1e-9, "warmup_ratio": 0.0})
    if method.get("type") == "peft":
        with pytest.raises(
            ConfigError, match=r"of method 'peft LORA', not 'lora'.*type to peft and method.peft_type to L"
        ):
            lamina.train(
                {**values, "method": {"from": str(tmp_path / "theirs")}, "output_dir": str(tmp_path / "wrong")}
            )
    run = lamina.train({**values, "method": {**method, "from": str(tmp_path / "theirs")}})
    torch.testing.assert_close(logits(lamina.load(run.path, dtype="float32").model), wanted, rtol=0, atol=1e-5)
    assert METHOD_CONFIGS[method.get("type", "lora")]
