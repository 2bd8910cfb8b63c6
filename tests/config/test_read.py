"""Configuration files: what they include, variables of the environment, standard input, `~`, and relative paths."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from lamina.config import load_config
from lamina.config.load import config_values
from lamina.config.places import check_files
from lamina.errors import ConfigError


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(name: str, text: str) -> Path:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


BASE = "data: {train: a.jsonl, eval: 0.2}\ntrain: {num_train_epochs: 3, optim: lion}\nmethod: {type: lora, r: 4}\n"


def test_what_a_file_sets_wins_over_what_it_includes() -> None:
    write("shared/base.yaml", BASE)
    config = load_config(write("run.yaml", "include: shared/base.yaml\ntrain: {optim: adamw_torch}\nseed: 3\n"))
    assert (config.train.optim, config.train.num_train_epochs, config.seed) == ("adamw_torch", 3, 3)
    assert config.output_dir == "runs/run"


def test_it_replaces_what_it_contradicts() -> None:
    write("base.yaml", BASE)
    assert load_config(write("a.yaml", "include: base.yaml\ntrain: {max_steps: 5}\n")).train.num_train_epochs is None
    assert load_config(write("b.yaml", "include: base.yaml\nmethod: {type: ia3}\n")).method.type == "ia3"


def test_several_files_in_order_each_relative_to_its_own_folder() -> None:
    write("deep/er/base.yaml", BASE)
    write("deep/one.yaml", "include: er/base.yaml\nseed: 1\n")
    write("two.yaml", "seed: 2\n")
    values = config_values(write("run.yaml", "include: [deep/one.yaml, two.yaml]\n"))
    assert values["seed"] == 2 and values["method"] == {"type": "lora", "r": 4} and "include" not in values


def test_a_circle_is_named() -> None:
    write("a.yaml", "include: b.yaml\n")
    write("b.yaml", "include: a.yaml\n")
    with pytest.raises(ConfigError, match=r"include: a.yaml includes b.yaml includes a.yaml"):
        load_config("a.yaml")


@pytest.mark.parametrize(
    ("text", "says"),
    [("include: nope.yaml", "include: nope.yaml does not exist"), ("include: {a: 1}", r"include: got \{'a': 1\}")],
)
def test_mistakes_of_include(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load_config(write("a.yaml", text))


def test_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA", "/data")
    monkeypatch.setenv("SEED", "7")
    monkeypatch.setenv("EMPTY", "")
    monkeypatch.delenv("NOPE", raising=False)
    text = """
data: {train: "${DATA}/a.jsonl", eval: "${EVAL:-0.25}", columns: {prompt: "$${DATA} {{ a }}", completion: b}}
seed: ${SEED}
output_dir: ${EMPTY:-runs}/x-${SEED}
train: {learning_rate: "${RATE:-2e-4}"}
"""
    config = load_config(write("a.yaml", text))
    assert config.data.train == "/data/a.jsonl" and config.data.eval == 0.25 and config.seed == 7
    assert config.output_dir == "runs/x-7" and config.train.learning_rate == 2e-4
    assert config.data.columns == {"prompt": "${DATA} {{ a }}", "completion": "b"}
    with pytest.raises(ConfigError, match=r"data\.train: .*NOPE is not set.*\$\{NOPE:-VALUE\}"):
        load_config(write("b.yaml", "data: {train: '${NOPE}/a'}"))


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("data: {train: a.jsonl}\nseed: 4\n"))
    config = load_config("-")
    assert config.seed == 4 and config.output_dir == "runs/lamina"
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    with pytest.raises(ConfigError, match="standard input is empty"):
        load_config("-")


def test_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    config = load_config({"data": {"train": Path("~/a.jsonl")}, "model": "~/m", "output_dir": "~/out"})
    assert config.data.train == f"{tmp_path}/home/a.jsonl" and config.output_dir == f"{tmp_path}/home/out"
    assert config.model == f"{tmp_path}/home/m"


def test_a_path_is_found_from_here_and_else_beside_the_configuration() -> None:
    write("jobs/one/rows.jsonl", "{}")
    config = write("jobs/one/run.yaml", "data: {train: rows.jsonl, eval: other.jsonl}\n")
    loaded = load_config(config)
    assert loaded.data.train == "jobs/one/rows.jsonl" and loaded.data.eval == "other.jsonl"
    write("rows.jsonl", "{}")
    assert load_config(config).data.train == "rows.jsonl", "what is here comes first"


def test_a_data_file_is_a_configuration() -> None:
    config = load_config("data/faq.v2.csv", ["train.max_steps=3"])
    assert config.data.train == "data/faq.v2.csv" and config.output_dir == "runs/faq.v2"
    assert config.model == "smollm2-135m" and config.train.max_steps == 3


def test_paths_of_an_included_file_are_found_beside_it() -> None:
    write("data/rows.jsonl", "{}")
    write("data/test.jsonl", "{}")
    write("jobs/test.jsonl", "{}")
    write("shared/sub/base.yaml", "data: {train: ../../data/rows.jsonl, eval: test.jsonl}\nmodel: ../gone\n")
    write("shared/sub/test.jsonl", "{}")
    write("shared/rows.yaml", "data: {replay: {path: sub/test.jsonl}}\n")
    config = write("jobs/run.yaml", "include: [../shared/sub/base.yaml, ../shared/rows.yaml]\n")
    loaded = load_config(config)
    assert loaded.data.train == "jobs/../shared/sub/../../data/rows.jsonl"
    assert loaded.data.eval == "jobs/../shared/sub/test.jsonl", "not the one beside the file that includes it"
    assert loaded.data.replay is not None and loaded.data.replay.path == "jobs/../shared/sub/test.jsonl"
    assert loaded.model == "../gone"
    write("test.jsonl", "{}")
    assert load_config(config).data.eval == "test.jsonl", "what is here comes first"


def test_a_variable_that_is_replaced_need_not_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOPE", raising=False)
    monkeypatch.setenv("NAME", "x")
    write("base.yaml", "data: {train: '${NOPE}/a', columns: {prompt: '$${NAME}', completion: '${NAME}'}}\n")
    config = load_config(write("run.yaml", "include: base.yaml\ndata: {train: a.jsonl}\n"))
    assert config.data.train == "a.jsonl"
    assert config.data.columns == {"prompt": "${NAME}", "completion": "x"}
    with pytest.raises(ConfigError, match=r"data\.train: got '\$\{NOPE\}/a', and the environment variable NOPE"):
        load_config(write("b.yaml", "include: base.yaml\n"))


def test_where_a_missing_file_was_looked_for_is_told() -> None:
    write("deep/base.yaml", "data: {train: nope.jsonl}\n")
    config = load_config(write("run.yaml", "include: deep/base.yaml\n"))
    with pytest.raises(ConfigError, match="working folder, or else beside the YAML file that has it"):
        check_files(config.model_dump())


@pytest.mark.parametrize("variable", ["${STEPS:-2}", "${STEPS}", "${DATA}/a"])
def test_a_variable_within_braces_needs_quotes(variable: str) -> None:
    path = write("a.yaml", f"data: {{train: a.jsonl}}\ntrain: {{output: '${{A}}', max_steps: {variable}, seed: 1}}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert f"put quotes around a variable: '{variable}'" in str(caught.value)
    write("b.yaml", "data: {train: a.jsonl}\ntrain: {max_steps: '${STEPS:-2}'}\n")
    assert load_config("b.yaml").train.max_steps == 2
    with pytest.raises(ConfigError) as caught:
        load_config(write("c.yaml", "data: {train: '${A}', [}\n"))
    assert "quotes" not in str(caught.value)
