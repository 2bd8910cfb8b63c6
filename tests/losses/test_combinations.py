"""Settings and data that meet in a loss over answers: dropout of the base, sets, tables of positions, other starts."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import lamina
from lamina.errors import ConfigError, RunError
from lamina.losses.distillation import read_prompt
from lamina.runs.events import Evaluation, Event, Step
from tests.support.models_zoo import build_model, build_tokenizer
from tests.support.preferences import losses_of, preference_settings, write_labels, write_lines, write_pairs
from tests.support.training import notes_into, settings


def saved_model(folder: Path, family: str = "llama", **changes: Any) -> Path:
    build_model(family, vocab_size=len(build_tokenizer()), **changes).save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return folder


def cut_at(last: int) -> Any:
    """A callback that ends training in a step."""

    def cut(event: Event) -> None:
        if isinstance(event, Step) and event.step == last:
            raise KeyboardInterrupt

    return cut


@pytest.mark.parametrize("family", ["llama", "phi", "gpt2"])
@pytest.mark.parametrize("loss", ["dpo", "kto"])
def test_dropout_of_the_base_is_off(family: str, loss: str, tmp_path: Path) -> None:
    """GPT-2 has modules for it; Llama and Phi have numbers."""
    gpt2 = {"attn_pdrop": 0.3, "resid_pdrop": 0.3, "embd_pdrop": 0.3}
    model = saved_model(tmp_path / "model", family, **(gpt2 if family == "gpt2" else {"attention_dropout": 0.3}))
    run = lamina.train(preference_settings(tmp_path, model, {"type": loss}, "run"))
    assert losses_of(run)[0] == pytest.approx(math.log(2) if loss == "dpo" else 0.5, abs=1e-5)


def test_a_weight_of_0_leaves_a_loss_out(tmp_path: Path, model_folder: Path) -> None:
    loss = {"type": "dpo", "loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.0]}
    found = losses_of(lamina.train(preference_settings(tmp_path, model_folder, loss, "both")))
    assert found == losses_of(lamina.train(preference_settings(tmp_path, model_folder, {"type": "dpo"}, "one")))
    with pytest.raises(ConfigError, match="sft alone"):
        lamina.load_config(preference_settings(tmp_path, model_folder, {**loss, "loss_weights": [0.0, 1.0]}, "wrong"))


def test_a_checkpoint_of_an_unfinished_run_has_the_weights_of_its_labels(tmp_path: Path, model_folder: Path) -> None:
    rows = [json.loads(line) for line in write_labels(tmp_path / "labels.jsonl").read_text().splitlines()]
    write_lines(tmp_path / "labels.jsonl", rows[:30])  # 24 undesirable answers, 6 desirable ones
    seen: dict[int, float] = {}

    def watch(event: Event) -> None:
        if isinstance(event, Evaluation):
            seen[event.step] = event.eval_loss
        cut_at(7)(event)

    values = preference_settings(tmp_path, model_folder, {"type": "kto"}, "cut")
    with pytest.raises(KeyboardInterrupt):
        lamina.train(values, watch, progress=False)
    checkpoint = next((tmp_path / "cut" / "checkpoints").glob("best-*"))
    found = lamina.evaluate(checkpoint)
    assert found.loss == pytest.approx(seen[int(checkpoint.name.removeprefix("best-"))], rel=1e-5)
    assert found.base_loss == pytest.approx(seen[0], rel=1e-5)


def test_an_evaluation_set_of_kto_does_not_depend_on_others(tmp_path: Path, model_folder: Path) -> None:
    sets = {name: str(write_pairs(tmp_path / f"{name}.jsonl", rows)) for name, rows in (("one", 5), ("two", 9))}
    found: list[list[float]] = []
    for chosen in ({"one"}, {"one", "two"}):
        data = {"eval": {name: sets[name] for name in sorted(chosen)}}
        values = preference_settings(tmp_path, model_folder, {"type": "kto"}, f"run-{len(chosen)}", data=data)
        run = lamina.train(values)
        found.append([event.metrics["eval_loss/one"] for event in run.events(Evaluation)])
        assert lamina.evaluate(run.path).sets["one"].loss == pytest.approx(found[-1][-1], rel=1e-5)
    assert found[0] == pytest.approx(found[1], rel=1e-6)


def test_mismatched_answers_fit_in_a_table_of_positions(tmp_path: Path) -> None:
    """GPT-2 has 256 positions here, of which virtual tokens take 30."""
    rows = [
        {"prompt": ("p" * 150 if row % 2 else "q") + str(row), "completion": "a" if row % 2 else "b" * 150}
        | {"label": (row // 2) % 2 == 0}
        for row in range(12)
    ]
    write_lines(tmp_path / "labels.jsonl", rows)
    model = saved_model(tmp_path / "model", "gpt2")
    values = preference_settings(tmp_path, model, {"type": "kto"}, "run", data={"max_length": 256})
    values["method"] = {"type": "prompt_tuning", "num_virtual_tokens": 30}
    assert all(map(math.isfinite, losses_of(lamina.train(values))))


def test_no_step_of_pairs_has_one_label(tmp_path: Path, model_folder: Path) -> None:
    write_pairs(tmp_path / "pairs.jsonl")
    changes = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 1}
    for name, data, expected in (("pairs", "pairs", False), ("labels", "labels", True)):
        values = preference_settings(tmp_path, model_folder, {"type": "kto"}, name, train=changes)
        values["data"]["train"] = str(tmp_path / f"{data}.jsonl")
        notes: list[str] = []
        lamina.train(values, notes_into(notes))
        assert any("one label only" in note for note in notes) == expected


@pytest.mark.parametrize("method", [{"init_lora_weights": "loftq"}, {"init_lora_weights": False}], ids=str)
def test_an_adapter_that_does_not_start_as_its_base(method: dict[str, Any], tmp_path: Path, model_folder: Path) -> None:
    bits = {"quantization": {"bits": 4}} if method["init_lora_weights"] == "loftq" else {}
    if bits:
        pytest.importorskip("bitsandbytes")
    values = preference_settings(tmp_path, model_folder, {"type": "dpo"}, "run", **bits)
    values["method"] = {"type": "lora", "r": 4, **method}
    notes: list[str] = []
    run = lamina.train(values, notes_into(notes))
    assert any("does not start from the reference" in note for note in notes)
    assert losses_of(run)[0] != pytest.approx(math.log(2), abs=1e-4)


def test_from_an_adapter_with_pruned_ranks(tmp_path: Path, model_folder: Path) -> None:
    """Its ranks are final: none is pruned, and none comes back."""
    values = settings(tmp_path, model_folder, "start")
    values["method"] = {"type": "adalora", "init_r": 4, "target_r": 2, "tinit": 1, "tfinal": 1}
    values["train"] |= {"max_steps": 4}
    start = lamina.train(values)
    values = preference_settings(tmp_path, model_folder, {"type": "dpo"}, "run")
    values["method"] = {"type": "adalora", "from": str(start.path)}
    run = lamina.train(values)
    assert losses_of(run)[0] == pytest.approx(math.log(2), abs=1e-5)
    before, after = (lamina.load(each.path).injection.saved_tensors() for each in (start, run))
    assert {name: tensor.shape for name, tensor in before.items()} == {n: tensor.shape for n, tensor in after.items()}
    assert not all(torch.equal(before[name], after[name]) for name in before)


def test_a_score_head_is_no_start_for_another_loss(tmp_path: Path, model_folder: Path) -> None:
    reward = lamina.train(preference_settings(tmp_path, model_folder, {"type": "reward"}, "reward"))
    values = preference_settings(tmp_path, model_folder, {"type": "dpo"}, "run")
    values["method"] = {"type": "lora", "from": str(reward.path)}
    with pytest.raises(ConfigError, match=r"method\.from: .* has a score head"):
        lamina.train(values)
    assert lamina.evaluate(reward.path, answers=3).predictions == []


@pytest.mark.parametrize("loss", ["dpo", "reward"])
def test_margins_of_a_csv_file(loss: str, tmp_path: Path, model_folder: Path) -> None:
    data = tmp_path / "pairs.csv"
    data.write_text("prompt,chosen,rejected,margin\nq1,a,b,2\nq2,a,c,\nq3,d,c, 0.5 \n")
    values = preference_settings(tmp_path, model_folder, {"type": loss}, "run", data={"train": str(data), "eval": None})
    values["train"] |= {"eval_steps": None, "max_steps": 2}
    lamina.train(values)
    data.write_text("prompt,chosen,rejected,margin\nq1,a,b,much\n")
    values["output_dir"] = str(tmp_path / "other")
    with pytest.raises(lamina.LaminaError, match="'margin' is 'much', not a number"):
        lamina.train(values)


def test_a_run_goes_on_with_its_teacher_alone(tmp_path: Path, model_folder: Path) -> None:
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("Swap the words, and be brief!")
    loss = {"type": "distillation", "teacher_prompt": str(prompt)}
    whole = lamina.train(settings(tmp_path, model_folder, "whole", loss=loss))
    values = settings(tmp_path, model_folder, "cut", loss=loss)
    with pytest.raises(KeyboardInterrupt):
        lamina.train(values, cut_at(7), progress=False)
    prompt.write_text("Write a long poem in French.")
    with pytest.raises(RunError, match="the teacher's prompt"):
        lamina.train(values, resume=True)
    assert any("the teacher's prompt" in note for note in lamina.evaluate(whole.path).notes)


def test_a_teachers_prompt_is_read_as_data_is(tmp_path: Path) -> None:
    path = tmp_path / "prompt.json"
    path.write_text(json.dumps([{"role": "system", "content": [{"type": "text", "text": "Be brief."}]}]))
    assert [(turn.role, turn.content) for turn in read_prompt(path)] == [("system", "Be brief.")]
    path.write_text(json.dumps([{"role": "user", "content": None}]))
    with pytest.raises(ConfigError, match=r"loss\.teacher_prompt"):
        read_prompt(path)


def test_a_missing_teacher_is_the_losss(tmp_path: Path, model_folder: Path) -> None:
    loss = {"type": "distillation", "teacher": str(tmp_path / "nothing")}
    with pytest.raises(ConfigError, match=r"loss\.teacher: .* does not exist"):
        lamina.train(settings(tmp_path, model_folder, "run", loss=loss))


@pytest.mark.parametrize("rows", ["sorted", "shuffled"])
def test_a_verification_has_both_labels(rows: str, tmp_path: Path, model_folder: Path) -> None:
    labels = [number < 210 for number in range(260)] if rows == "sorted" else [n % 10 != 4 for n in range(100)]
    lines = [
        {"prompt": f"ask {n}", "completion": "yes" + "!" * (n % 9), "label": label} for n, label in enumerate(labels)
    ]
    write_lines(tmp_path / "labels.jsonl", lines)
    assert lamina.verify(preference_settings(tmp_path, model_folder, {"type": "kto"}, "run")).passed
