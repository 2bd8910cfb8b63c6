"""`load_config`: sources, overrides, and the error for each mistake."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from lamina.config import Config, DataConfig, load_config, merge_overrides, read_yaml
from lamina.errors import ConfigError, LaminaError, Problem

MINIMAL: dict[str, Any] = {"data": {"train": "rows.jsonl"}}
WriteYaml = Callable[..., Path]


@pytest.fixture
def write_yaml(tmp_path: Path) -> WriteYaml:
    """Writes text to a YAML file and returns its path."""

    def write(text: str, name: str = "config.yaml") -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


def problems_of(source: Any, overrides: list[str] | None = None) -> dict[str, Problem]:
    """Returns the problems that `load_config` reports, by field."""
    with pytest.raises(ConfigError) as caught:
        load_config(source, overrides or [])
    by_field = {problem.field: problem for problem in caught.value.problems}
    assert len(by_field) == len(caught.value.problems)
    return by_field


def with_train(**train: Any) -> dict[str, Any]:
    return {**MINIMAL, "train": train}


def test_yaml_dict_and_config_give_the_same(write_yaml: WriteYaml) -> None:
    path = write_yaml("data: {train: rows.jsonl}\ntrain: {learning_rate: 1.0e-3}\nseed: 7\noutput_dir: runs/x\n")
    values = {**MINIMAL, "train": {"learning_rate": 1e-3}, "seed": 7, "output_dir": "runs/x"}
    from_yaml, from_dict = load_config(path), load_config(values)
    assert from_yaml == from_dict == load_config(from_dict) == load_config(str(path))
    assert (from_yaml.train.learning_rate, from_yaml.seed, from_yaml.output_dir) == (1e-3, 7, "runs/x")


def test_defaults_are_filled_in() -> None:
    config = load_config(MINIMAL)
    assert config.model == "smollm2-135m"
    assert config.method.type == "lora"
    assert (config.data.eval, config.data.max_length, config.data.packing) == (0.1, 1024, True)
    assert config.train.epochs == 3.0


def test_max_steps_replaces_epochs() -> None:
    assert load_config(with_train(max_steps=5)).train.epochs is None
    assert load_config(with_train(num_train_epochs=0.5)).train.epochs == 0.5


def test_a_section_may_already_be_checked() -> None:
    assert load_config({"data": DataConfig(train="rows.jsonl")}) == load_config(MINIMAL)


@pytest.mark.parametrize(
    ("override", "read", "expected"),
    [
        ("train.learning_rate=2e-4", lambda c: c.train.learning_rate, 2e-4),
        ("train.learning_rate=1E-5", lambda c: c.train.learning_rate, 1e-5),
        ("train.weight_decay=+1.5e+0", lambda c: c.train.weight_decay, 1.5),
        ("train.num_train_epochs=2", lambda c: c.train.num_train_epochs, 2.0),
        ("data.packing=false", lambda c: c.data.packing, False),
        ("train.gradient_checkpointing=true", lambda c: c.train.gradient_checkpointing, True),
        ("train.gradient_checkpointing=auto", lambda c: c.train.gradient_checkpointing, "auto"),
        ("method.target_modules=[q_proj, v_proj]", lambda c: c.method.target_modules, ["q_proj", "v_proj"]),
        ("data.eval=null", lambda c: c.data.eval, None),
        ("data.eval=", lambda c: c.data.eval, None),
        ("data.eval=held out.jsonl", lambda c: c.data.eval, "held out.jsonl"),
        ("data.columns={prompt: question}", lambda c: c.data.columns, {"prompt": "question"}),
        ("data.columns.prompt=question", lambda c: c.data.columns, {"prompt": "question"}),
        ("method.r=4", lambda c: c.method.r, 4),
        ("output_dir=runs/a=b", lambda c: c.output_dir, "runs/a=b"),
    ],
)
def test_override(override: str, read: Callable[[Config], Any], expected: Any) -> None:
    value = read(load_config(MINIMAL, [override]))
    assert value == expected
    assert type(value) is type(expected)


def text_fields(model: type[BaseModel] = Config, at: str = "") -> Iterator[str]:
    """Keys whose value can only be a string."""
    for name, field in model.model_fields.items():
        if field.annotation is str:
            yield f"{at}{name}"
        elif isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from text_fields(field.annotation, f"{at}{name}.")


@pytest.mark.parametrize("key", [*text_fields(), "data.columns.prompt", "data.replay.path"])
@given(
    text=st.sampled_from(["runs/a #b", "o: 4", "- a", "{{ a }}: {{ b }} # x", "[a, b]", "1e3", "null", "a: b: c", "="])
    | st.text(min_size=1, max_size=12).filter(lambda text: text[0] not in "'\"")
)
def test_an_override_of_a_text_is_taken_as_it_stands(key: str, text: str) -> None:
    node: Any = merge_overrides({}, [f"{key}={text}"])
    for part in key.split("."):
        node = node[part]
    assert node == text


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("data.train=runs/a #b.jsonl", "runs/a #b.jsonl"),
        ("data.train=o: 4", "o: 4"),
        ("data.train=[ab]*.jsonl", "[ab]*.jsonl"),
        ("data.train={a,b}.jsonl", "{a,b}.jsonl"),
        ("data.train=[a.jsonl, {path: b.jsonl, weight: 2.0}]", ["a.jsonl", {"path": "b.jsonl", "weight": 2.0}]),
        ("data.train='a.jsonl'", "a.jsonl"),
        ('data.train="2024.jsonl"', "2024.jsonl"),
        ("data.eval=0.2", 0.2),
        ("data.eval=0.2 #b", "0.2 #b"),
        ("data.chat_template=null", None),
        ("data.stratify_by=2024", "2024"),
        ("method.target_modules=[qv]_proj|[ok]_proj", "[qv]_proj|[ok]_proj"),
        ("method.init_lora_weights=false", False),
        ("method.init_lora_weights=pissa", "pissa"),
        ("method.unknown=a #b", "a #b"),
        ("method.unknown=[1, 2]", [1, 2]),
        ("offload=auto", "auto"),
        ("offload=true", True),
        ("seed=1 #b", "1 #b"),  # not a number, and not a comment to drop
    ],
)
def test_an_override_is_read_by_the_type_of_its_field(override: str, expected: Any) -> None:
    node: Any = merge_overrides({}, [override])
    for part in override.partition("=")[0].split("."):
        node = node[part]
    assert (node, type(node)) == (expected, type(expected))


@pytest.mark.parametrize(
    ("override", "fixed"),
    [
        ("data.columns={prompt: a, completion: b} #c", "data.columns={prompt: a, completion: 'b #c'}"),
        ("data.columns=prompt: a #b", "data.columns={prompt: 'a #b'}"),
        ("data.train=[a #b, c]", "data.train=['a #b', c]"),
    ],
)
def test_no_part_of_an_override_is_lost_as_a_comment(override: str, fixed: str) -> None:
    (problem,) = problems_of(MINIMAL, [override]).values()
    assert "#" in problem.message and "quotes" in problem.fix
    assert "#" in str(load_config(MINIMAL, [fixed]).data.model_dump())


def test_overrides_win_over_the_file_and_the_last_one_wins(write_yaml: WriteYaml) -> None:
    path = write_yaml("data: {train: rows.jsonl}\nseed: 1\n")
    assert load_config(path, ["seed=2", "seed=3"]).seed == 3
    assert load_config(load_config(path), ["seed=4"]).seed == 4


def test_overrides_leave_the_mapping_as_it_was() -> None:
    values = {"data": {"train": "rows.jsonl"}, "method": {"target_modules": ["q_proj"]}}
    merged = merge_overrides(values, ["data.train=other.jsonl", "train.optim=adamw_torch"])
    merged["method"]["target_modules"].append("v_proj")
    assert values == {"data": {"train": "rows.jsonl"}, "method": {"target_modules": ["q_proj"]}}
    assert merged["train"] == {"optim": "adamw_torch"}


def test_all_bad_overrides_are_reported_together() -> None:
    problems = problems_of(MINIMAL, ["seed", "=3", "data..train=x", "data.train.deeper=1"])
    assert problems.keys() == {"seed", "=3", "data..train=x", "data.train.deeper"}
    assert "'rows.jsonl'" in problems["data.train.deeper"].message
    assert "key.sub=value" in problems["seed"].fix


def test_override_that_is_not_yaml_is_named() -> None:
    (problem,) = problems_of(MINIMAL, ["method.target_modules=[q_proj"]).values()
    assert "method.target_modules=[q_proj" in problem.message


def test_all_errors_of_all_sections_at_once() -> None:
    values = {
        "modell": "x",
        "data": {"max_length": 4},
        "method": {"r": 0, "lora_dropout": 1.0},
        "train": {"learning_rat": 1e-4, "lr_scheduler_type": "cosin"},
        "seed": -1,
    }
    assert problems_of(values).keys() == {
        "modell",
        "data.train",
        "data.max_length",
        "method.r",
        "method.lora_dropout",
        "train.learning_rat",
        "train.lr_scheduler_type",
        "seed",
    }


@pytest.mark.parametrize(
    ("values", "field", "name"),
    [
        (with_train(learning_rat=1e-4), "train.learning_rat", "learning_rate"),
        ({**MINIMAL, "methd": {}}, "methd", "method"),
        ({**MINIMAL, "method": {"type": "lorra"}}, "method.type", "lora"),
        ({**MINIMAL, "method": {"lora_alfa": 3}}, "method.lora_alfa", "lora_alpha"),
        ({"data": {"train": "x", "pakcing": True}}, "data.pakcing", "packing"),
        (with_train(lr_scheduler_type="cosin"), "train.lr_scheduler_type", "cosine"),
        (with_train(gradient_checkpointing="atuo"), "train.gradient_checkpointing", "auto"),
        ({**MINIMAL, "dtype": "bfloat"}, "dtype", "bfloat16"),
    ],
)
def test_nearest_name(values: dict[str, Any], field: str, name: str) -> None:
    problems = problems_of(values)
    assert problems.keys() == {field}
    assert problems[field].fix.startswith("Did you mean") and f"'{name}'" in problems[field].fix


def test_two_names_that_are_as_near_are_both_given() -> None:
    problem = problems_of({**MINIMAL, "method": {"lora_alfa": 3}})["method.lora_alfa"]
    assert problem.fix == "Did you mean 'lora_fa' or 'lora_alpha'?"


def test_unknown_key_lists_what_is_allowed_and_guesses_nothing_far_fetched() -> None:
    problem = problems_of({**MINIMAL, "method": {"zzz": 1}})["method.zzz"]
    assert all(name in problem.message for name in ("lora_alpha", "target_modules", "use_rslora"))
    assert problem.fix == ""


def test_missing_field_shows_how_to_give_it() -> None:
    assert "train: train.jsonl" in problems_of({"data": {}})["data.train"].fix
    assert "data: " in problems_of({})["data"].fix


@pytest.mark.parametrize(
    ("values", "field", "found"),
    [
        (with_train(learning_rate="2e-4"), "train.learning_rate", "'2e-4'"),
        (with_train(load_best_model_at_end=1), "train.load_best_model_at_end", "1"),
        (with_train(load_best_model_at_end="true"), "train.load_best_model_at_end", "'true'"),
        (with_train(max_steps=True), "train.max_steps", "True"),
        (with_train(max_steps=1.0), "train.max_steps", "1.0"),
        (with_train(learning_rate=float("inf")), "train.learning_rate", "inf"),
        (with_train(learning_rate=0), "train.learning_rate", "0"),
        (with_train(warmup_ratio=1.0), "train.warmup_ratio", "1.0"),
        (with_train(report_to=3), "train.report_to", "3"),
        ({**MINIMAL, "seed": 2**63}, "seed", str(2**63)),
        ({**MINIMAL, "output_dir": ""}, "output_dir", "''"),
        ({**MINIMAL, "train": None}, "train", "None"),
        ({**MINIMAL, "method": "lora"}, "method", "'lora'"),
        ({**MINIMAL, "method": {"target_modules": []}}, "method.target_modules", "[]"),
        ({"data": {"train": "x", "eval": 1.0}}, "data.eval", "1.0"),
        ({"data": {"train": "x", "columns": {"prompt": 3}}}, "data.columns.prompt", "3"),
        ({"data": {"train": "x", "columns": ["prompt"]}}, "data.columns", "['prompt']"),
    ],
)
def test_wrong_type_or_range_names_field_and_value(values: dict[str, Any], field: str, found: str) -> None:
    problems = problems_of(values)
    assert problems.keys() == {field}
    assert found in problems[field].message
    assert "must be" in problems[field].message or "should" in problems[field].message


def test_a_share_or_a_file_reads_as_one_problem() -> None:
    message = problems_of({"data": {"train": "x", "eval": 1.5}})["data.eval"].message
    kinds = ("less than 1", "a valid integer", "a valid string", "a mapping of keys.")
    assert message == "got 1.5; " + ", or ".join(f"must be {kind}" for kind in kinds)
    assert load_config({"data": {"train": "x", "eval": 500}}).data.eval == 500


def test_columns_maps_known_fields_only() -> None:
    message = problems_of({"data": {"train": "x", "columns": {"question": "prompt"}}})["data.columns"].message
    assert "'question'" in message
    assert "completion" in message


@pytest.mark.parametrize(
    ("values", "field", "words"),
    [
        (with_train(max_steps=5, num_train_epochs=1), "train", ("max_steps", "num_train_epochs")),
        (with_train(warmup_ratio=0.1, warmup_steps=5), "train", ("warmup_ratio", "warmup_steps")),
        (with_train(lr_scheduler_type="constant", warmup_steps=5), "train", ("constant_with_warmup",)),
        (with_train(lr_scheduler_type="constant", warmup_ratio=0.1), "train", ("constant_with_warmup",)),
        (with_train(early_stopping_threshold=0.1), "train", ("early_stopping_patience",)),
        (
            {"data": {"train": "x", "eval": None}, "train": {"early_stopping_patience": 2}},
            "config",
            ("early_stopping_patience", "data.eval"),
        ),
        ({"data": {"train": "x", "eval": None}, "train": {"eval_steps": 2}}, "config", ("eval_steps", "data.eval")),
        ({**MINIMAL, "method": {"target_modules": "q_("}}, "method.target_modules", ("'q_('", "regular expression")),
    ],
)
def test_settings_that_contradict_each_other(values: dict[str, Any], field: str, words: tuple[str, ...]) -> None:
    problems = problems_of(values)
    assert problems.keys() == {field}
    assert all(word in problems[field].message for word in words)


@pytest.mark.parametrize(
    "train",
    [
        {"max_steps": 5},
        {"warmup_ratio": 0.1},
        {"warmup_steps": 5, "lr_scheduler_type": "constant_with_warmup"},
        {"early_stopping_patience": 1, "early_stopping_threshold": 0.1},
        {"eval_steps": 2},
    ],
)
def test_settings_that_fit_each_other(train: dict[str, Any]) -> None:
    filled_in = {"learning_rate"}  # by the method
    assert load_config(with_train(**train)).train.model_fields_set - filled_in == train.keys()


def test_all_contradictions_of_a_section_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(with_train(max_steps=5, num_train_epochs=1, warmup_ratio=0.1, warmup_steps=5))
    assert "max_steps" in str(caught.value)
    assert "warmup_ratio" in str(caught.value)


def test_columns_message_ends_in_one_full_stop() -> None:
    message = problems_of({"data": {"train": "x", "columns": {"question": "prompt"}}})["data.columns"].message
    assert not message.endswith("..")


def test_a_problem_reads_as_sentences() -> None:
    assert str(Problem("data.train", "x does not exist", "check the path")) == (
        "data.train: x does not exist. Fix: check the path"
    )


def test_duplicate_key_is_an_error_with_its_line(write_yaml: WriteYaml) -> None:
    problems = problems_of(write_yaml("data: {train: rows.jsonl}\ntrain:\n  max_steps: 1\n  max_steps: 2\n"))
    assert problems.keys() == {"max_steps"}
    assert "line 4" in problems["max_steps"].message


@pytest.mark.parametrize(
    ("text", "line", "column"), [("data: {train: x\nseed: 1\n", 2, 5), ("data:\n\ttrain: x\n", 2, 1)]
)
def test_invalid_yaml_names_file_line_and_column(write_yaml: WriteYaml, text: str, line: int, column: int) -> None:
    path = write_yaml(text)
    (problem,) = problems_of(path).values()
    assert f"{path} is not valid YAML (line {line}, column {column})" in problem.message


@pytest.mark.parametrize(
    "line",
    ["model: {{MODEL}}", "? [a]\n: 1", "seed: !!int many", "output_dir: 2024-02-30"],
    ids=["braces", "list as key", "tagged int", "impossible date"],
)
def test_yaml_whose_values_cannot_be_built_names_the_file(write_yaml: WriteYaml, line: str) -> None:
    path = write_yaml(f"data: {{train: rows.jsonl}}\n{line}\n")
    (problem,) = problems_of(path).values()
    assert str(path) in problem.message


def test_yaml_merge_key(write_yaml: WriteYaml) -> None:
    path = write_yaml("base: &base {max_steps: 3, optim: a}\ntrain: {<<: *base, optim: b}\n")
    assert read_yaml(path)["train"] == {"max_steps": 3, "optim": "b"}


@pytest.mark.parametrize(
    ("text", "words"),
    [("", "is empty"), ("# only a comment\n", "is empty"), ("- a\n- b\n", "contains a list"), ("just text\n", "a str")],
)
def test_file_that_is_no_mapping(write_yaml: WriteYaml, text: str, words: str) -> None:
    (problem,) = problems_of(write_yaml(text)).values()
    assert words in problem.message
    assert "mapping" in problem.message


def test_missing_file_folder_and_non_utf8(tmp_path: Path) -> None:
    (missing,) = problems_of(tmp_path / "nope.yaml").values()
    assert f"{tmp_path / 'nope.yaml'} does not exist" in missing.message
    (folder,) = problems_of(tmp_path).values()
    assert "is a folder" in folder.message
    latin = tmp_path / "latin.yaml"
    latin.write_bytes("data: {train: zürich.jsonl}".encode("latin-1"))
    (encoding,) = problems_of(latin).values()
    assert "UTF-8" in encoding.fix


def test_errors_name_the_file(write_yaml: WriteYaml) -> None:
    path = write_yaml("data: {train: rows.jsonl}\nseed: many\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(caught.value).startswith(f"{path}: seed: got 'many'")


def test_yaml_numbers_in_exponent_form_are_numbers(write_yaml: WriteYaml) -> None:
    values = read_yaml(write_yaml("a: 2e-4\nb: .5e3\nc: '2e-4'\nd: 1e\ne: 12\n"))
    assert values == {"a": 2e-4, "b": 500.0, "c": "2e-4", "d": "1e", "e": 12}


def test_output_dir_defaults_to_the_stem_of_the_file(write_yaml: WriteYaml) -> None:
    path = write_yaml("data: {train: rows.jsonl}\n", "my-run.v2.yaml")
    assert load_config(path).output_dir == "runs/my-run.v2"
    assert load_config(path, ["output_dir=elsewhere"]).output_dir == "elsewhere"
    assert load_config(MINIMAL).output_dir == "runs/lamina"


@pytest.mark.parametrize(
    "values",
    [
        MINIMAL,
        {
            "model": "org/name",
            "data": {"train": "ü.jsonl", "eval": None, "columns": {"prompt": "frage"}, "packing": False},
            "method": {"type": "lora", "r": 3, "lora_alpha": 7, "target_modules": ["q_proj", "v_proj"]},
            "train": {"learning_rate": 1e-7, "max_steps": 3, "report_to": ["tensorboard"], "warmup_steps": 1},
            "seed": 2**63 - 1,
        },
    ],
    ids=["defaults", "everything else"],
)
def test_resolved_config_round_trips_through_yaml(write_yaml: WriteYaml, values: dict[str, Any]) -> None:
    config = load_config(values)
    text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    again = load_config(write_yaml(text))
    assert again == config
    assert again.model_dump_json() == config.model_dump_json()


def test_config_error_is_a_value_error_with_exit_code_2_and_plain_details() -> None:
    with pytest.raises(ValueError) as caught:
        load_config({**with_train(learning_rat=1), "seed": -1})
    error = caught.value
    assert isinstance(error, ConfigError) and isinstance(error, LaminaError)
    assert error.exit_code == 2
    assert "2 problems" in str(error)
    details = error.details()
    assert details["type"] == "ConfigError"
    assert [problem["field"] for problem in details["problems"]] == ["train.learning_rat", "seed"]  # type: ignore[attr-defined]


SO: list[tuple[str, dict[str, Any]]] = [
    ("lora", {"task_type": "CAUSAL_LM", "inference_mode": False, "fan_in_fan_out": False, "bias": "none"}),
    ("lora", {"target_parameters": None, "trainable_token_indices": None, "lora_bias": False}),
    ("vera", {"bias": "none", "modules_to_save": None, "init_weights": True, "fan_in_fan_out": True}),
    ("adalora", {"bias": "none", "init_lora_weights": True, "use_dora": False}),
    ("loha", {"init_weights": True, "alpha_pattern": {}, "exclude_modules": []}),
    ("bitfit", {"task_type": "CAUSAL_LM", "modules_to_save": None}),
]
NOT_SO: list[tuple[str, str, Any]] = [
    ("dora", "task_type", "SEQ_2_SEQ_LM"),
    ("lora", "inference_mode", True),
    ("lora", "lora_bias", True),
    ("lora", "lora_bias", 0),
    ("vera", "bias", "all"),
    ("vera", "init_weights", False),
    ("bitfit", "bias", "none"),
    ("full", "init_lora_weights", True),
    ("loha", "rank_pattern", {"q_proj": 2}),
]


@pytest.mark.parametrize(("method", "fields"), SO)
def test_fields_of_peft_that_say_what_is_so_are_taken(method: str, fields: dict[str, Any]) -> None:
    """As in tutorials; the configuration is the same without them."""
    given = load_config({"data": {"train": "x"}, "method": {"type": method, **fields}})
    assert given == load_config({"data": {"train": "x"}, "method": {"type": method}})


@pytest.mark.parametrize(("method", "field", "value"), NOT_SO)
def test_fields_of_peft_that_say_something_else_are_unknown(method: str, field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"method\.{field}: unknown key"):
        load_config({"data": {"train": "x"}, "method": {"type": method, field: value}})


@pytest.mark.parametrize(
    ("field", "text"),
    [
        ("model", 'model: "A"\ndata: {train: x.jsonl}'),
        ("data.train", 'data: {train: "A"}'),
        ("data.train", 'data: {train: [x.jsonl, "A"]}'),
        ("data.train.path", 'data: {train: [{path: "A", weight: 1.0}]}'),
        ("data.eval", 'data: {train: x.jsonl, eval: "A"}'),
        ("data.replay.path", 'data: {train: x.jsonl, replay: {path: "A", share: 0.1}}'),
        ("data.chat_template", 'data: {train: x.jsonl, chat_template: "A"}'),
        ("data.columns.prompt", 'data: {train: x.jsonl, columns: {prompt: "A"}}'),
        ("method.target_modules", 'data: {train: x.jsonl}\nmethod: {type: lora, target_modules: ["A"]}'),
        ("output_dir", 'data: {train: x.jsonl}\noutput_dir: "A"'),
    ],
)
def test_a_text_that_no_path_can_be_names_its_field(write_yaml: WriteYaml, field: str, text: str) -> None:
    with pytest.raises(ConfigError, match="it contains a NUL character, which a path or name cannot have") as caught:
        load_config(write_yaml(text.replace("A", r"a\0b")))
    assert [problem.field for problem in caught.value.problems] == [field]


@pytest.mark.parametrize("field", ["model", "output_dir", "data.train", "data.eval"])
def test_a_path_that_the_process_cannot_encode_is_one_error(field: str) -> None:
    """In the C locale without UTF-8 mode, Python encodes paths as ASCII."""
    code = f"""
import sys
from lamina.config import load_config
from lamina.errors import ConfigError
assert sys.getfilesystemencoding() == "ascii"
try:
    load_config({{"data": {{"train": "a.jsonl"}}}}, ["{field}=runs/\\xfc"])
except ConfigError as error:
    print(ascii(str(error)))
"""
    environment = {**os.environ, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert f"{field}: got " in done.stdout, done.stderr
    assert "encodes paths as ascii" in done.stdout
    assert "PYTHONUTF8=1" in done.stdout
