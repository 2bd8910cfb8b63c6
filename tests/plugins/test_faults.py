"""A package that cannot be used breaks nothing that does not need it, and errors that name it give the reason."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.plugins.helpers import install, run_lamina, run_python

CONFIG = "lamina.losses.config"
LOSS = "lamina.losses"

FAULTS: dict[str, tuple[str, list[Mapping[str, Mapping[str, str]]], list[str]]] = {
    "no module": ("x", [{CONFIG: {"x": "nowhere_at_all"}, LOSS: {"x": "nowhere_at_all"}}], ["cannot be imported"]),
    "no attribute": ("x", [{CONFIG: {"x": "json"}, LOSS: {"x": "json"}}], ["cannot be imported", "CONFIG"]),
    "one half": ("x", [{CONFIG: {"x": "json"}}], ["has no entry point", LOSS]),
    "lamina's own name": ("cross_entropy", [{CONFIG: {"cross_entropy": "json"}, LOSS: {"cross_entropy": "json"}}], []),
    "two packages": ("x", [{CONFIG: {"x": "json"}, LOSS: {"x": "json"}}] * 2, ["both add", "first 1.0", "second 1.0"]),
    "a name": ("X-1", [{CONFIG: {"X-1": "json"}, LOSS: {"X-1": "json"}}], ["lowercase"]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_reason_is_told_and_the_rest_works(fault: str, tmp_path: Path) -> None:
    name, packages, reasons = FAULTS[fault]
    for distribution, points in zip(("first", "second"), packages, strict=False):
        install(tmp_path / "site", distribution, points)
    code = f"""
import json
from lamina import plugins
from lamina.config import load_config
from lamina.errors import ConfigError
said = ""
try:
    load_config({{"data": {{"train": "rows.jsonl"}}, "loss": {{"type": {name!r}}}}})
except ConfigError as error:
    said = str(error)
load_config({{"data": {{"train": "rows.jsonl"}}}})
print(json.dumps([said, plugins.problems("losses")]))
"""
    said, problems = json.loads(run_python(tmp_path / "site", code).stdout)
    assert name in problems
    if name == "cross_entropy":
        assert not said, "lamina's own is used"
        assert "which is the name of one of lamina's own" in problems[name]
        return
    assert "loss.type" in said
    assert name in said
    assert all(reason in said for reason in reasons), said
    assert said.count("first 1.0") == 1


def test_the_doctor_lists_them(tmp_path: Path) -> None:
    install(tmp_path, "first", {"lamina.scorers": {"x": "nowhere_at_all"}, "lamina.formats": {"y": "nowhere_at_all"}})
    code, report, _ = run_lamina(tmp_path, "doctor")
    text = json.dumps(report)
    assert code == 0
    assert "nowhere_at_all of first 1.0 cannot be imported" in text


@pytest.mark.parametrize(
    ("group", "values"),
    [
        ("lamina.formats", {"data": {"train": "rows.jsonl", "format": "x"}}),
        ("lamina.scorers", None),
    ],
)
def test_a_single_module_that_fails_is_told_where_it_is_used(group: str, values: object, tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "broken_module.py").write_text("raise RuntimeError('on purpose')\n", encoding="utf-8")
    install(tmp_path / "site", "first", {group: {"x": "broken_module"}})
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "a", "completion": "b"}\n', encoding="utf-8")
    if values is None:
        code = """
from lamina.evaluation.scorers import find_scorers
find_scorers(["exact_match"])
find_scorers(["x"])
"""
    else:
        code = f"""
from lamina.config import load_config
from lamina.data.dataset import load_examples
data = load_config({values!r}).data
load_examples(data.model_copy(update={{"format": "auto"}}), {str(rows)!r}, "data.train", None)
load_examples(data, {str(rows)!r}, "data.train", None)
"""
    result = run_python(tmp_path / "site", code, check=False)
    last = result.stderr.strip().splitlines()[-1]
    assert result.returncode == 1
    assert "ConfigError" in last
    assert "broken_module of first 1.0 cannot be imported (RuntimeError: on purpose)" in last
    assert "Fix: upgrade or uninstall first 1.0" in last
