"""The generated references are those of the code: `make reference` would change nothing."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, Field
from tools import reference

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", ["reference/cli.md", "reference/config.md", "decisions/README.md"])
def test_the_stored_page_is_what_the_code_gives(name: str) -> None:
    stored = (ROOT / "docs" / name).read_text(encoding="utf-8")
    assert stored == reference.pages()[name], f"docs/{name} is out of date; run `make reference`"


def test_a_changed_page_is_reported_with_the_command_that_renews_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    monkeypatch.setattr(reference, "DOCS", tmp_path / "docs")
    monkeypatch.setattr("sys.argv", ["reference.py", "--check"])
    assert reference.main() == 0
    page = tmp_path / "docs" / "reference" / "config.md"
    page.write_text(page.read_text(encoding="utf-8").replace("`1024`", "`2048`"), encoding="utf-8")
    assert reference.main() == 1
    assert capsys.readouterr().err == "docs/reference/config.md is out of date; run `make reference`\n"
    monkeypatch.setattr("sys.argv", ["reference.py"])
    assert reference.main() == 0
    assert page.read_text(encoding="utf-8") == reference.pages()["reference/config.md"]


def test_index_and_pages_of_the_decisions_agree() -> None:
    folder = ROOT / "docs" / "decisions"
    index = (folder / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \[(\d{4})\]\((.+?)\) \| (\S+) \| .+ \| \*\*(.+?)\.\*\* (.+) \|$", index, re.MULTILINE)
    files = sorted(path.name for path in folder.glob("*.md") if path.name != "README.md")
    assert [row[1] for row in rows] == files
    numbers = [row[0] for row in rows]  # with gaps, where branches took numbers beside each other
    assert numbers == sorted(set(numbers)) == [file[:4] for file in files]
    for _, file, date, title, summary in rows:
        head = (folder / file).read_text(encoding="utf-8").split("\n\n")
        assert head[0] == f"# {title}"
        assert head[1].startswith(f"{date} · ")
        assert " ".join(head[2].split()) == summary
        assert summary.endswith(".") and len(summary) < 180, file


def test_every_setting_command_and_option_is_described() -> None:
    assert reference.undescribed() == []


def test_every_command_and_every_section_has_its_heading() -> None:
    from lamina.config import METHOD_CONFIGS, Config

    pages = reference.pages()
    for name in Config.model_fields:
        assert f"| `{name}` |" in pages["reference/config.md"]
    for name in METHOD_CONFIGS:
        assert f"### `method: {{type: {name}}}`" in pages["reference/config.md"]
    for command in ("lamina train", "lamina data check", "lamina bench train"):
        assert f"\n## {command}\n" in pages["reference/cli.md"]


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
    assert reference.readable(hint) == words


def test_what_has_no_description_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from lamina.config.section import describe_fields

    def without(cls: type[BaseModel]) -> dict[str, str]:
        return {name: text for name, text in describe_fields(cls).items() if name != "max_steps"}

    monkeypatch.setattr(reference, "describe_fields", without)
    assert reference.undescribed() == ["TrainConfig.max_steps"]
