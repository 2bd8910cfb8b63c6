"""What the docs site has beside the files of `docs/`: the pages at the root of the repository, and folders in the nav.

A hook of MkDocs (`hooks:` in mkdocs.yml). README, CONTRIBUTING, SECURITY and CHANGELOG are read where they lie, with
their links to `docs/` made relative; a folder in the nav stands for all of its pages, its README first.
"""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Puts a folder's pages in its place in the nav."""
    config.nav = [_expanded(entry) for entry in config.nav or []]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages of the repository's root."""
    for source, page in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=relative_links(text)))
    return files


def relative_links(text: str) -> str:
    """Links of a page at the root, as they are from within `docs/`.

    >>> relative_links("[runs](docs/runs.md#exit-codes), [security](SECURITY.md)")
    '[runs](runs.md#exit-codes), [security](security.md)'
    """
    text = re.sub(r"\]\(docs/", "](", text)
    return re.sub(r"\]\(([A-Z]+\.md)", lambda link: f"]({PAGES.get(link[1], link[1])}", text)


def _expanded(entry: object) -> object:
    if isinstance(entry, dict):
        return {title: _expanded(below) for title, below in entry.items()}
    if isinstance(entry, list):
        return [_expanded(below) for below in entry]
    folder = ROOT / "docs" / str(entry)
    if not folder.is_dir():
        return entry
    names = sorted((page.name for page in folder.glob("*.md")), key=lambda name: (name != "README.md", name))
    return [f"{entry}/{name}" for name in names]
