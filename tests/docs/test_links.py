"""Every link between the documents leads somewhere: to a file that is there, and to a heading that it has."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)")


def text_of(page: Path) -> str:
    """A page without its code blocks."""
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and MkDocs make them."""
    headings = re.findall(r"^#+ (.+)$", text_of(page), re.MULTILINE)
    plain = [re.sub(r"[^\w\s-]", "", heading).strip().lower() for heading in headings]
    return {re.sub(r"\s+", "-", heading) for heading in plain}


def broken(page: Path) -> list[str]:
    """The links of a page that lead nowhere."""
    found = []
    for link in (first or second for first, second in LINK.findall(text_of(page))):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            found.append(link)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_its_links_lead_somewhere(page: Path) -> None:
    assert broken(page) == []


def test_what_leads_nowhere_is_found(tmp_path: Path) -> None:
    (tmp_path / "there.md").write_text("# A `heading`, here\n\n```\n# no heading\n```\n")
    good = "[a](there.md) [b](there.md#a-heading-here) [c](https://example.org/x) [d](#top)"
    bad = "[e](gone.md) [f](there.md#no-heading) ![g](gone.png)"
    (tmp_path / "page.md").write_text(f"# Top\n\n{good}\n\n```\n[h](gone-too.md)\n```\n\n{bad}\n")
    assert broken(tmp_path / "page.md") == ["gone.md", "there.md#no-heading", "gone.png"]


def test_every_page_of_the_docs_is_reached_from_the_readme() -> None:
    """By links from page to page, or by a place in the docs site's navigation."""
    reached, waiting = set[Path](), [ROOT / "README.md", ROOT / "docs" / "reference" / "cli.md"]
    while waiting:
        page = waiting.pop()
        if page in reached:
            continue
        reached.add(page)
        links = [(first or second).partition("#")[0] for first, second in LINK.findall(text_of(page))]
        waiting += [(page.parent / link).resolve() for link in links if link.endswith(".md") and ":" not in link]
    assert [str(page.relative_to(ROOT)) for page in PAGES if page not in reached] == []
