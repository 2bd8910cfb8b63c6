"""The house rules on imports: a folder imports only from folders above it, and config and errors stay light."""

from __future__ import annotations

import ast
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[2] / "src" / "lamina"

# The order that data flows through the house. `__init__` re-exports verbs lazily and stands outside of it.
ORDER = [
    "version",
    "errors",
    "files",
    "signals",
    "progress",
    "cache",
    "plugins",
    "machine",
    "distributed",
    "config",
    "runs",
    "optim",
    "chat",
    "data",
    "structure",
    "compute",
    "quantization",
    "models",
    "methods",
    "losses",
    "checks",
    "adapters",
    "engine",
    "training",
    "evaluation",
    "comparison",
    "export",
    "quickstart",
    "verification",
    "doctor",
    "bench",
    "cli",
]
LIGHT = ("version", "errors", "files", "progress", "signals", "cache", "plugins", "config", "runs")
HEAVY = ("torch", "transformers", "numpy", "safetensors")


def imports(path: Path) -> set[str]:
    """Full names of what a file imports, at any depth."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def part_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def files() -> list[Path]:
    return [path for path in sorted(SOURCE.rglob("*.py")) if part_of(path) not in ("__init__", "__main__")]


def test_every_part_has_its_place() -> None:
    assert {part_of(path) for path in files()} == set(ORDER)


def test_a_part_imports_only_from_parts_above_it() -> None:
    wrong = []
    for path in files():
        for name in imports(path):
            if name.startswith("lamina."):
                target = name.split(".")[1]
                if target in ORDER and ORDER.index(target) > ORDER.index(part_of(path)):
                    wrong.append(f"{path.relative_to(SOURCE)} imports {name}")
    assert not wrong, wrong


def test_light_parts_import_nothing_heavy() -> None:
    for path in files():
        if part_of(path) in LIGHT:
            heavy = [name for name in imports(path) if name.split(".")[0] in HEAVY]
            assert not heavy, f"{path.relative_to(SOURCE)} imports {heavy}"


def test_methods_come_in_pairs() -> None:
    """Each method's configuration has its mathematics under the same name, and the other way round."""
    from lamina.config import METHOD_CONFIGS
    from lamina.methods.shared.base import Method, all_methods

    assert all(isinstance(method, Method) for method in all_methods().values())
    defining = {p.stem for p in (SOURCE / "methods").glob("*.py") if "\nMETHOD = " in p.read_text(encoding="utf-8")}
    assert defining == set(METHOD_CONFIGS)


def test_files_are_not_too_long() -> None:
    long = {str(p.relative_to(SOURCE)): n for p in files() if (n := len(p.read_text().splitlines())) > 420}
    assert set(long) <= {"quickstart/wording.py"}, long  # which is a list of sentences
