"""A whole run on the two-layer model: what it leaves, and what it says."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import lamina
from lamina.compute.kernels import native
from lamina.errors import ConfigError, DataError, ModelError, RunError, TrainingError
from lamina.runs import Run
from lamina.runs.events import CheckpointSaved, Evaluation, Event, FirstExample, Note, Step
from lamina.training import backward
from lamina.training.checkpoint import newest_checkpoint
from lamina.training.step import EvaluationResult, evaluate_loss
from tests.support.models_zoo import build_model, build_tokenizer
from tests.support.training import settings, write_rows

SUMMARY_KEYS = {
    "run",
    "adapter",
    "steps",
    "tokens",
    "supervised_tokens",
    "train_loss_first",
    "train_loss_last",
    "eval_loss_first",
    "eval_loss",
    "tokens_per_second",
    "step_seconds_median",
    "peak_memory_bytes",
    "trainable_parameters",
    "total_parameters",
    "adapter_digest",
}


@pytest.fixture(scope="module")
def finished(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, list[Event]]:
    events: list[Event] = []
    run = lamina.train(settings(tmp_path_factory.mktemp("run"), model_folder), events.append)
    return run, events


def test_summary_has_the_promised_figures(finished: tuple[Run, list[Event]]) -> None:
    summary = finished[0].summary
    assert summary is not None
    assert summary.as_json().keys() >= SUMMARY_KEYS
    assert summary.steps == 12
    assert summary.eval_loss < summary.eval_loss_first
    assert summary.train_loss_last < summary.train_loss_first
    # r * (in + out) for each of the seven linear layers of the two blocks
    assert summary.trainable_parameters == 2 * 4 * (96 + 64 + 64 + 96 + 128 + 128 + 128)
    assert summary.peak_memory_bytes > 10**7


def test_run_directory_is_complete(finished: tuple[Run, list[Event]]) -> None:
    run = finished[0]
    assert run.config == lamina.load_config(run.config_path)
    manifest = run.manifest
    assert manifest.status == "finished"
    assert manifest.base is not None and manifest.versions is not None
    assert manifest.base.tensors.startswith("sha256:")
    assert manifest.versions["torch"] == torch.__version__
    assert manifest.kernels == ("compiled" if native.unavailable() is None else "plain")
    report = json.loads(run.data_report_path.read_text())
    assert report["files"][0]["train_rows"] + report["files"][0]["eval_rows"] == 24
    kept = sorted(path.name for path in run.checkpoints.iterdir())
    assert [name for name in kept if name.startswith("step")] == ["step-00000009", "step-00000012"]
    assert len([name for name in kept if name.startswith("best")]) == 1
    assert sorted(path.name for path in run.adapter.iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "chat_template.jinja",
        "lamina.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


def test_metrics_hold_every_event_once(finished: tuple[Run, list[Event]]) -> None:
    run, events = finished
    written = [event for event in events if event.kind != "progress"]
    assert written == list(run.events())
    lines = [json.loads(line) for line in run.metrics_path.read_text().splitlines()]
    assert [event.as_json() for event in written] == lines
    steps = [event.step for event in events if event.kind == "step"]
    assert steps == list(range(1, 13))
    assert [e.step for e in events if e.kind == "eval"] == [0, 4, 8, 12]


def test_token_counts_are_those_of_the_data(finished: tuple[Run, list[Event]]) -> None:
    run, events = finished
    steps = [event for event in events if isinstance(event, Step)]
    assert run.summary is not None
    assert run.summary.tokens == sum(step.tokens for step in steps)
    epoch = [step.tokens for step in steps[:5]]  # 19 training rows, 4 in a step
    assert sum(epoch) == json.loads(run.data_report_path.read_text())["train"]["tokens"]


def test_adapter_loads_with_a_passing_certificate(finished: tuple[Run, list[Event]]) -> None:
    loaded = lamina.load(finished[0].path, dtype="float32")
    certificate = loaded.certify()
    assert certificate.passed
    assert certificate.max_logit_difference == 0.0
    assert certificate.effect > 0.01


def test_the_coloured_example_is_the_answer(finished: tuple[Run, list[Event]]) -> None:
    (example,) = [event for event in finished[1] if isinstance(event, FirstExample)]
    green = "".join(s.text for s in example.segments if s.supervised)
    assert green.endswith("!<|im_end|>")
    assert "assistant" not in green


def scripted_evaluation(monkeypatch: pytest.MonkeyPatch, script: list[float]) -> list[float]:
    """Lets training believe in a script of evaluation losses (the bare base's first); gives the real ones."""
    real: list[float] = []

    def evaluate(*args: Any) -> EvaluationResult:
        real.append(evaluate_loss(*args).loss)
        return EvaluationResult(script[len(real) - 1], {})

    monkeypatch.setattr("lamina.training.loop.evaluate_loss", evaluate)
    return real


def test_best_adapter_is_kept(model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The adapter saved is that of the best evaluation, and its loss is the one reported."""
    real = scripted_evaluation(monkeypatch, [5.0, 3.0, 2.0, 4.0])
    run = lamina.train(settings(tmp_path, model_folder))
    assert run.summary is not None
    assert run.summary.eval_loss == 2.0
    assert run.summary.adapter_step == 8
    assert lamina.evaluate(run.path).loss == pytest.approx(real[2], rel=1e-5)
    assert real[2] != pytest.approx(real[3], rel=1e-3)


def test_steps_as_shares_of_the_run(model_folder: Path, tmp_path: Path) -> None:
    run = lamina.train(settings(tmp_path, model_folder, train={"eval_steps": 0.25, "save_steps": 0.4}))
    assert [event.step for event in run.events(Evaluation) if event.step] == [3, 6, 9, 12]
    assert [event.step for event in run.events(CheckpointSaved)] == [5, 10, 12]


def test_the_last_adapter_is_kept_when_asked_for(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = scripted_evaluation(monkeypatch, [5.0, 3.0, 2.0, 4.0])
    run = lamina.train(settings(tmp_path, model_folder, train={"load_best_model_at_end": False}))
    assert run.summary is not None
    assert run.summary.eval_loss == 4.0
    assert lamina.evaluate(run.path).loss == pytest.approx(real[3], rel=1e-5)


def test_early_stopping(model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted_evaluation(monkeypatch, [5.0, 3.0, 2.0, 1.99, 1.98, 1.0])
    changes = {"eval_steps": 1, "early_stopping_patience": 2, "early_stopping_threshold": 0.1}
    run = lamina.train(settings(tmp_path, model_folder, train=changes))
    assert run.summary is not None
    assert run.summary.steps == 4
    assert run.summary.adapter_step == 2
    assert any("Stopped early: 2 evaluations" in note.message for note in run.events(Note))


def test_a_used_directory_is_not_overwritten(model_folder: Path, tmp_path: Path) -> None:
    values = settings(tmp_path, model_folder, train={"max_steps": 2})
    lamina.train(values)
    with pytest.raises(RunError, match="already holds a run"):
        lamina.train(values)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(RunError, match="other files"):
        lamina.train({**values, "output_dir": str(tmp_path / "full")})


def test_resume_of_a_finished_run_changes_nothing(model_folder: Path, tmp_path: Path) -> None:
    values = settings(tmp_path, model_folder, train={"max_steps": 2})
    before = lamina.train(values).summary
    events: list[Event] = []
    assert lamina.train(values, events.append, resume=True).summary == before
    assert [event.kind for event in events] == ["note"]


def test_resume_refuses_another_configuration_and_other_data(model_folder: Path, tmp_path: Path) -> None:
    values = settings(tmp_path, model_folder, train={"max_steps": 2})
    run = lamina.train(values)
    with pytest.raises(RunError, match=r"train.learning_rate: 0.005 -> 0.1"):
        lamina.train(lamina.load_config(values, ["train.learning_rate=0.1"]), resume=True)
    run.record(summary=None)
    write_rows(tmp_path / "rows.jsonl", count=30)
    with pytest.raises(RunError, match=r"changed since it was started: data file .*rows\.jsonl \("):
        lamina.train(values, resume=True)


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("checkpointing", [True, False])
def test_packing_and_checkpointing_give_falling_losses(
    model_folder: Path, tmp_path: Path, packing: bool, checkpointing: bool
) -> None:
    data, train = {"packing": packing}, {"gradient_checkpointing": checkpointing}
    run = lamina.train(settings(tmp_path, model_folder, data=data, train=train))
    assert run.summary is not None
    assert run.summary.eval_loss < run.summary.eval_loss_first


def test_checkpointing_changes_no_number(model_folder: Path, tmp_path: Path) -> None:
    digests = set()
    for name, checkpointing in (("with", True), ("half", "selective"), ("without", False)):
        values = settings(tmp_path, model_folder, name, train={"gradient_checkpointing": checkpointing, "max_steps": 4})
        summary = lamina.train(values).summary
        assert summary is not None
        digests.add(summary.adapter_digest)
    assert len(digests) == 1


def test_a_broken_base_is_one_clear_error(model_folder: Path, tmp_path: Path) -> None:
    broken = AutoModelForCausalLM.from_pretrained(model_folder)
    broken.model.layers[0].mlp.down_proj.weight.data.fill_(float("nan"))
    broken.save_pretrained(tmp_path / "broken")
    AutoTokenizer.from_pretrained(model_folder).save_pretrained(tmp_path / "broken")
    with pytest.raises(ModelError, match="logits are not finite, before any training"):
        lamina.train(settings(tmp_path, tmp_path / "broken"))


def nan_at(monkeypatch: pytest.MonkeyPatch, bad: set[int]) -> None:
    """Makes the loss of some steps (counted in micro-batches, two a step) NaN, gradients included."""
    calls = iter(range(10**6))

    real = backward.Parts.__call__

    def call(self: backward.Parts, place: int, *rest: Any) -> Iterator[torch.Tensor]:
        for part in real(self, place, *rest):
            if next(calls) // 2 + 1 in bad:
                part = part * float("nan")
                self._found[place][-1] = replace(self._found[place][-1], total=part.detach())
            yield part

    monkeypatch.setattr(backward.Parts, "__call__", call)


def without_eval(folder: Path, model: Path) -> dict[str, Any]:
    return settings(folder, model, data={"eval": None}, train={"eval_steps": None})


def test_nan_at_the_first_step_is_one_clear_error(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nan_at(monkeypatch, {1})
    with pytest.raises(TrainingError, match=r"step 1: loss nan.*not finite .*rows \d+.*Fix: lower train.learning_rate"):
        lamina.train(without_eval(tmp_path, model_folder))


def test_a_nan_step_is_named_and_changes_nothing(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nan_at(monkeypatch, {3})
    run = lamina.train(without_eval(tmp_path, model_folder))
    assert run.summary is not None
    assert run.summary.skipped_steps == 1
    (note,) = [note for note in run.events(Note) if "skipped" in note.message]
    assert note.step == 3
    assert note.rows is not None and len(note.rows) == 4
    assert 3 not in [event.step for event in run.events(Step)]
    assert run.summary.train_loss_last < run.summary.train_loss_first


def test_nan_steps_in_a_row_end_the_run_with_its_checkpoint(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nan_at(monkeypatch, set(range(5, 100)))
    values = without_eval(tmp_path, model_folder)
    with pytest.raises(TrainingError, match=r"step 9: loss nan.*5 steps in a row"):
        lamina.train(values)
    assert newest_checkpoint(Path(values["output_dir"]) / "checkpoints") is not None


def test_tensorboard_when_asked(model_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    run = lamina.train(settings(tmp_path, model_folder, train={"max_steps": 2, "report_to": ["tensorboard"]}))
    assert list((run.path / "tensorboard").glob("events.out.tfevents.*"))


def test_data_without_a_stop_token_is_refused(model_folder: Path, tmp_path: Path) -> None:
    rows = tmp_path / "long.jsonl"
    rows.write_text(
        "".join(json.dumps({"prompt": "go", "completion": "on and on " * 15 + str(i)}) + "\n" for i in range(4))
    )
    values = settings(tmp_path, model_folder, data={"train": str(rows), "overlong": "cut", "max_length": 64})
    with pytest.raises(DataError, match="no training example teaches the stop token") as caught:
        lamina.train(values)
    (shortest,) = re.findall(r"the shortest row has (\d+) tokens", str(caught.value))
    values["data"]["max_length"] = int(shortest)
    assert lamina.train(values).summary


@pytest.fixture(scope="module")
def table_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2, whose positions are 64 rows of a table."""
    folder = tmp_path_factory.mktemp("table")
    build_model("gpt2", vocab_size=259, n_positions=64).save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ({"type": "lora"}, r"65 is more than the model's 64 positions .* Fix: use 64 at most"),
        (
            {"type": "prompt_tuning", "num_virtual_tokens": 10},
            r"rows of up to 64 tokens with 10 virtual ones before them are too long: .* Fix: use 54 at most",
        ),
    ],
)
def test_rows_beyond_a_position_table_are_one_clear_error(
    table_folder: Path, tmp_path: Path, method: dict[str, Any], words: str
) -> None:
    length = 65 if method["type"] == "lora" else 64
    values = settings(tmp_path, table_folder, data={"max_length": length, "overlong": "cut"}) | {"method": method}
    with Path(values["data"]["train"]).open("a") as rows:
        rows.write(json.dumps({"prompt": "say " + "a" * 30, "completion": "b" * 40}) + "\n")
    with pytest.raises(ConfigError, match=f"data.max_length: {words}"):
        lamina.train(values)


def test_rows_beyond_rotary_positions_are_an_error_or_follow_the_model(tmp_path: Path) -> None:
    build_model("llama", vocab_size=259, max_position_embeddings=72).save_pretrained(tmp_path / "base")
    build_tokenizer().save_pretrained(tmp_path / "base")
    values = settings(tmp_path, tmp_path / "base", train={"max_steps": 1})
    with pytest.raises(ConfigError, match=r"data\.max_length: 128 is more than the model's 72 positions"):
        lamina.train(values)
    del values["data"]["max_length"]
    run = lamina.train({**values, "output_dir": str(tmp_path / "other")})
    report = json.loads(run.data_report_path.read_text())
    assert report["train"]["longest"] <= 72
    assert any("data.max_length is 72 instead of the default 1024" in note for note in report["notes"])
