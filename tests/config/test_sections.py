"""What applies to every section and field: closed, strict, described, and free of torch."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel, ValidationError

from lamina.config import METHOD_CONFIGS, Config, DataConfig, load_config
from lamina.config.data import MAPPABLE_FIELDS
from lamina.config.gate import GateConfig
from lamina.config.section import describe_fields
from lamina.config.sections import read_section_file
from lamina.data.formats import FORMATS
from lamina.errors import ConfigError

HEAVY = ("torch", "transformers", "numpy", "tokenizers")


def sections(model: type[BaseModel] = Config) -> Iterator[type[BaseModel]]:
    """Yields a section and its subsections; every method's section instead of the default one."""
    yield model
    for field in model.model_fields.values():
        for annotation in parts_of(field.annotation):
            if isinstance(annotation, type) and issubclass(annotation, BaseModel):
                yield from sections(annotation)


def parts_of(annotation: Any) -> Iterator[Any]:
    """Returns a type, and all types that it is composed of."""
    yield annotation
    for part in get_args(annotation):
        yield from parts_of(part)


SECTIONS = sorted({*sections(), *METHOD_CONFIGS.values()}, key=lambda section: section.__name__)


def schema_fields(schema: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns every field of a JSON Schema as `Section.field`."""
    named = {schema["title"]: schema, **schema.get("$defs", {})}
    return {f"{name}.{key}": value for name, part in named.items() for key, value in part["properties"].items()}


def test_the_walk_finds_every_section() -> None:
    assert {section.__name__ for section in SECTIONS} >= {"Config", "DataConfig", "TrainConfig", "LoraConfig"}


@pytest.mark.parametrize("section", SECTIONS)
def test_every_field_has_a_description(section: type[BaseModel]) -> None:
    assert section.model_fields
    for name in section.model_fields:
        assert describe_fields(section).get(name, "").strip(), f"{section.__name__}.{name}"
        assert name.islower() or name == "deltaT"  # as peft has it


@pytest.mark.parametrize("section", SECTIONS)
def test_every_section_is_strict_closed_and_frozen(section: type[BaseModel]) -> None:
    settings = section.model_config
    # The fields of peft's own methods are checked against peft, when the adapter is attached.
    extra = "allow" if section is METHOD_CONFIGS["peft"] else "forbid"
    assert (settings.get("strict"), settings.get("extra"), settings.get("frozen")) == (True, extra, True)
    assert settings.get("allow_inf_nan") is False


def test_schema_has_every_field_with_its_description() -> None:
    fields = schema_fields(Config.model_json_schema())
    for section in SECTIONS:
        for name, text in describe_fields(section).items():
            assert fields[f"{section.__name__}.{name}"]["description"] == text
    assert len(fields) == sum(len(section.model_fields) for section in SECTIONS)


@pytest.mark.parametrize(("name", "config"), METHOD_CONFIGS.items())
def test_every_method_says_what_it_is(name: str, config: type[BaseModel]) -> None:
    assert config.model_fields["type"].default == name
    for text in ("title", "paper", "summary"):
        assert getattr(config, text).strip()


def test_a_config_cannot_be_changed() -> None:
    config = load_config({"data": {"train": "x"}})
    with pytest.raises(ValidationError):
        config.seed = 1
    with pytest.raises(ValidationError):
        config.train.learning_rate = 1.0


def test_data_formats_of_the_config_are_those_that_exist() -> None:
    allowed = get_args(DataConfig.model_fields["format"].annotation)
    assert set(allowed) == {"auto", *FORMATS}
    read = " ".join(field for module in FORMATS.values() for field in (*module.FIELDS, *module.OPTIONAL_FIELDS))
    assert all(field in read for field in MAPPABLE_FIELDS)


def test_imports_leave_torch_and_transformers_alone() -> None:
    modules = ("lamina", "lamina.config", "lamina.errors", "lamina.files", "lamina.runs")
    code = f"import sys, {', '.join(modules)}; print(*[name for name in {HEAVY} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == []


BEGINS = "better: [{task: t.yaml, metric: exact_match}]"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "is empty; it must be a mapping of keys. Fix: start with `better: "),
        ("- 1", "contains a list; it must be a mapping of keys. Fix: start with `better: "),
        (None, "is a folder, not a YAML file"),
    ],
    ids=["empty", "list", "folder"],
)
def test_a_file_that_is_none(tmp_path: Path, content: str | None, words: str) -> None:
    path = tmp_path / "gate.yaml"
    path.mkdir() if content is None else path.write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        read_section_file(GateConfig, path, "--gate", BEGINS)
    assert str(caught.value).startswith("--gate: ") and words in str(caught.value)


def test_the_way_that_the_error_names_works(tmp_path: Path) -> None:
    path = tmp_path / "gate.yaml"
    path.write_text(BEGINS, encoding="utf-8")
    assert len(read_section_file(GateConfig, path, "--gate", BEGINS).better) == 1
