"""The docs site's parts are there: `make docs` itself needs MkDocs, and CI runs it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

import lamina
from lamina import errors

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
SITE = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))


def places(entry: Any) -> list[str]:
    """The pages and folders that the nav names."""
    if isinstance(entry, str):
        return [entry]
    below = entry.values() if isinstance(entry, dict) else entry
    return [place for each in below for place in places(each)]


def test_every_page_has_a_place_in_the_nav_and_every_place_a_page() -> None:
    named = places(SITE["nav"])
    folders = [name for name in named if (DOCS / name).is_dir()]
    for page in DOCS.rglob("*.md"):
        name = str(page.relative_to(DOCS))
        assert name in named or name.rpartition("/")[0] in folders, f"{name} is not in the nav of mkdocs.yml"
    for name in named:
        root_page = ROOT / {"index.md": "README.md"}.get(name, name.replace(".md", "").upper() + ".md")
        assert (DOCS / name).exists() or root_page.exists(), name


def test_everything_public_is_in_the_api_reference() -> None:
    page = (DOCS / "reference" / "api.md").read_text(encoding="utf-8")
    exceptions = {each for each in map(vars(errors).get, lamina.__all__) if isinstance(each, type)}
    public = {*lamina.__all__, "errors"} - {"__version__"} - {each.__name__ for each in exceptions}
    assert set(re.findall(r"^::: lamina\.(\w+)$", page, re.MULTILINE)) == public


def test_nothing_is_loaded_from_elsewhere_and_a_warning_ends_the_build() -> None:
    assert SITE["theme"]["font"] is False
    assert SITE["strict"] is True
    assert "mkdocs build --strict\n" in (ROOT / "Makefile").read_text(encoding="utf-8")  # --quiet would hide warnings
