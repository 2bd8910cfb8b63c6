"""`lamina init` and `lamina train DATA`: from a data file to a configuration, and to a plan, without a question."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

import lamina
from lamina.models.vocabulary import positions_in
from tests.support.cli import ROWS, Cli, write_rows


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write_rows(Path("faq.jsonl"), ROWS)


def test_a_configuration_is_written_with_comments(data: Path, cli: Cli, model_folder: Path) -> None:
    result = cli("init", data, "--model", model_folder)
    assert result.code == 0 and "faq.yaml (20 rows, format prompt_completion)" in result.out
    assert "lamina train faq.yaml" in result.err
    text = Path("faq.yaml").read_text()
    assert text.count("#") > 10
    config = lamina.load_config("faq.yaml")
    assert config.data.train == "faq.jsonl" and config.model == str(model_folder) and config.output_dir == "runs/faq"
    assert (config.data.eval, config.data.max_length, config.train.num_train_epochs) == (0.1, 256, 20)
    assert "--out: faq.yaml exists" in cli("init", data).error()
    assert cli("init", data, "--force", "--json").json() == {
        "path": "faq.yaml",
        "rows": 20,
        "format": "prompt_completion",
        "max_length": 256,
        "note": "",
    }


def test_few_and_long_rows(data: Path, cli: Cli) -> None:
    write_rows(data, [{"prompt": "a", "completion": "b " * 2000}] * 3)
    assert cli("init", data, "--out", "x.yml").code == 0
    config = lamina.load_config("x.yml")
    assert config.data.eval is None and config.data.max_length == 2048


def test_columns_that_say_nothing_are_asked_for(data: Path, cli: Cli) -> None:
    write_rows(data, [{"spalte a": "q", "x": "a"}] * 12)
    error = cli("init", data).error()
    assert "'spalte a', 'x'" in error and "--column prompt=COLUMN --column completion=COLUMN" in error
    assert cli("init", data, "--column", "prompt=spalte a", "--column", "completion=x").code == 0
    assert lamina.load_config("faq.yaml").data.columns == {"prompt": "spalte a", "completion": "x"}


def test_a_file_that_is_missing(cli: Cli, tmp_path: Path) -> None:
    assert "nope.jsonl does not exist" in cli("init", tmp_path / "nope.jsonl").error()
    assert "data.train: nope.csv does not exist" in cli("train", "nope.csv").error()


def test_odd_names_are_quoted(data: Path, cli: Cli) -> None:
    odd = write_rows(Path("a: #1 'x'.jsonl"), ROWS)
    assert cli("init", odd, "--out", "odd.yaml").code == 0
    assert lamina.load_config("odd.yaml").data.train == str(odd)


def test_a_dry_run_shows_configuration_and_plan(data: Path, cli: Cli, model_folder: Path) -> None:
    given = ("train", data, f"model={model_folder}", "train.max_steps=7", "data.max_length=64", "--dry-run")
    result = cli(*given)
    assert result.code == 0, result
    config = yaml.safe_load(result.out)
    assert config["output_dir"] == "runs/faq" and config["train"]["max_steps"] == 7
    assert "plan: 18 training and 2 evaluation rows; 7 steps" in result.err
    step = "a step has about 6 rows: 1 micro-batch of 4 x 64 tokens,"
    assert f"plan: {step} whatever the number of processes" in result.err
    assert f"plan: {step} so 1 of 2 processes have nothing to do" in cli(*given, "--nproc", 2).err
    rows = cli(*given, "data.packing=false", "train.gradient_accumulation_steps=3", "--nproc", 2).err
    assert "plan: a step has 12 rows: 3 micro-batches of 4 rows, 1 or 2 for each of 2 processes" in rows
    assert not Path("runs").exists()
    plan = cli(*given, "--json").json()["plan"]
    assert plan["total_steps"] == 7 and plan["train_rows"] == 18


def test_what_can_be_checked_is_checked_before_the_model(
    data: Path, cli: Cli, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*given: object, **more: object) -> object:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("lamina.training.base.load_base", load)
    model = f"model={model_folder}"
    assert "data.eval: b.jsonl does not exist" in cli("train", data, model, "data.eval=b.jsonl").error()
    assert "has no config.json" in cli("train", data, "model=.").error()
    write_rows(Path("odd.jsonl"), [{"a": 1}])
    assert "odd.jsonl" in cli("train", "odd.jsonl", model).error()
    Path("full").mkdir()
    Path("full/letter.txt").write_text("x")
    assert "other files in it" in cli("train", data, model, "output_dir=full").error()
    assert not Path("runs").exists()


def test_a_data_file_trains(data: Path, cli: Cli, model_folder: Path) -> None:
    settings = ("dtype=float32", "train.max_steps=2", "data.max_length=64")
    assert cli("train", data, f"model={model_folder}", *settings).code == 0
    assert lamina.load_run("runs/faq").status == "finished"
    error = cli("train", data, f"model={model_folder}", *settings).error()
    assert "runs/faq: already holds a run (finished)" in error


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("empty.csv", "", "has no rows. Fix: give a file with at least one row."),
        ("header.csv", "prompt,completion\n", "has no rows. Fix: give a file with at least one row."),
        ("broken.json", '{"prompt":', "is not JSON"),
    ],
)
def test_files_that_cannot_be_read_have_no_columns_to_ask_for(
    data: Path, cli: Cli, name: str, content: str, says: str
) -> None:
    Path(name).write_text(content, encoding="utf-8")
    result = cli("init", name, "--json")
    assert says in result.json()["error"]["message"]
    assert "--column" not in result.json()["error"]["message"]


CLASSES = [{"text": f"text {n}", "label": ("good", "bad")[n % 2]} for n in range(12)]


def test_texts_with_labels_are_read_in_one_way(data: Path, cli: Cli, model_folder: Path) -> None:
    """`lamina init` and `lamina train` read them as classes, and say so; with a loss, the user decides."""
    path, said = write_rows(Path("c.jsonl"), CLASSES), "(2 classes), so a classifier is trained"
    assert said in cli("init", path, "--model", model_folder).err
    written = lamina.load_config("c.yaml")
    short = [f"model={model_folder}", "train.max_steps=1"]
    planned = cli("train", path, "--dry-run", "--json", *short)
    assert said in planned.err
    config = planned.json()["config"]
    for found in (written.model_dump(mode="json"), config):
        assert (found["loss"]["type"], found["data"]["format"]) == ("classification", "classification")
    plain = cli("train", path, "--dry-run", "--json", "loss.type=cross_entropy", *short)
    assert plain.json()["config"]["loss"]["type"] == "cross_entropy" and said not in plain.err
    assert "is read as plain text, without its labels; loss.type=classification" in plain.out
    checked = cli("data", "check", path, "--json")
    assert said in checked.err and [file["format"] for file in checked.json()["files"]] == ["classification"]
    assert "(classification)" in cli("data", "show", path).out
    trained = cli("train", path, *short)
    assert trained.code == 0 and "lamina classify runs/c" in trained.err


def test_what_only_one_loss_learns_from_gets_that_loss(data: Path, cli: Cli, model_folder: Path) -> None:
    pairs = [{"prompt": f"q{n}", "chosen": "a", "rejected": "b"} for n in range(12)]
    judged = [{"prompt": f"q{n}", "completion": "a", "label": n % 2} for n in range(12)]
    for name, rows, loss in (("pairs", pairs, "dpo"), ("judged", judged, "kto")):
        cli("init", write_rows(Path(f"{name}.jsonl"), rows), "--model", model_folder)
        assert f"  type: {loss}   # " in Path(f"{name}.yaml").read_text()
        planned = cli("train", f"{name}.yaml", "--dry-run", "--json")
        assert planned.code == 0 and planned.json()["config"]["loss"]["type"] == loss


def test_labels_that_are_answers_and_columns_of_other_names(data: Path, cli: Cli) -> None:
    answers = write_rows(Path("a.jsonl"), [{"Text": f"q{n}", "Label": f"answer {n}"} for n in range(12)])
    assert "so they are answers" in cli("init", answers).err
    written = lamina.load_config("a.yaml")
    assert written.data.columns == {"prompt": "Text", "completion": "Label"} and written.loss.type == "cross_entropy"
    named = write_rows(Path("n.jsonl"), [{"body": "x", "topic": n % 3} for n in range(12)])
    assert "(3 classes)" in cli("init", named, "--column", "text=body", "--column", "label=topic").err
    found = lamina.load_config("n.yaml")
    assert (found.loss.type, found.data.columns) == ("classification", {"text": "body", "label": "topic"})


def test_the_data_is_never_written_over(data: Path, cli: Cli, tmp_path: Path) -> None:
    before = data.read_bytes()
    Path("link.yaml").symlink_to(data)
    (tmp_path / "sub").mkdir()
    for target in (data, "./faq.jsonl", tmp_path / "sub" / ".." / "faq.jsonl", "link.yaml"):
        assert "is the data, which would be lost" in cli("init", data, "--out", target, "--force").error()
    assert "faq.jsonl is the data" in cli("init", ".", "--out", data, "--force").error()
    for target in ("other.csv", "config", "faq.yaml.bak"):
        assert "a configuration is a .yaml or .yml file" in cli("init", data, "--out", target).error()
        assert not Path(target).exists()
    assert data.read_bytes() == before and Path("link.yaml").is_symlink()
    assert cli("init", data, "--out", "sub/x.YML", "--force").code == 0


def test_a_sheet_is_trained_on_alone(cli: Cli, tmp_path: Path, model_folder: Path) -> None:
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    book.active.append(["About"])
    sheet = book.create_sheet("Train")
    for row in [("question", "answer"), *((f"q{i}", f"a{i}") for i in range(12))]:
        sheet.append(row)
    book.save(tmp_path / "book.xlsx")
    result = cli("train", "book.xlsx:Train", f"model={model_folder}", "--dry-run", "--json").json()
    assert (result["config"]["output_dir"], result["plan"]["train_rows"]) == ("runs/book-Train", 11)
    assert "book-Train.yaml (12 rows" in cli("init", "book.xlsx:Train", "--model", model_folder).out
    assert cli("train", "book-Train.yaml", "--dry-run", "--json").json()["plan"]["train_rows"] == 11
    assert "has no sheet 'Tain'; it has Sheet, Train" in cli("train", "book.xlsx:Tain", "--dry-run").error()
    plan = cli("train", "book.xlsx", f"model={model_folder}", "--dry-run", "--json").json()["plan"]
    assert any("reads the sheet 'Train', and not 'Sheet'" in line for line in plan["data_report"])


def test_a_dry_run_follows_the_models_positions(cli: Cli, tmp_path: Path, model_folder: Path) -> None:
    positions = positions_in(model_folder)
    assert positions is not None
    rows = [{"prompt": f"q{i}", "completion": "a" * (4 * positions if i % 2 else 1)} for i in range(20)]
    data = write_rows(tmp_path / "long.jsonl", rows)
    plan = cli("train", data, f"model={model_folder}", "data.max_dropped=1", "--dry-run", "--json").json()["plan"]
    assert plan["longest"] <= positions and str(positions) in plan["micro_batch"].replace(",", "")
    assert any(f"the model has {positions:,} positions" in line for line in plan["data_report"])
    message = cli("train", data, f"model={model_folder}", f"data.max_length={positions + 1}", "--dry-run").error()
    assert f"data.max_length: {positions + 1} is more than the model's {positions} positions" in message
    found = cli("data", "check", data, "--model", model_folder, "--json").json()["findings"]
    (advice,) = (finding["advice"] for finding in found if finding["code"] == "longer_than_max_length")
    assert "Raise" not in advice and f"the model has {positions:,} positions" in advice


def test_columns_are_not_asked_for_where_they_cannot_help(cli: Cli, tmp_path: Path) -> None:
    turns = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    data = write_rows(tmp_path / "mixed.jsonl", [turns, ROWS[0]] * 4)
    message = cli("init", data).error()
    assert "--column" not in message and "data.train=[a.jsonl, b.jsonl]" in message


@pytest.mark.parametrize("options", [[], ["--json"], ["--rows", "1"], ["--row", "2"]])
def test_rows_of_no_format_are_an_error_in_every_view(cli: Cli, tmp_path: Path, options: list[str]) -> None:
    data = write_rows(tmp_path / "odd.jsonl", [{"a": "b"}] * 8)
    result = cli("data", "show", data, *options)
    assert result.code == 1 and "unknown format; the columns are 'a'" in result.err
    assert "not parsed" not in result.out
