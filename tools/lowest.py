"""Prints the lowest versions that `pyproject.toml` allows, as a constraint file for pip.

With it pip installs each direct dependency at its lower bound, and what those need at the newest; or it says which
bound cannot be installed beside the others, and so promises what nobody can have. Used by `make lowest`.

    python tools/lowest.py > lowest.txt
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

PYPROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"


def lowest_versions(pyproject: Path) -> dict[str, Version]:
    """The lower bound of each dependency, extras included; of several bounds the highest.

    Raises:
        ValueError: A dependency has none.
    """
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    lowest: dict[str, Version] = {}
    for text in [
        *project["dependencies"],
        *(line for extra in project["optional-dependencies"].values() for line in extra),
    ]:
        requirement = Requirement(text)
        bounds = [Version(part.version) for part in requirement.specifier if part.operator in (">=", "==", "~=")]
        if not bounds:
            raise ValueError(f"{text!r} has no lower bound; add one, such as {requirement.name}>=1.0")
        lowest[requirement.name] = max([*bounds, *([lowest[requirement.name]] if requirement.name in lowest else [])])
    return lowest


if __name__ == "__main__":
    sys.stdout.writelines(f"{name}=={version}\n" for name, version in lowest_versions(PYPROJECT).items())
