"""The generated references are those of the code: `make reference` would change nothing."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Annotated, Literal

import pytest
from pydantic import Field

ROOT = Path(__file__).resolve().parents[2]


def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("reference", ROOT / "tools" / "reference.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


REFERENCE = tool()


@pytest.mark.parametrize("name", ["cli.md", "config.md"])
def test_the_stored_page_is_what_the_code_gives(name: str) -> None:
    stored = (ROOT / "docs" / "reference" / name).read_text(encoding="utf-8")
    assert stored == REFERENCE.pages()[name], f"docs/reference/{name} is out of date; run `make reference`"


def test_every_setting_command_and_option_is_described() -> None:
    assert REFERENCE.undescribed() == []


def test_every_command_and_every_section_has_its_heading() -> None:
    from lamina.config import METHOD_CONFIGS, Config

    pages = REFERENCE.pages()
    for name in Config.model_fields:
        assert f"| `{name}` |" in pages["config.md"]
    for name in METHOD_CONFIGS:
        assert f"### `method: {{type: {name}}}`" in pages["config.md"]
    for command in ("lamina train", "lamina data check", "lamina bench train"):
        assert f"\n## {command}\n" in pages["cli.md"]


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        (Annotated[int, Field(ge=1)] | None, "integer (at least 1) or null"),
        (Annotated[float, Field(gt=0.0, lt=1.0)] | str | None, "number (more than 0, less than 1), text or null"),
        (Literal["a", "b"] | None, "`a`, `b` or null"),
        (dict[str, list[bool]] | None, "mapping of text to list of boolean, or null"),
        (Annotated[int, Field(ge=0, lt=2**63)], "integer (at least 0)"),
        (Literal["auto"] | bool, "`auto` or boolean"),
    ],
)
def test_types_are_in_words(hint: object, words: str) -> None:
    assert REFERENCE.readable(hint) == words
