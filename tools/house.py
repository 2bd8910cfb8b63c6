"""The house: the rooms of `src/lamina`, in the order in which they may use each other.

    python tools/house.py

writes the picture of it, `docs/house.md`. `tests/docs/test_structure.py` holds the code to the order and the page to
the code. A room is a package or a module right under `src/lamina`; its size is its lines of Python.
"""

from __future__ import annotations

import ast
import functools
import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "lamina"
PAGE = ROOT / "docs" / "house.md"

# A room imports only from rooms before it. `__init__` re-exports verbs lazily and stands outside of it.
ORDER = [
    "version",
    "errors",
    "files",
    "packages",
    "pages",
    "charts",
    "signals",
    "progress",
    "cache",
    "plugins",
    "machine",
    "distributed",
    "dialects",
    "config",
    "migration",
    "runs",
    "trackers",
    "registry",
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
    "fleet",
    "comparison",
    "gate",
    "export",
    "api",
    "compat",
    "quickstart",
    "verification",
    "doctor",
    "bench",
    "server",
    "cli",
]

# The same within a room, for the packages in it; `*` is every file that is not named.
INSIDE = {
    "migration": ["draft", "settle", "sources", "arguments", "foreign", "turns", "axolotl_data", "*", "translate"],
    "dialects": ["outcome", "values", "templates", "training_arguments", "peft", "*", "hints"],
    "config": ["section", "targets", "families", "methods", "losses", "optimizers", "*"],
    "data": ["example", "read", "formats", "*"],
    "compute": ["kernels", "weights", "ops", "fusion", "decoding"],
    "models": ["*", "quantized", "load", "loaded"],
    "checks": ["*", "kinds", "overlap", "examine", "check"],
    "methods": ["shared", "*"],
    "training": ["plan", "*"],
    "evaluation": ["statistics", "scorers", "tasks", "*"],
    "fleet": ["*", "executors"],
    "bench": ["*", "sides", "report", "run", "worker", "serving"],
    "registry": ["digests", "names", "places", "records", "*", "registry", "resolve", "hub"],
    "server": ["settings", "errors", "schemas", "*"],
}

# These import neither torch nor transformers, so that the command line and its errors answer at once.
LIGHT = (
    "version",
    "errors",
    "files",
    "packages",
    "pages",
    "charts",
    "signals",
    "progress",
    "cache",
    "plugins",
    "dialects",
    "config",
    "migration",
    "runs",
    "registry",
)

# No room holds a larger share of all lines.
LARGEST_SHARE = 0.18

INTRODUCTION = """# The house

The rooms of `src/lamina`, in order: a room uses only rooms above it, and files never use each other in a circle. A test
holds both. This page is written by `python tools/house.py`.
"""


@dataclass(frozen=True)
class Room:
    """A package or a module right under `src/lamina`, or a package within one.

    Attributes:
        name: As imports have it, without `lamina.`; with dots within a room.
        purpose: What it is: the first sentence of its docstring.
        lines: Of Python.
        uses: The rooms that it imports from.
    """

    name: str
    purpose: str
    lines: int
    uses: tuple[str, ...] = ()


def files() -> dict[str, Path]:
    """Every file by the name of its module, without `lamina.`; not the entry points of the package itself."""
    found = {}
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        if parts not in (("__init__",), ("__main__",)):
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@functools.cache
def imports(path: Path) -> frozenset[str]:
    """Returns the full names of what a file imports, at any depth."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(names)


def graph() -> dict[str, set[str]]:
    """Which files each file imports, by the names of `files`."""
    modules = files()

    def module_of(name: str) -> str | None:
        parts = name.split(".")[1:]
        return next((".".join(parts[:n]) for n in range(len(parts), 0, -1) if ".".join(parts[:n]) in modules), None)

    return {
        name: {found for other in imports(path) if other.startswith("lamina.") and (found := module_of(other))} - {name}
        for name, path in modules.items()
    }


def rooms() -> list[Room]:
    """The rooms, in order, each followed by the packages within it."""
    modules, arrows = files(), graph()
    found = []
    for name in ORDER:
        parts = [room for room in INSIDE.get(name, []) if (SOURCE / name / room).is_dir()]
        for room in [name, *(f"{name}.{part}" for part in parts)]:
            inside = [module for module in modules if module == room or module.startswith(f"{room}.")]
            uses = {other.split(".")[0] for module in inside for other in arrows[module]} - {name}
            lines = sum(len(modules[module].read_text(encoding="utf-8").splitlines()) for module in inside)
            found.append(Room(room, _purpose(modules[room]), lines, tuple(sorted(uses, key=ORDER.index))))
    return found


def page() -> str:
    """The text of the page."""
    rows = ["| room | what it is | lines | uses |", "|---|---|---:|---|"]
    for room in rooms():
        nested = "." in room.name
        folder = (SOURCE / room.name.replace(".", "/")).is_dir()
        name = f"{room.name.rpartition('.')[2]}{'/' if folder else ''}"
        uses = "" if nested else ", ".join(room.uses)
        rows.append(f"| {'&nbsp;&nbsp;&nbsp;' * nested}`{name}` | {room.purpose} | {room.lines:,} | {uses} |")
    return INTRODUCTION + "\n" + "\n".join(rows) + "\n"


def _purpose(path: Path) -> str:
    """The first sentence of a file's docstring, without its full stop."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return re.split(r"\.\s|\.$", text.replace("\n", " "), maxsplit=1)[0]


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
