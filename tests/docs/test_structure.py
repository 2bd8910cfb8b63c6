"""The house rules: rooms use only rooms above them, none is too large, the ground is light, tests mirror the code."""

from __future__ import annotations

import graphlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from tools.house import INSIDE, LARGEST_SHARE, LIGHT, ORDER, PAGE, ROOT, SOURCE, files, graph, imports, page, rooms

HEAVY = ("torch", "transformers", "numpy", "safetensors")
TESTS = ROOT / "tests"

# Folders of tests that are about no room alone.
ACROSS = {"docs", "golden", "gpu", "plugins", "support", "zoo"}


def test_every_room_has_its_place() -> None:
    assert {name.split(".")[0] for name in files()} == set(ORDER)


def test_a_room_imports_only_from_rooms_above_it() -> None:
    places = {room: place for place, room in enumerate(ORDER)}
    wrong = [
        f"{name} imports {other}"
        for name, others in graph().items()
        for other in others
        if places[other.split(".")[0]] > places[name.split(".")[0]]
    ]
    assert not wrong, wrong


@pytest.mark.parametrize("room", INSIDE)
def test_within_a_room_too(room: str) -> None:
    order = INSIDE[room]
    assert all(
        (SOURCE / room / part).is_dir() or (SOURCE / room / f"{part}.py").exists() for part in order if part != "*"
    )

    def place(module: str) -> int:
        part = module.split(".")[1]
        assert part in order or "*" in order, f"{module} has no place in {room}"
        return order.index(part if part in order else "*")

    wrong = [
        f"{name} imports {other}"
        for name, others in graph().items()
        for other in others
        if name.startswith(f"{room}.") and other.startswith(f"{room}.") and place(other) > place(name)
    ]
    assert not wrong, wrong


def test_no_files_import_each_other_in_a_circle() -> None:
    graphlib.TopologicalSorter(graph()).prepare()  # raises CycleError, with the circle


def test_no_room_is_too_large() -> None:
    sizes = {room.name: room.lines for room in rooms() if "." not in room.name}
    largest = max(sizes, key=sizes.__getitem__)
    assert sizes[largest] < LARGEST_SHARE * sum(sizes.values()), f"{largest} holds {sizes[largest]:,} lines"


def test_light_rooms_import_nothing_heavy() -> None:
    for name, path in files().items():
        if name.split(".")[0] in LIGHT:
            heavy = [other for other in imports(path) if other.split(".")[0] in HEAVY]
            assert not heavy, f"{name} imports {heavy}"


def test_the_page_shows_the_house() -> None:
    """All but the sizes exactly; sizes to a fifth, so that not every change of code is one of the page."""
    number = re.compile(r"\| ([\d,]+) \|")
    written, now = PAGE.read_text(encoding="utf-8"), page()
    stale = f"{PAGE.relative_to(ROOT)} is stale: run `python tools/house.py`"
    assert number.sub("", written) == number.sub("", now), stale
    for old, new in zip(number.findall(written), number.findall(now), strict=True):
        old, new = int(old.replace(",", "")), int(new.replace(",", ""))
        assert abs(new - old) <= max(50, new // 5), stale


def test_every_package_says_in_a_sentence_what_it_is() -> None:
    for room in rooms():
        assert 10 < len(room.purpose) <= 118, f"{room.name}: {room.purpose!r}"


def test_methods_come_in_pairs() -> None:
    """Each method's configuration has its mathematics under the same name; all else that methods need is in shared/."""
    from lamina.config import METHOD_CONFIGS
    from lamina.methods.shared.base import Method, all_methods

    assert all(isinstance(method, Method) for method in all_methods().values())
    assert {path.stem for path in (SOURCE / "methods").glob("*.py")} == {"__init__", *METHOD_CONFIGS}


def test_the_hot_path_knows_no_configuration() -> None:
    assert not [
        name
        for name, uses in graph().items()
        if name.startswith("compute.") and any(u.split(".")[0] == "config" for u in uses)
    ]


def test_files_are_not_too_long() -> None:
    long = {
        name: n for name, path in files().items() if (n := len(path.read_text(encoding="utf-8").splitlines())) > 420
    }
    assert set(long) <= {"quickstart.wording"}, long  # which is a list of sentences


def python_tests() -> Iterator[Path]:
    return (path.relative_to(TESTS) for path in sorted(TESTS.rglob("*.py")) if "__pycache__" not in path.parts)


def test_tests_mirror_the_code() -> None:
    """Tests of `src/lamina/ROOM` are in `tests/ROOM`, in files named test_*.py; their helpers are in tests/support."""
    for path in python_tests():
        if path.parent == Path() or path.parts[0] in ACROSS:
            continue
        assert (SOURCE / path.parent).is_dir(), f"tests/{path.parent}: there is no src/lamina/{path.parent}"
        assert path.name.startswith("test_") or path.name in ("__init__.py", "conftest.py"), f"tests/{path}: a helper"


def test_no_helper_is_in_a_test() -> None:
    """A test may run another test, but whatever else they share is in tests/support."""
    for path in python_tests():
        wrong = [name for name in imports(TESTS / path) if re.fullmatch(r"tests\.(\w+\.)*test_\w+\.(?!test_)\w+", name)]
        assert not wrong, f"tests/{path} imports {wrong}"
