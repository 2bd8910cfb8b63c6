"""Bad input: each case ends with one clear error, without a traceback, and with the right exit code."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lamina.errors import DataError, ModelError
from lamina.runs import Run
from tests.support.cli import ROWS, Cli, write_rows

FAILED, USAGE = 1, 2


def empty_folder(path: Path) -> Path:
    folder = path.parent / "empty"
    folder.mkdir()
    return folder


def write_text(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def row_17_not_json(path: Path) -> Path:
    lines = [json.dumps(row) for row in ROWS]
    lines[16] = lines[16][:-1]
    return write_text(path, "\n".join(lines))


DATA: dict[str, tuple[Callable[[Path], Path], int, tuple[str, ...]]] = {
    "missing file": (lambda path: path, USAGE, ("data.train", "does not exist")),
    "folder": (empty_folder, USAGE, ("data.train", "is a folder without data files")),
    "empty file": (lambda path: write_text(path, ""), FAILED, ("has no rows",)),
    "row 17 not JSON": (row_17_not_json, FAILED, ("row 17 (line 17) is not JSON",)),
    "row that is no object": (
        lambda path: write_text(path, "[1, 2]"),
        FAILED,
        ("row 1 (line 1) is a int, not an object",),
    ),
    "wrong column names": (
        lambda path: write_rows(path, [{"alpha": "q", "beta": "a"}]),
        FAILED,
        ("'alpha', 'beta'", "data.columns"),
    ),
    "field of another type": (
        lambda path: write_rows(path, [*ROWS, {"prompt": "q", "completion": [3]}]),
        FAILED,
        ("row 21", "completion[1] is not an object"),
    ),
    "only empty answers": (
        lambda path: write_rows(path, [{"prompt": "q", "completion": ""}]),
        FAILED,
        ("there is no usable row", "1 rows: an answer is empty"),
    ),
}


@pytest.mark.parametrize("name", DATA)
def test_bad_data(name: str, cli: Cli, config: Path, tmp_path: Path) -> None:
    make, code, words = DATA[name]
    path = make(tmp_path / "bad.jsonl")
    result = cli("train", config, f"data.train={path}")
    assert (result.code, result.out) == (code, "")
    message = result.error()
    assert all(word in message for word in (str(path), "Fix: ", *words)), message


@pytest.mark.parametrize(
    ("overrides", "code", "words"),
    [
        (["train.learning_rat=1e-4"], USAGE, ("train.learning_rat", "'learning_rate'")),
        (["methd.r=4"], USAGE, ("methd", "'method'")),
        (["method.r=big", "seed=-1"], USAGE, ("2 problems", "method.r", "'big'", "seed")),
        (["seed"], USAGE, ("seed", "key.sub=value")),
        (["data.columns={prompt: question, completion: answer}"], FAILED, ("'question'", "'prompt', 'completion'")),
        (
            ["data.max_length=16", "data.overlong=cut"],
            FAILED,
            ("there is no usable row", "no token of the row is in the loss"),
        ),
        (["data.max_length=26", "data.overlong=cut"], FAILED, ("teaches the stop token <|im_end|>", "data.max_length")),
        (["data.chat_template=chatlm"], USAGE, ("data.chat_template", "'chatml'")),
        (["data.eval=nope.jsonl"], USAGE, ("data.eval", "nope.jsonl does not exist")),
        (["method.target_modules=[q_porj]"], USAGE, ("method.target_modules", "'q_porj'", "'q_proj'")),
        (["method.target_modules=[q_proj, nope]"], USAGE, ("'nope' matches no module", "v_proj")),
        (["method.target_modules=.*nope"], USAGE, ("'.*nope' matches no module", "v_proj")),
        (["method.target_modules=[input_layernorm]"], USAGE, ("not a linear layer",)),
        (["model=./no-such-folder"], USAGE, ("model", "no-such-folder")),
        (["model=no-such.gguf"], USAGE, ("model", "no-such.gguf does not exist")),
        (["model=smollm2-135"], USAGE, ("model", "'smollm2-135m'")),
        (["model=."], FAILED, ("config.json",)),
    ],
)
def test_bad_setting(overrides: list[str], code: int, words: tuple[str, ...], cli: Cli, config: Path) -> None:
    result = cli("train", config, *overrides)
    assert (result.code, result.out) == (code, "")
    message = result.error()
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("weights", "words"),
    [((), ("no weights",)), (("pytorch_model.bin",), ("pytorch_model.bin", "pickled weights are never read"))],
)
def test_model_folder_without_usable_weights(
    weights: tuple[str, ...], words: tuple[str, ...], cli: Cli, config: Path, model_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    for name in weights:
        torch.save({}, folder / name)
    result = cli("train", config, f"model={folder}")
    message = result.error()
    assert result.code == FAILED
    assert all(word in message for word in (str(folder), "model.safetensors", *words)), message


@pytest.mark.parametrize("overrides", [["seed=x"], ["train.learning_rat=1"], ["data.eval=0"]])
def test_config_error_leaves_no_run_behind(overrides: list[str], cli: Cli, config: Path, tmp_path: Path) -> None:
    assert cli("train", config, *overrides).code == USAGE
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("mistake", ["data.train=nope.jsonl", "model=./nope", "method.target_modules=[nope]"])
def test_training_can_be_started_again_once_the_mistake_is_corrected(mistake: str, cli: Cli, config: Path) -> None:
    assert cli("train", config, mistake).code == USAGE
    assert cli("train", config).code == 0


@pytest.mark.parametrize(
    "arguments",
    [["eval"], ["merge", "--out", "merged"], ["chat"], ["generate", "-p", "hi"]],
    ids=lambda arguments: arguments[0],
)
def test_adapter_that_is_not_there(arguments: list[str], cli: Cli, tmp_path: Path) -> None:
    command, *options = arguments
    for as_json in ([], ["--json"]):
        result = cli(command, "runs/nope", *options, *as_json)
        assert result.code == FAILED
        assert "runs/nope: there is no such run or adapter folder" in result.error()
        if as_json:
            assert result.json()["error"]["type"] == "AdapterError"
        else:
            assert result.out == ""
    assert not (tmp_path / "merged").exists()


def test_run_without_an_adapter_yet(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "half").mkdir()
    write_text(tmp_path / "half" / "config.yaml", "data: {train: x}\n")
    result = cli("generate", "half", "-p", "hi")
    assert result.code == FAILED
    assert "no adapter yet" in result.error()


def test_merge_to_a_folder_that_exists(cli: Cli, trained: Run, tmp_path: Path) -> None:
    keep = write_text(tmp_path / "keep.txt", "mine")
    result = cli("merge", trained.path, "--out", tmp_path)
    assert result.code == FAILED
    assert f"{tmp_path}: already exists" in result.error()
    assert keep.read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["eval", "--column", "prompt"], ("--column", "'prompt' is not FIELD=COLUMN", "prompt=question")),
        (["eval", "--predictions", "p.jsonl"], ("--predictions", "--exact-match")),
        (["eval", "--data", "nope.jsonl"], ("--data", "nope.jsonl does not exist")),
        (["eval", "--exact-match", "--predictions", "."], ("--predictions", "is a folder", "give a file name")),
        (["eval", "--exact-match", "--predictions", "file/x"], ("--predictions", "file is a file")),
        (["eval", "--data", ""], ("--data", "is empty")),
        (["eval", "--data="], ("--data", "is empty")),
        (["generate", "-p", "hi", "--model", ""], ("--model", "is empty")),
        (["eval", "--data", "file", "--column", "="], ("--column", "FIELD=COLUMN")),
        (["eval", "--data", "file", "--column", "prompt="], ("--column", "FIELD=COLUMN")),
        (["eval", "--data", "file", "--column", "promt=a"], ("--column", "'promt'", "'prompt'")),
        (["generate"], ("--prompt", "stdin")),
        (["merge", "--out", "merged", "--dtype", "int8"], ("--dtype", "'int8'", "bfloat16")),
    ],
)
def test_bad_option(arguments: list[str], words: tuple[str, ...], cli: Cli, trained: Run) -> None:
    command, *options = arguments
    write_text(Path("file"), "x")
    result = cli(command, trained.path, *options)
    assert (result.code, result.out) == (USAGE, "")
    message = result.error()
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", ""], ("an argument: is empty",)),
        (["data", "check", ""], ("an argument: is empty",)),
        (["data", "check", "rows.jsonl", "--html", "rows.jsonl/x"], ("--html", "is a file")),
        (["data", "check", "rows.jsonl", "--fix", "rows.jsonl/x"], ("--fix", "is a file")),
        (["data", "show", "rows.jsonl", "--column", "promt=a"], ("--column", "'prompt'")),
        (["bench", "train", "--python", "trl=/nope"], ("--python", "/nope", "trl")),
        (["bench", "train", "--data", "rows.jsonl", "--column", "promt=a"], ("--column", "'prompt'")),
        (["compare", "config.yaml", "--candidate", "'a"], ("--candidate", "NAME KEY=VALUE")),
        (["compare", "config.yaml", "--candidate", " "], ("--candidate", "NAME KEY=VALUE")),
        (["compare", "config.yaml", "--out", "rows.jsonl"], ("--out", "rows.jsonl is a file")),
        (["merge", "run", "--out", ""], ("--out", "is empty")),
        (["data"], ("Missing command",)),
        (["cache"], ("Missing command",)),
        (["bench"], ("Missing command",)),
    ],
)
def test_what_cannot_work_is_said_before_any_work(
    arguments: list[str], words: tuple[str, ...], cli: Cli, config: Path
) -> None:
    result = cli(*arguments)
    assert (result.code, result.out) == (USAGE, "")
    message = result.error()
    assert all(word in message for word in words), message


def test_a_prompt_and_a_system_turn_may_be_empty(cli: Cli, trained: Run) -> None:
    short = ("--max-new-tokens", "2", "--json")
    assert cli("generate", trained.path, "-p", "", *short).json()["answers"][0]["prompt"] == ""
    assert cli("generate", trained.path, "--prompt", "", "--system", "", *short).code == 0


def test_wrong_column_of_eval_lists_what_the_file_has(cli: Cli, trained: Run, rows: Path) -> None:
    result = cli("eval", trained.path, "--data", rows, "--column", "prompt=question", "--column", "completion=answer")
    assert result.code == FAILED
    assert "'question'" in result.error()
    assert "'prompt', 'completion'" in result.error()


@pytest.mark.parametrize("options", [["--column", "prompt=question"], ["--answers", "0", "--max-new-tokens", "5"]])
def test_option_of_eval_that_would_do_nothing_is_an_error(options: list[str], cli: Cli, trained: Run) -> None:
    assert cli("eval", trained.path, *options).code == USAGE


def test_exact_match_on_a_row_without_a_prompt(cli: Cli, trained: Run, tmp_path: Path) -> None:
    alone = {"messages": [{"role": "assistant", "content": "hello"}]}
    path = write_rows(
        tmp_path / "alone.jsonl", [alone, {"messages": [{"role": "user", "content": "q"}, *alone["messages"]]}]
    )
    result = cli("eval", trained.path, "--data", path, "--exact-match", "--max-new-tokens", 2, "--json")
    assert result.code in (0, FAILED)


@pytest.mark.parametrize(
    ("overrides", "code", "kind"),
    [(["data.train=nope.jsonl"], USAGE, "ConfigError"), (["model=."], FAILED, "ModelError"), ([], FAILED, "DataError")],
)
def test_error_as_one_json_object(
    overrides: list[str], code: int, kind: str, cli: Cli, config: Path, tmp_path: Path
) -> None:
    write_text(tmp_path / "rows.jsonl", "")
    result = cli("train", config, *overrides, "--json")
    assert result.code == code
    error = result.json()["error"]
    assert error["type"] == kind
    assert error["message"] in result.err
    assert ("problems" in error) == (kind == "ConfigError")


def test_problems_of_a_config_error_are_listed_one_by_one(cli: Cli, config: Path) -> None:
    error = cli("train", config, "train.learning_rat=1", "seed=-1", "--json").json()["error"]
    found: list[dict[str, Any]] = error["problems"]
    assert [problem["field"] for problem in found] == ["train.learning_rat", "seed"]
    assert found[0]["fix"] == "Did you mean 'learning_rate'?"


def test_exit_codes_follow_the_kind_of_error() -> None:
    assert (DataError.exit_code, ModelError.exit_code) == (FAILED, FAILED)
