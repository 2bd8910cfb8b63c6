"""What the docs site has beside the files of `docs/`, and what it must not have.

A hook of MkDocs (`hooks:` in mkdocs.yml). README, CONTRIBUTING, SECURITY and CHANGELOG are read where they lie, with
their links to `docs/` made relative; a folder in the nav stands for all of its pages, its README first. A page that
would load something from elsewhere is a warning, which ends a strict build.
"""

from __future__ import annotations

import logging
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
LOADS = re.compile(r"<(?:script|link|img|iframe|source)\b[^>]*?\b(?:src|href)=[\"']?((?:https?:)?//[^\"'\s>]+)")

log = logging.getLogger("mkdocs.hooks.site_pages")


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


def on_post_build(config: MkDocsConfig) -> None:
    """Warns of every page that loads a script, a style, a font or a picture from elsewhere."""
    for page in sorted(Path(config.site_dir).rglob("*.html")):
        for address in loads_from_elsewhere(page.read_text(encoding="utf-8")):
            log.warning(f"{page.relative_to(config.site_dir)} loads {address}")


def loads_from_elsewhere(html: str) -> list[str]:
    """Addresses of other machines that a page loads by itself; links that a reader may follow are none.

    >>> loads_from_elsewhere('<a href="https://a.org">a</a> <script async src="https://b.org/c.js"></script>')
    ['https://b.org/c.js']
    """
    return LOADS.findall(html)


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
