"""`lamina.train` from what is in memory: the run is that of a file, can be resumed, moved and loaded, and leaves the
model as it was."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

import lamina
from lamina.adapters.load import load
from lamina.config import load_config
from lamina.config.methods.lora import LoraConfig
from lamina.errors import ConfigError, DataError, RunError, StorageError
from lamina.runs.events import Evaluation, Event, Step
from tests.support.training import write_rows


def _model(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def _digest(run: lamina.Run) -> str:
    assert run.summary is not None
    return run.summary.adapter_digest


def test_rows_train_like_their_file(tmp_path: Path, model_folder: Path, short: dict[str, Any]) -> None:
    """In memory or from a file, and with a model in memory or by its name: the same adapter, bit for bit."""
    path = write_rows(tmp_path / "rows.jsonl")
    of_file = lamina.train(path, **{**short, "output_dir": tmp_path / "file"})
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    of_rows = lamina.train(data=rows, **{**short, "output_dir": tmp_path / "rows"})
    model = _model(model_folder)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trainable = [name for name, each in model.named_parameters() if each.requires_grad]
    of_model = lamina.train(data=rows, **{**short, "model": model, "output_dir": tmp_path / "model"})

    assert _digest(of_file) == _digest(of_rows) == _digest(of_model)
    assert of_model.config.model == str(model_folder), "the folder has these weights, so nothing was copied"
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert [name for name, each in model.named_parameters() if each.requires_grad] == trainable
    assert [path.name for path in of_rows.inputs.iterdir()] == [Path(str(of_rows.config.data.train)).name]


def test_a_changed_model_is_kept_with_the_run(
    tmp_path: Path, model_folder: Path, short: dict[str, Any], rows: list[dict[str, Any]]
) -> None:
    model = _model(model_folder)
    with torch.no_grad():
        model.get_parameter("model.layers.0.mlp.up_proj.weight").mul_(1.5)
    run = lamina.train(data=rows, **{**short, "model": model})
    kept = Path(run.config.model)
    assert kept.parent == run.inputs
    assert torch.equal(
        _model(kept).get_parameter("model.layers.0.mlp.up_proj.weight"),
        model.get_parameter("model.layers.0.mlp.up_proj.weight"),
    )
    moved = Path(shutil.move(run.path, tmp_path / "moved"))
    loaded = load(moved)  # the lock is that of the changed weights
    assert not loaded.notes
    assert Path(lamina.load_run(moved).config.data.train).is_file()  # type: ignore[arg-type]


def test_a_model_without_a_folder_needs_a_tokenizer(
    tmp_path: Path, short: dict[str, Any], rows: list[dict[str, Any]], tokenizer: Any
) -> None:
    from tests.support.models_zoo import build_model

    model = build_model("llama", vocab_size=len(tokenizer))
    with pytest.raises(ConfigError, match=r"tokenizer: .* names no folder"):
        lamina.train(data=rows, **{**short, "model": model})
    run = lamina.train(data=rows, tokenizer=tokenizer, **{**short, "model": model})
    assert AutoTokenizer.from_pretrained(run.config.model).chat_template == tokenizer.chat_template
    assert lamina.generate(run.path, "hello", max_new_tokens=2)[0] is not None


def test_models_that_are_no_base_are_refused(
    model_folder: Path, short: dict[str, Any], rows: list[dict[str, Any]]
) -> None:
    peft = pytest.importorskip("peft")
    wrapped = peft.get_peft_model(_model(model_folder), peft.LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(ConfigError, match="has an adapter of peft on it"):
        lamina.train(data=rows, **{**short, "model": wrapped})
    with pytest.raises(ConfigError, match="quantization: quantizes the weights"):
        lamina.train(data=rows, quantization={"bits": 4}, **{**short, "model": _model(model_folder)})
    with pytest.raises(ConfigError, match=r"data\.add_tokens: adds tokens to a model that lamina loads"):
        lamina.train(data=rows, add_tokens=["<new>"], **{**short, "model": _model(model_folder)})
    with pytest.raises(ConfigError, match="a Linear is not a causal language model"):
        lamina.train(data=rows, **{**short, "model": torch.nn.Linear(2, 2)})


def test_mistakes_come_before_anything_is_written(
    tmp_path: Path, short: dict[str, Any], rows: list[dict[str, Any]]
) -> None:
    with pytest.raises(ConfigError, match=r"max_step: .*max_steps"):
        lamina.train(data=rows, **short, max_step=3)
    with pytest.raises(ConfigError, match=r"train\.optim"):
        lamina.train(data=rows, **short, optim="adam")
    assert not Path(short["output_dir"]).exists()
    with pytest.raises(DataError, match="train: has no rows"):
        lamina.train(data=[], **short)
    lamina.train(data=rows, **short)
    with pytest.raises(RunError, match="already holds a run"):
        lamina.train(data=rows[:-1], **short)
    assert len(list((tmp_path / "run" / "inputs").iterdir())) == 1


def test_splits(tmp_path: Path, short: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    datasets = pytest.importorskip("datasets")
    whole = datasets.Dataset.from_list(rows)
    splits = datasets.DatasetDict({"test": whole.select(range(4)), "train": whole.select(range(4, 24))})
    run = lamina.train(data=splits, **short)
    assert Path(str(run.config.data.eval)).name.startswith("eval-")
    assert [(file.rows) for file in run.manifest.data or []] == [20, 4]
    with pytest.raises(ConfigError, match="no split to train on"):
        lamina.train(data={"a": whole, "b": whole}, **{**short, "output_dir": tmp_path / "b"})


def test_several_evaluation_sets(short: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    seen: list[Event] = []
    sets = {"easy": rows[:4], "hard": rows[4:8]}
    run = lamina.train(data=rows[8:], eval_data=sets, on_event=seen.append, **short)
    assert isinstance(run.config.data.eval, dict) and run.config.data.eval.keys() == sets.keys()
    last = [event for event in seen if isinstance(event, Evaluation)][-1]
    assert {"easy", "hard"} <= {name for key in last.scalars() for name in sets if name in key}, last


def test_a_section_of_data_with_rows_to_evaluate_on(
    tmp_path: Path, short: dict[str, Any], rows: list[dict[str, Any]]
) -> None:
    path = write_rows(tmp_path / "rows.jsonl")
    run = lamina.train({"data": {"train": path, "max_length": 64}}, eval_data=rows[:5], **{**short, "max_length": 96})
    assert run.config.data.max_length == 96 and run.config.data.train == str(path)
    assert Path(str(run.config.data.eval)).parent == run.inputs


def test_formatting_goes_over_files_too(tmp_path: Path, short: dict[str, Any]) -> None:
    path = write_rows(tmp_path / "rows.jsonl")

    def swap(row: dict[str, Any]) -> dict[str, Any]:
        return {"prompt": row["completion"], "completion": row["prompt"]}

    run = lamina.train(data=path, formatting_func=swap, **short)
    first = Path(str(run.config.data.train)).read_text().splitlines()[0]
    assert first == '{"prompt": "green!", "completion": "red green 0"}'


def test_events_metrics_and_overrides(short: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    seen: list[Event] = []
    others: list[Event] = []

    def length(answer: str, expected: str) -> float:
        return float(len(answer) - len(expected))

    run = lamina.train(
        data=rows,
        on_event=seen.append,
        callbacks=[others.append],
        metrics={"longer": length, "exact": "exact_match"},
        overrides=["train.max_steps=2"],
        **short,
    )
    assert len([event for event in seen if isinstance(event, Step)]) == 2 and seen == others
    assert run.scores is not None and run.scores.keys() == {"longer", "exact"}
    assert run.scores["exact"].keys() == {"base", "adapter"}


def test_resuming_in_memory(tmp_path: Path, short: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    whole = lamina.train(data=rows, **{**short, "output_dir": tmp_path / "whole"})

    def stop(event: Event) -> None:
        if isinstance(event, Step) and event.step == 2:
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        lamina.train(data=rows, callbacks=[stop], **short)
    run = lamina.train(data=rows, resume=True, **short)
    assert _digest(run) == _digest(whole)


def test_a_method_of_peft(tmp_path: Path, short: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=3, lora_alpha=5, target_modules={"v_proj", "q_proj"}, task_type="CAUSAL_LM")
    run = lamina.train(data=rows, method=config, **short)
    assert (run.config.method.type, run.config.method.r, run.config.method.lora_alpha) == ("lora", 3, 5)  # type: ignore[attr-defined]
    assert run.summary is not None and run.summary.trainable_parameters == 2 * 3 * (96 + 64)
    default = lamina.train(data=rows, method=peft.LoraConfig(), **{**short, "output_dir": tmp_path / "default"})
    assert default.config.method.target_modules == ["q_proj", "v_proj"], "those that peft takes"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"metrics": "exact_macht"}, "metrics: 'exact_macht' is not one of"),
        ({"metrics": [lambda answer: 1.0]}, r"metrics\[0\]: .* takes \(answer\)"),
        ({"metrics": "exact_match", "eval_data": None}, "metrics: are measured on evaluation rows"),
        ({"callbacks": [3]}, "callbacks: a int cannot be called"),
        ({"model": torch.nn.Linear(2, 2)}, "model: a Linear is not a causal language model"),
        ({"model": AutoModelForCausalLM}, "model: AutoModelForCausalLM is a class, not a model"),
        ({"method": LoraConfig}, "method: LoraConfig is a class, not a configuration"),
    ],
    ids=["metric", "signature", "rows", "callback", "module", "class", "config"],
)
def test_mistakes_are_found_before_training(
    given: dict[str, Any], says: str, short: dict[str, Any], rows: list[dict[str, Any]]
) -> None:
    seen: list[Event] = []
    with pytest.raises(ConfigError, match=says):
        lamina.train(**{"data": rows, "on_event": seen.append, **short, **given})
    assert not any(isinstance(event, Step) for event in seen)


def test_a_metric_that_fails_does_not_lose_the_run(short: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """One function may stand for a list of one."""
    events: list[Event] = []
    with pytest.raises(DataError, match="gave nan, which is not a finite number") as found:
        lamina.train(data=rows, metrics=lambda answer, expected: float("nan"), callbacks=events.append, **short)
    assert events and "Training is finished: lamina.load_run(" in found.value.__notes__[0]


def test_another_dtype_than_the_model_in_memory_has_is_refused(
    model_folder: Path, short: dict[str, Any], rows: list[dict[str, Any]]
) -> None:
    with pytest.raises(ConfigError, match="dtype: is 'bfloat16', and the model in memory is float32"):
        lamina.train(data=rows, **{**short, "model": _model(model_folder), "dtype": "bfloat16"})


def test_a_method_as_an_object_of_lamina_s_own(short: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    method = load_config({"data": {"train": "x"}, "method": {"type": "lora", "r": 3}}).method
    assert isinstance(method, LoraConfig)
    run = lamina.train(data=rows, **{**short, "method": method})
    assert isinstance(run.config.method, LoraConfig)
    assert run.config.method.r == 3


def test_folders_are_new_ones(
    tmp_path: Path, short: dict[str, Any], rows: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    del short["output_dir"]
    first, second = (lamina.train(data=rows, **{**short, "max_steps": 1}) for _ in range(2))
    assert first.path != second.path and first.path.parent == Path("runs")


def test_errors_about_the_folder_say_what_to_do_in_python(rows: list[dict[str, Any]], short: dict[str, Any]) -> None:
    folder = Path(short["output_dir"])
    folder.write_text("a file")
    with pytest.raises(StorageError, match=r"run: .*a file is in the place of a folder"):
        lamina.train(data=rows, **short)
    folder.unlink()
    with pytest.raises(
        ConfigError, match=r"^resume: finds no run .*lamina\.train\('FOLDER/config\.yaml', resume=True\)"
    ):
        lamina.train(data=rows, resume=True, **short)
    run = lamina.train(data=rows, **short)
    with pytest.raises(RunError, match="pass resume=True to go on") as caught:
        lamina.train(data=rows, **short)
    assert "--" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"'nope' is not a metric of this run\. Fix: use one of loss, "):
        run.plot("nope")


def test_columns_of_a_frame_may_be_numbers(rows: list[dict[str, Any]], short: dict[str, Any]) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame([list(row.values()) for row in rows])
    run = lamina.train(data=frame, columns={"prompt": 0, "completion": 1}, **{**short, "max_steps": 1})
    assert run.config.data.columns == {"prompt": "0", "completion": "1"}
