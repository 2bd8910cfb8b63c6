"""Packages that only some settings need: which one is missing is named, with the extra that has it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from lamina.errors import ConfigError
from lamina.packages import needed_package


def test_a_missing_one_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("rouge_score", "rouge_score.rouge_scorer"):
        monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    with pytest.raises(ConfigError) as caught:
        needed_package("rouge_score.rouge_scorer", "rouge", "type", "metrics")
    message = "type: rouge needs the package rouge-score, which is not installed. Fix: pip install 'lamina[metrics]'"
    assert str(caught.value) == message


def test_one_that_is_broken_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_package.py").write_text("import no_such_dependency")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_dependency"):
        needed_package("broken_package", "this", "type", "metrics")
