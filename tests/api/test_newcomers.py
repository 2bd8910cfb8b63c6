"""The scripts that four newcomers bring: from TRL, a data scientist, an operator, and somebody with a table."""

from __future__ import annotations

import csv
import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import lamina
from lamina.cli.app import main
from tests.support.training import WORDS

QUESTIONS = [(f"what comes after {WORDS[i % 12]} {i}?", f"{WORDS[(i + 1) % 12]}, of course") for i in range(24)]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_somebody_from_trl(model_folder: Path) -> None:
    """Model, tokenizer, data set, formatting function and LoraConfig as for SFTTrainer, with its names of settings."""
    datasets, peft = pytest.importorskip("datasets"), pytest.importorskip("peft")
    model = AutoModelForCausalLM.from_pretrained(model_folder, torch_dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    dataset = datasets.Dataset.from_list([{"instruction": q, "response": a} for q, a in QUESTIONS])
    splits = dataset.train_test_split(test_size=4, seed=0)

    def formatting_prompts_func(example: dict[str, Any]) -> str:
        return f"### Question: {example['instruction']}\n### Answer: {example['response']}"

    run = lamina.train(
        model=model,
        tokenizer=tokenizer,
        data=splits["train"],
        eval_data=splits["test"],
        method=peft.LoraConfig(r=8, lora_alpha=16, lora_dropout=0.05, bias="none", task_type="CAUSAL_LM"),
        formatting_func=formatting_prompts_func,
        output_dir="outputs",
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        learning_rate=2e-4,
        lr_scheduler_type="cosine",
        warmup_ratio=0.03,
        max_steps=3,
        logging_steps=1,
        max_length=128,
        report_to="none",
        seed=42,
    )
    assert run.summary is not None and run.summary.eval_loss is not None
    loaded = peft.PeftModel.from_pretrained(model, str(run.adapter))  # and back to where they came from
    ids = tokenizer("### Question", return_tensors="pt").input_ids
    with torch.no_grad():
        ours = lamina.load(run.path).model(input_ids=ids).logits
        assert torch.allclose(loaded(input_ids=ids).logits, ours, atol=1e-3)


def test_a_data_scientist(model_folder: Path) -> None:
    """A DataFrame with gaps and other columns, cells that are run twice, and figures to compare."""
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(QUESTIONS, columns=["question", "answer"])
    frame["score"] = [n / 2 if n % 3 else None for n in range(len(frame))]
    frame.loc[3, "answer"] = None
    good = frame.dropna(subset=["answer"])
    train, test = good.iloc[:18], good.iloc[18:]
    common: dict[str, Any] = {
        "columns": {"prompt": "question", "completion": "answer"},
        "model": model_folder,
        "max_steps": 2,
        "max_length": 128,
        "dtype": "float32",
    }
    runs = [
        lamina.train(data=train, eval_data=test, method=method, metrics=["token_f1"], **common)
        for method in ("lora", "ia3")
    ]
    assert all(run.scores is not None and 0 <= run.scores["token_f1"]["adapter"] <= 1 for run in runs)
    assert len(runs[0].table().to_pandas()) >= 2
    assert "method.type" in repr(lamina.compare_runs(*runs))
    with pytest.raises(lamina.ConfigError, match="learning_rat"):
        lamina.train(data=train, learning_rat=1e-3, **common)
    run = lamina.train(data=frame, method="lora", **common)  # a row without an answer is counted, not learned
    dropped = json.loads((run.path / "data_report.json").read_text())["files"][0]["dropped"]
    assert list(dropped) == ["empty_answer"]


Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs a command in this process: its exit code, and what it wrote to stdout and to stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["lamina", *map(str, arguments)])
        capsys.readouterr()
        handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
        with pytest.raises(SystemExit) as ended:
            main()
        for number, handler in handlers.items():
            signal.signal(number, handler)
        written = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return ended.value.code, written.out, written.err

    return run


def test_an_operator(model_folder: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """A configuration with variables, checked first, run by JSON and exit codes, moved, and read elsewhere."""
    job = tmp_path / "job"
    job.mkdir()
    rows = [{"prompt": q, "completion": a} for q, a in QUESTIONS]
    (job / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (job / "base.yaml").write_text("model: ${BASE}\ndtype: float32\ntrain: {num_train_epochs: 2}\n")
    (job / "run.yaml").write_text(
        "include: base.yaml\ndata: {train: rows.jsonl, max_length: 64}\noutput_dir: ${OUT:-out}/one\n"
    )
    monkeypatch.setenv("BASE", str(model_folder))
    monkeypatch.setenv("OUT", str(tmp_path / "runs"))
    given = ("train", job / "run.yaml", "train.max_steps=2", "--json", "--timestamps")

    code, out, _ = command(*given, "--dry-run")
    assert code == 0 and json.loads(out)["plan"]["train_rows"] == 22
    code, out, err = command(*given)
    assert code == 0 and json.loads(out)["steps"] == 2 and err[:2] == "20", err
    code, out, _ = command(*given)
    assert code == 1 and "already holds a run" in json.loads(out)["error"]["message"]
    shutil.move(tmp_path / "runs", tmp_path / "archive")
    run = lamina.load_run(tmp_path / "archive" / "one")
    assert run.status == "finished" and run.config.train.max_steps == 2
    code, out, _ = command("train", job / "run.yaml", "train.max_step=2", "--json")
    assert code == 2 and json.loads(out)["error"]["problems"][0]["field"] == "train.max_step"


def test_somebody_with_a_table(model_folder: Path, command: Command) -> None:
    """From a CSV to answers beside those of the base, by commands alone."""
    with Path("faq.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([("Frage", "Antwort"), *QUESTIONS])

    def done(*arguments: object) -> str:
        code, out, err = command(*arguments)
        assert code == 0, err
        return out

    columns = ("--column", "prompt=Frage", "--column", "completion=Antwort")
    done("init", "faq.csv", "--model", model_folder, *columns)
    done("data", "check", "faq.yaml")
    done("train", "faq.yaml", "train.max_steps=2", "dtype=float32")
    shown = done("eval", "runs/faq", "--max-new-tokens", 4, "--html", "faq.html")
    assert "expected" in shown and "rows say little" in shown and "probability" in shown
    assert "of course" in Path("faq.html").read_text()
    done("merge", "runs/faq", "--out", "faq-model")
    assert done("generate", "faq-model", "-p", "what comes after red 0?", "--max-new-tokens", 3) is not None
