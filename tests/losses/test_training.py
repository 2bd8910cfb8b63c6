"""Whole runs with each loss over answers, on the two-layer model."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import lamina
from lamina.errors import ConfigError, DataError, TrainingError
from lamina.runs import Run
from lamina.runs.events import Event, Step
from tests.support.preferences import losses_of, preference_settings, write_labels, write_lines, write_pairs
from tests.support.training import notes_into, settings, write_rows

PAIR_LOSSES: dict[str, dict[str, Any]] = {
    "dpo": {"type": "dpo"},
    "rpo": {"type": "dpo", "loss_type": ["sigmoid", "sft"]},
    "ipo": {"type": "dpo", "loss_type": ["ipo"]},
    "orpo": {"type": "orpo"},
    "simpo": {"type": "simpo"},
    "cpo": {"type": "cpo"},
    "reward": {"type": "reward", "center_rewards_coefficient": 0.01},
}


def tensors_of(run: Run) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in lamina.load(run.path).injection.tensors().items()}


@pytest.mark.parametrize("loss", [*PAIR_LOSSES.values(), {"type": "kto"}], ids=[*PAIR_LOSSES, "kto"])
def test_it_learns_and_says_so(loss: dict[str, Any], tmp_path: Path, model_folder: Path) -> None:
    run = lamina.train(preference_settings(tmp_path, model_folder, loss, "run"))
    summary = run.summary
    assert summary is not None and summary.eval_metrics is not None and summary.eval_metrics_first is not None
    assert summary.loss_type == loss["type"]
    assert (summary.reference is not None) == (loss["type"] in ("dpo", "kto"))
    assert summary.eval_loss is not None and summary.eval_loss_first is not None
    assert summary.eval_loss < summary.eval_loss_first
    assert summary.eval_metrics["rewards/margins"] > summary.eval_metrics_first["rewards/margins"]
    for step in run.events(Step):
        assert "rewards/chosen" in step.metrics or "rewards/rejected" in step.metrics


@pytest.mark.parametrize("loss", [*PAIR_LOSSES.values(), {"type": "kto"}], ids=[*PAIR_LOSSES, "kto"])
def test_micro_batches_and_packing_change_nothing(loss: dict[str, Any], tmp_path: Path, model_folder: Path) -> None:
    """The same eight rows in a step: at once, in four micro-batches, and one by one."""
    found = []
    for size, accumulate in ((8, 1), (2, 4), (1, 8)):
        train = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulate, "max_steps": 4}
        changes = {"train": train, "data": {"packing": False}}
        run = lamina.train(preference_settings(tmp_path, model_folder, loss, f"run-{size}", **changes))
        found.append((losses_of(run), tensors_of(run)))
    for losses, tensors in found[1:]:
        assert losses == pytest.approx(found[0][0], rel=1e-4)
        for name, tensor in found[0][1].items():
            torch.testing.assert_close(tensors[name], tensor, rtol=2e-2, atol=2e-3)


@pytest.mark.parametrize("loss", [{"type": "dpo"}, {"type": "kto"}, {"type": "reward"}], ids=["dpo", "kto", "reward"])
def test_a_run_that_was_cut_ends_the_same_bit_for_bit(
    loss: dict[str, Any], tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dropout = {"lora_dropout": 0.1}
    whole = lamina.train(preference_settings(tmp_path, model_folder, loss, "whole", method=dropout))
    values = preference_settings(tmp_path, model_folder, loss, "cut", method=dropout)

    class Cut(Exception):
        pass

    def cut(event: Event) -> None:
        if isinstance(event, Step) and event.step == 5:
            raise Cut

    with pytest.raises(Cut):
        lamina.train(values, cut)
    resumed = lamina.train(values, resume=True)
    ours, theirs = tensors_of(resumed), tensors_of(whole)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert ours.keys() == theirs.keys()
    assert resumed.summary is not None and whole.summary is not None
    assert resumed.summary.eval_metrics == whole.summary.eval_metrics


def test_the_first_loss_of_dpo_is_log_2(tmp_path: Path, model_folder: Path) -> None:
    run = lamina.train(preference_settings(tmp_path, model_folder, {"type": "dpo"}, "run"))
    assert losses_of(run)[0] == pytest.approx(math.log(2), abs=1e-5)
    assert run.summary is not None
    assert run.summary.eval_loss_first == pytest.approx(math.log(2), abs=1e-6)


def sft(tmp_path: Path, model_folder: Path, name: str = "sft", **changes: Any) -> Run:
    return lamina.train(settings(tmp_path, model_folder, name, **changes))


def test_the_start_adapter_is_the_reference(tmp_path: Path, model_folder: Path) -> None:
    start = sft(tmp_path, model_folder)
    assert start.summary is not None
    values = preference_settings(tmp_path, model_folder, {"type": "dpo"}, "run")
    values["method"] = {"from": str(start.path)}
    run = lamina.train(values)
    summary = run.summary
    assert summary is not None
    assert summary.reference == start.summary.adapter_digest
    assert losses_of(run)[0] == pytest.approx(math.log(2), abs=1e-5), "the reference is not the base"
    assert summary.eval_loss_first == pytest.approx(math.log(2), abs=1e-6), "evaluated as training starts"
    assert tensors_of(run).keys() == tensors_of(start).keys()
    loaded = lamina.load(run.path)
    assert loaded.injection.layers.keys() == lamina.load(start.path).injection.layers.keys()
    theirs = lamina.load(start.path).adapter.config
    assert loaded.adapter.config == theirs.model_copy(update={"lora_dropout": 0.0}), "no dropout beside a reference"
    assert "from" not in json.loads((run.adapter / "lamina.json").read_text())["method"]


def test_the_start_may_go_after_the_run_began(tmp_path: Path, model_folder: Path) -> None:
    import shutil

    start = sft(tmp_path, model_folder)
    values = preference_settings(tmp_path, model_folder, {"type": "dpo"}, "run")
    values["method"] = {"from": str(start.path)}
    whole = lamina.train(values)
    shutil.rmtree(start.path)
    evaluation = lamina.evaluate(whole.path)
    assert whole.summary is not None
    assert evaluation.loss == pytest.approx(whole.summary.eval_loss, rel=1e-5)


def test_the_base_may_be_the_reference_of_a_start_adapter(tmp_path: Path, model_folder: Path) -> None:
    """Then the model is not its reference at the start; it was asked for, so it is no error."""
    start, said = sft(tmp_path, model_folder), list[str]()
    values = preference_settings(tmp_path, model_folder, {"type": "dpo", "reference": "base"}, "run")
    values["method"] = {"from": str(start.path)}
    run = lamina.train(values, notes_into(said))
    assert any("training does not start from the reference" in message for message in said)
    assert losses_of(run)[0] != pytest.approx(math.log(2), abs=1e-3)


@pytest.mark.parametrize("loss", ["cross_entropy", "simpo"])
def test_any_loss_can_start_from_an_adapter(loss: str, tmp_path: Path, model_folder: Path) -> None:
    start = sft(tmp_path, model_folder)
    assert start.summary is not None
    if loss == "cross_entropy":
        values = settings(tmp_path, model_folder, "run")
    else:
        values = preference_settings(tmp_path, model_folder, {"type": loss}, "run")
    values["method"] = {"type": "lora", "from": str(start.adapter), "lora_dropout": 0.0}
    run = lamina.train(values)
    assert run.summary is not None
    if loss == "cross_entropy":
        assert run.summary.eval_loss_first == pytest.approx(start.summary.eval_loss, rel=1e-5)


def test_a_start_of_another_base_is_refused(tmp_path: Path, model_folder: Path) -> None:
    from tests.support.models_zoo import build_model, build_tokenizer

    other = tmp_path / "other"
    build_model("llama", vocab_size=len(build_tokenizer()), rms_norm_eps=1e-3, hidden_size=48).save_pretrained(other)
    with torch.no_grad():
        model = build_model("llama", vocab_size=len(build_tokenizer()))
        next(model.parameters()).mul_(1.5)
        model.save_pretrained(other)
    build_tokenizer().save_pretrained(other)
    start = sft(tmp_path, other)
    values = preference_settings(tmp_path, model_folder, {"type": "dpo"}, "run")
    values["method"] = {"from": str(start.path)}
    with pytest.raises(ConfigError, match=r"method\.from: .* was trained on another base"):
        lamina.train(values)
    values["method"] = {"type": "dora", "from": str(start.path)}
    with pytest.raises(ConfigError, match=r"set method\.type to lora"):
        lamina.train(values)
    values["method"] = {"from": str(tmp_path / "nowhere")}
    with pytest.raises(ConfigError, match=r"no such run or adapter"):
        lamina.train(values)


def test_a_wrong_reference_ends_the_run_before_it_trains(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lamina.training import setup

    real = setup.with_reference

    def wrong(side: Any, *rest: Any) -> Any:
        found = real(side, *rest)
        return found.with_values({name: column - 3.0 for name, column in found.values.items()})

    monkeypatch.setattr(setup, "with_reference", wrong)
    with pytest.raises(TrainingError, match="the reference is not the model that training starts from"):
        lamina.train(preference_settings(tmp_path, model_folder, {"type": "dpo"}, "run"))


def test_the_reference_is_computed_once_and_cached(tmp_path: Path, model_folder: Path) -> None:
    said: list[str] = []
    write_pairs(tmp_path / "pairs.jsonl", 19)  # as no other test
    for name in ("one", "two"):
        said.clear()
        lamina.train(preference_settings(tmp_path, model_folder, {"type": "dpo"}, name), notes_into(said))
        assert any("reference's log-probabilities" in message for message in said) == (name == "one")


def test_evaluation_of_pairs(tmp_path: Path, model_folder: Path) -> None:
    run = lamina.train(preference_settings(tmp_path, model_folder, {"type": "dpo"}, "run"))
    found = lamina.evaluate(run.path)
    assert run.summary is not None and run.summary.eval_metrics is not None
    share = found.preference_accuracy
    assert share is not None
    assert share.rows == found.rows
    assert share.low <= share.value <= share.high
    assert share.value == pytest.approx(run.summary.eval_metrics["rewards/accuracies"])
    assert found.margin == pytest.approx(run.summary.eval_metrics["rewards/margins"], rel=1e-4)
    assert found.as_json()["preference_accuracy"].keys() == {"value", "low", "high", "rows"}
    more = write_pairs(tmp_path / "more.jsonl", 7)
    assert lamina.evaluate(run.path, more).rows == 7


def test_the_interval_of_preferences_is_that_of_the_pairs_that_were_compared(
    tmp_path: Path, model_folder: Path
) -> None:
    """Of several sets the figures are those of one; beside pairs, KTO has answers that are no pairs."""
    sets = {name: str(write_pairs(tmp_path / f"{name}.jsonl", rows)) for name, rows in (("one", 5), ("two", 9))}
    run = lamina.train(preference_settings(tmp_path, model_folder, {"type": "dpo"}, "dpo", data={"eval": sets}))
    share = lamina.evaluate(run.path).preference_accuracy
    assert share is not None and share.rows == 5
    mixed = [{"path": sets["two"]}, {"path": str(write_labels(tmp_path / "more.jsonl", 9))}]
    data = {"train": mixed, "eval": 0.4}
    run = lamina.train(preference_settings(tmp_path, model_folder, {"type": "kto"}, "kto", data=data))
    pairs, labels = (file["eval_rows"] for file in json.loads(run.data_report_path.read_text())["files"])
    found = lamina.evaluate(run.path)
    assert found.preference_accuracy is not None and labels
    assert (found.preference_accuracy.rows, found.rows) == (pairs, pairs + labels)


def test_kto_evaluates_with_the_weights_it_learned_with(tmp_path: Path, model_folder: Path) -> None:
    rows = [json.loads(line) for line in write_labels(tmp_path / "labels.jsonl").read_text().splitlines()]
    write_lines(tmp_path / "labels.jsonl", rows[:36])
    run = lamina.train(preference_settings(tmp_path, model_folder, {"type": "kto"}, "run"))
    assert run.summary is not None
    assert run.summary.figures["desirable_weight"] > 1.5
    assert lamina.evaluate(run.path).loss == pytest.approx(run.summary.eval_loss, rel=1e-4)
    assert lamina.evaluate(run.path).preference_accuracy is None, "there are no pairs"
    pairs = lamina.evaluate(run.path, write_pairs(tmp_path / "pairs.jsonl", 5))
    assert pairs.preference_accuracy is not None and pairs.preference_accuracy.rows == 5


def test_kto_with_one_label_is_an_error(tmp_path: Path, model_folder: Path) -> None:
    rows = [json.loads(line) for line in write_labels(tmp_path / "all.jsonl").read_text().splitlines()]
    write_lines(tmp_path / "labels.jsonl", [row for row in rows if row["label"]])
    with pytest.raises(DataError, match=r"all .* training answers are labeled desirable"):
        lamina.train(preference_settings(tmp_path, model_folder, {"type": "kto"}, "run"))


def test_equal_answers_and_long_pairs_are_dropped_whole(tmp_path: Path, model_folder: Path) -> None:
    rows = [json.loads(line) for line in write_pairs(tmp_path / "all.jsonl").read_text().splitlines()]
    rows[0]["rejected"] = rows[0]["chosen"]
    rows[1]["chosen"] = "long " * 60
    rows[2]["rejected"] = ""
    write_lines(tmp_path / "pairs.jsonl", rows)
    run = lamina.train(preference_settings(tmp_path, model_folder, {"type": "dpo"}, "run"))
    report = json.loads(run.data_report_path.read_text())["files"][0]
    assert {name: rows["first"] for name, rows in report["dropped"].items()} == {
        "same_answers": [1],
        "longer_than_max_length": [2],
        "empty_answer": [3],
    }
    assert report["cut"]["count"] == 0
    assert report["train_rows"] + report["eval_rows"] == 21


def test_rows_that_a_loss_does_not_take(tmp_path: Path, model_folder: Path) -> None:
    values = preference_settings(tmp_path, model_folder, {"type": "dpo"}, "run")
    values["data"]["train"] = str(write_rows(tmp_path / "rows.jsonl"))
    with pytest.raises(DataError, match="pairs of a chosen and a rejected answer"):
        lamina.train(values)


def test_distillation_from_the_base_with_a_prompt(tmp_path: Path, model_folder: Path) -> None:
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("Swap the words, and be brief!", encoding="utf-8")
    loss = {"type": "distillation", "teacher_prompt": str(prompt)}
    values = settings(tmp_path, model_folder, "run", loss=loss, method={"lora_dropout": 0.0})
    run = lamina.train(values)
    assert run.summary is not None
    assert run.summary.eval_loss is not None and run.summary.eval_loss_first is not None
    assert 0 < run.summary.eval_loss < run.summary.eval_loss_first
    assert lamina.evaluate(run.path).loss == pytest.approx(run.summary.eval_loss, rel=1e-4)


def test_distillation_from_another_model(tmp_path: Path, model_folder: Path) -> None:
    from tests.support.models_zoo import build_model, build_tokenizer

    teacher = tmp_path / "teacher"
    build_model("qwen2", vocab_size=len(build_tokenizer())).save_pretrained(teacher)
    build_tokenizer().save_pretrained(teacher)
    loss = {"type": "distillation", "teacher": str(teacher), "beta": 0.5}
    run = lamina.train(settings(tmp_path, model_folder, "run", loss=loss, method={"lora_dropout": 0.0}))
    assert run.summary is not None
    assert run.summary.eval_loss is not None and run.summary.eval_loss_first is not None
    assert 0 < run.summary.eval_loss < run.summary.eval_loss_first
