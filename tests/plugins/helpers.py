"""Packages that extend lamina, as if installed by pip: a folder with their modules and their metadata."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parent / "package"


def install(site: Path, name: str, points: Mapping[str, Mapping[str, str]], version: str = "1.0") -> None:
    """Writes the metadata of a distribution, as an installer does.

    Args:
        site: A folder that will be on `sys.path`.
        name: Name of the distribution.
        points: Entry points, by group and name.
        version: Of the distribution.
    """
    folder = site / f"{name.replace('-', '_')}-{version}.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8")
    lines = []
    for group, members in points.items():
        lines += [f"[{group}]", *(f"{key} = {value}" for key, value in members.items())]
    (folder / "entry_points.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def install_example(site: Path) -> None:
    """Returns the path of the package in `package/`."""
    project = tomllib.loads((PACKAGE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    install(site, project["name"], project["entry-points"], project["version"])


def run_python(site: Path, code: str, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Runs code in a separate process, in which those distributions are installed."""
    path = os.pathsep.join([str(site), str(PACKAGE), *sys.path])
    environment = {**os.environ, "PYTHONPATH": path}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=check, env=environment)


def run_lamina(site: Path, *arguments: str) -> tuple[int, dict[str, Any], str]:
    """Runs a lamina command with `--json`; returns its exit code, its object and its stderr."""
    result = run_python(site, "from lamina.cli.app import main; main()", *arguments, "--json", check=False)
    return result.returncode, json.loads(result.stdout), result.stderr
