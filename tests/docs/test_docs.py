"""Documents that cannot drift: every path and name of the tour exists, every command of the README is one."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from lamina.cli.app import COMMANDS, GROUPS
from lamina.config import load_config

ROOT = Path(__file__).resolve().parents[2]
PATH = re.compile(r"`(src/lamina/[\w/]+\.py)`")
NAME = re.compile(r"`([A-Za-z_]\w*)`")


WAYS = re.compile(r"## The way of (?:a \w+|several \w+)\n")


def stops(way: int | None = None) -> list[str]:
    """The stops of the tour, or of one of its four ways."""
    text = (ROOT / "docs/tour.md").read_text(encoding="utf-8")
    if way is not None:
        text = WAYS.split(text)[way]
    return re.split(r"\n\d+\. ", text)[1:]


def test_each_way_of_the_tour_has_at_most_ten_stops() -> None:
    assert all(4 <= len(stops(way)) <= 10 for way in range(4))
    assert "save_adapter" in stops(0)[-1]
    assert "Detokenizer" in stops(1)[-1]
    assert "follow" in stops(2)[-1]
    assert "Failure" in stops(3)[-1]


def test_every_path_and_name_of_the_tour_exists() -> None:
    assert all(PATH.findall(stop) for stop in stops())
    tour = "".join(stops())
    sources = [(ROOT / path).read_text(encoding="utf-8") for path in PATH.findall(tour)]  # fails where a file is gone
    for name in NAME.findall(PATH.sub("", tour)):
        defined = any(re.search(rf"^\s*(?:def|class) {name}\b", source, re.MULTILINE) for source in sources)
        assert defined, f"{name} is not defined in the files that the tour names"


def test_the_configuration_of_the_readme_is_valid() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert load_config(yaml.safe_load(block.replace("2e-4", "0.0002"))).method.type == "lora"


def test_every_command_of_the_readme_is_one() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    known = GROUPS.keys() | COMMANDS.keys()
    blocks = "".join(re.findall(r"```\w*\n(.*?)```", text, re.DOTALL))
    used = {
        name for names in re.findall(r"^lamina (\w+(?: \| \w+)*)", blocks, re.MULTILINE) for name in names.split(" | ")
    }
    assert used <= known
    assert {"train", "eval", "chat", "generate", "merge", "methods"} <= used


def test_every_make_target_of_the_readme_is_one() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))
    assert {"quickstart", "test", "check", "bench", "gpu", "clean"} <= targets
    assert set(re.findall(r"^make (\w+)", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)) <= targets


def test_the_changelog_has_the_form_of_keep_a_changelog() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    releases = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert releases[0] == "[Unreleased]"
    assert all(re.fullmatch(r"\[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d", release) for release in releases[1:])
    for release in re.split(r"^## .+$", text, flags=re.MULTILINE)[1:]:
        kinds = re.findall(r"^### (.+)$", release, re.MULTILINE)
        order = ["Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"]
        assert kinds == [kind for kind in order if kind in kinds]
