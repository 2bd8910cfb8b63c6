"""The examples in docstrings are run."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

import lamina

SOURCE = Path(lamina.__file__).parent
WITH_EXAMPLES = [path for path in sorted(SOURCE.rglob("*.py")) if ">>> " in path.read_text()]


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_examples(path: Path) -> None:
    name = ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts).removesuffix(".__init__")
    outcome = doctest.testmod(importlib.import_module(name))
    assert outcome.attempted > 0
    assert outcome.failed == 0


def test_lora_opens_with_its_equation_as_an_example() -> None:
    opening = (SOURCE / "methods" / "lora.py").read_text().split("\n\n")[:2]
    assert opening[0].startswith('"""LoRA: y = x W^T + b + s (x A^T) B^T.')
    assert all(line.startswith(("    >>> ", "    True")) for line in opening[1].splitlines())
    assert len(opening[1].splitlines()) <= 10
