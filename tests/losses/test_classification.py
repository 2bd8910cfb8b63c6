"""Sequence classification: trained, saved as peft's SEQ_CLS, loaded by it with the same probabilities, evaluated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import lamina
from lamina.adapters.adapter import read_adapter
from lamina.config import load_config
from lamina.errors import AdapterError, ConfigError, DataError
from lamina.evaluation.classification import class_scores
from lamina.runs import Run
from tests.support.models_zoo import build_model, build_tokenizer
from tests.support.training import settings

WORDS = ("awful", "great", "plain")
TEXTS = ["3 great", "awful", "8 and much longer than the others, but plain", "x"]


def base_folder(folder: Path, family: str = "llama") -> Path:
    path = folder / family
    if not path.is_dir():
        build_model(family, vocab_size=259).save_pretrained(path)
        build_tokenizer().save_pretrained(path)
    return path


def config(folder: Path, labels: tuple[Any, ...], family: str = "llama", **changes: Any) -> dict[str, Any]:
    lines = [{"text": f"{i} {WORDS[i % 3]}", "label": labels[i % 3]} for i in range(48)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    train = {"max_steps": 20, "per_device_train_batch_size": 8, "learning_rate": 2e-2, "eval_steps": 20}
    merged = {"loss": {"type": "classification"}, "data": {"packing": True}, "train": train, **changes}
    return settings(folder, base_folder(folder, family), **merged)


# The second has the label of another class.
_ROWS = [(3, "great", "pos"), (2, "awful", "pos"), (7, "awful", "neg")]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return lamina.train(config(tmp_path_factory.mktemp("classes"), ("neg", "pos", "mid")))


def peft_probabilities(path: Path, base: Path, texts: list[str], classes: int) -> torch.Tensor:
    """As a user of transformers and peft loads it; texts are tokenized by the tokenizer alone."""
    model = AutoModelForSequenceClassification.from_pretrained(
        base, num_labels=classes, dtype=torch.float32, pad_token_id=0
    )
    model, tokenizer = peft.PeftModel.from_pretrained(model, path).eval(), AutoTokenizer.from_pretrained(base)
    with torch.no_grad():
        return torch.cat([model(**tokenizer(text, return_tensors="pt")).logits.softmax(-1) for text in texts])


def test_it_learns_and_peft_gives_the_same_probabilities(trained: Run) -> None:
    assert trained.summary is not None
    assert trained.summary.eval_metrics["accuracy"] == 1.0
    assert trained.summary.figures["classes"] == ["mid", "neg", "pos"]
    found = lamina.classify(trained.path, TEXTS)
    assert [one.label for one in found[:3]] == ["pos", "neg", "mid"]
    ours = torch.tensor([list(one.probabilities.values()) for one in found])
    theirs = peft_probabilities(trained.adapter, Path(trained.config.model), TEXTS, 3)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    content = json.loads((trained.adapter / "adapter_config.json").read_text())
    assert content["task_type"] == "SEQ_CLS" and content["modules_to_save"] == ["score"]
    auto = peft.AutoPeftModelForSequenceClassification.from_pretrained(trained.adapter, num_labels=3)
    assert auto.base_model.model.score.modules_to_save["default"].weight.shape == (3, 48)


def test_the_adapter_alone_knows_its_classes(trained: Run) -> None:
    lock = read_adapter(trained.adapter).lock
    assert lock is not None and lock.classes == ["mid", "neg", "pos"]
    loaded = lamina.load(trained.path)
    assert [one.label for one in lamina.classify(loaded, ["3 great"])] == ["pos"]
    with pytest.raises(AdapterError, match="classifier, whose head is no part of a language model"):
        lamina.merge(trained.path, trained.path / "merged")


def test_an_adapter_of_peft_has_numbers_for_names(tmp_path: Path) -> None:
    base = base_folder(tmp_path)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3, dtype=torch.float32, pad_token_id=0)
    settings_ = peft.LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["q_proj", "v_proj"])
    model = peft.get_peft_model(model, settings_)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(0.0, 0.2)
    model.save_pretrained(tmp_path / "adapter")
    found = lamina.classify(lamina.load(tmp_path / "adapter", model=str(base), dtype="float32"), TEXTS)
    theirs = peft_probabilities(tmp_path / "adapter", base, TEXTS, 3)
    ours = torch.tensor([list(one.probabilities.values()) for one in found])
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert list(found[0].probabilities) == ["0", "1", "2"]


def test_evaluation_gives_accuracy_and_macro_f1_with_intervals(trained: Run, tmp_path: Path) -> None:
    found = lamina.evaluate(trained.path).classification
    assert found is not None and found.accuracy.value == 1.0 and found.accuracy.low < 1.0
    other = tmp_path / "other.jsonl"
    rows = [{"text": f"{i} {word}", "label": label} for i, word, label in _ROWS]
    other.write_text("".join(json.dumps(row) + "\n" for row in rows))
    again = lamina.evaluate(trained.path, other).classification
    assert again is not None and again.accuracy.value == pytest.approx(2 / 3)
    assert again.accuracy.low <= again.accuracy.value <= again.accuracy.high
    other.write_text(json.dumps({"text": "good", "label": "unheard of"}) + "\n")
    with pytest.raises(DataError, match=r"the label 'unheard of'; the classes are 'mid', 'neg', 'pos'"):
        lamina.evaluate(trained.path, other)


def test_scores_of_a_hand_counted_table() -> None:
    """Four classes of which one never occurs: 'a' 2 of 3 right, 'b' 1 of 2, 'c' 0 of 1."""
    expected, predicted = np.array([0, 0, 0, 1, 1, 2]), np.array([0, 0, 1, 1, 2, 1])
    found = class_scores(predicted, expected, ["a", "b", "c", "d"])
    assert found.accuracy.value == pytest.approx(3 / 6)
    assert [each.f1 for each in found.classes] == pytest.approx([4 / 5, 2 / 5, 0, 0])
    assert found.macro_f1.value == pytest.approx((4 / 5 + 2 / 5 + 0) / 3)
    assert found.most_frequent == pytest.approx(3 / 6)
    assert 0 <= found.macro_f1.low < found.macro_f1.value < found.macro_f1.high <= 1


@pytest.mark.parametrize(
    ("labels", "names", "classes"),
    [
        ((10, 2, 0), None, ["0", "2", "10"]),
        ((0, 1, 2), ["neg", "pos", "mid"], ["neg", "pos", "mid"]),
        (("pos", "neg", "mid"), ["neg", "pos", "mid"], ["neg", "pos", "mid"]),
        ((True, False, True), None, ["False", "True"]),
        (("true", False, "TRUE"), ["true", "false"], ["true", "false"]),
        (("1.0", 0, "1"), ["0.0", "1.0"], ["0.0", "1.0"]),
    ],
)
def test_classes_are_numbers_names_or_both(
    labels: tuple[Any, ...], names: list[str] | None, classes: list[str], tmp_path: Path
) -> None:
    values = config(tmp_path, labels, loss={"type": "classification", **({"labels": names} if names else {})})
    values["train"] |= {"max_steps": 1, "eval_steps": 1}
    run = lamina.train(values)
    assert run.summary is not None and run.summary.figures["classes"] == classes


def test_labels_that_are_the_same_in_data_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"loss\.labels: '1' and '1\.0' are the same label.*Fix: name each class once"
    ):
        lamina.train(config(tmp_path, (1, 0, 1), loss={"type": "classification", "labels": ["0", "1", "1.0"]}))


def test_long_texts_are_cut_and_short_ones_count(tmp_path: Path) -> None:
    values = config(tmp_path, ("a", "b", "c"))
    lines = [{"text": "x" * length, "label": "ab"[length % 2]} for length in (1, 1, 2, 200, 201, 3, 4, 5)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    values["data"] |= {"eval": None, "max_length": 64}
    values["train"] = {"max_steps": 1}
    run = lamina.train(values)
    report = json.loads(run.data_report_path.read_text())
    assert report["files"][0]["train_rows"] == 8 and report["files"][0]["cut"]["count"] == 2


@pytest.mark.parametrize(
    ("rows", "names", "error", "message"),
    [
        ([{"text": "a", "label": "x"}] * 4, None, DataError, "all rows have the label 'x'"),
        ([{"text": "a", "label": "x"}, {"text": "b", "label": "z"}], ["x", "y"], DataError, "the label 'z'"),
        ([{"text": "a", "label": None}], None, DataError, "field 'label' is None"),
        ([{"label": "x"}], None, DataError, "nothing to classify"),
    ],
)
def test_rows_that_cannot_be_classes_are_one_error(
    rows: list[dict[str, Any]], names: list[str] | None, error: type[Exception], message: str, tmp_path: Path
) -> None:
    loss = {"type": "classification", **({"labels": names} if names else {})}
    values = config(tmp_path, ("a", "b", "c"), loss=loss)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values["data"]["eval"] = None
    values["train"] = {"max_steps": 1}
    with pytest.raises(error, match=message):
        lamina.train(values)


def test_the_task_type_of_peft_chooses_the_loss() -> None:
    values = {"data": {"train": "x"}, "method": {"type": "lora", "task_type": "SEQ_CLS"}}
    chosen = load_config(values)
    assert chosen.loss.type == "classification" and chosen.data.format == "classification"
    assert load_config({**values, "loss": {"type": "reward"}}).loss.type == "reward"
    with pytest.raises(ConfigError, match="task_type SEQ_CLS"):
        load_config({**values, "loss": {"type": "dpo"}})


def test_a_label_of_evaluation_rows_alone_is_an_error_unless_named(tmp_path: Path) -> None:
    given = config(tmp_path, ("neg", "pos", "neg"))
    (tmp_path / "eval.jsonl").write_text('{"text": "x", "label": "mid"}\n', encoding="utf-8")
    given["data"]["eval"] = str(tmp_path / "eval.jsonl")
    with pytest.raises(DataError, match="1 rows have the label 'mid'; the classes are 'neg', 'pos'"):
        lamina.train(given)
    given |= {"loss": {"type": "classification", "labels": ["neg", "mid", "pos"]}, "train": {"max_steps": 1}}
    run = lamina.train({**given, "output_dir": str(tmp_path / "named")})
    lock = read_adapter(run.adapter).lock
    assert lock is not None and lock.classes == ["neg", "mid", "pos"]


def test_no_note_on_stop_tokens(trained: Run) -> None:
    assert not any("stop token" in line for event in trained.events() for line in getattr(event, "data_report", ()))
    assert any(getattr(event, "data_report", ()) for event in trained.events())
