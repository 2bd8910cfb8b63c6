"""What the steps import: what is here, and what of the rest pip can install beside it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import subprocess
import sys
from pathlib import Path

# By the name that is imported: the package that has it. Without these lamina itself cannot be imported.
NEEDED = {
    "transformers": "transformers>=5",
    "tokenizers": "tokenizers",
    "safetensors": "safetensors",
    "numpy": "numpy",
    "pydantic": "pydantic",
    "typer": "typer",
    "rich": "rich",
    "yaml": "pyyaml",
    "psutil": "psutil",
    "filelock": "filelock",
    "jinja2": "jinja2",
    "datasets": "datasets",
    "accelerate": "accelerate",
    "peft": "peft",
}
# Some steps are for these alone.
OPTIONAL = {"bitsandbytes": "bitsandbytes", "trl": "trl", "unsloth": "unsloth"}

INSTALL_SECONDS = 60.0


def is_installed(module: str) -> bool:
    """Whether a module can be found, without importing it."""
    return importlib.util.find_spec(module) is not None


def sees_cuda() -> bool:
    """Whether torch does."""
    import torch

    return torch.cuda.is_available()


def install_missing(out: Path, seconds: float = INSTALL_SECONDS) -> tuple[str, list[str]]:
    """Tries to install what is missing, into an environment under `out` that sees what is here already.

    What is here stays as it is, torch above all. Where there is no network, or pip refuses, nothing changes.

    Args:
        out: The results' folder.
        seconds: For each of the two tries: what is needed, and then what is optional, one by one.

    Returns:
        The interpreter for the workers, and a sentence for each package that is missing all the same.
    """
    missing = {name: package for name, package in (NEEDED | OPTIONAL).items() if not is_installed(name)}
    if not missing:
        return sys.executable, []
    home = (out / "environment").resolve()
    python = home / "bin" / "python"
    try:
        make = [sys.executable, "-m", "venv", "--system-site-packages", str(home)]
        subprocess.run(make, check=True, capture_output=True, timeout=seconds)
        _see_parent(home)
        constraints = out / "constraints.txt"
        constraints.write_text(_as_it_is(), encoding="utf-8")
        pip = [str(python), "-m", "pip", "install", "--quiet", "--retries", "0", "--timeout", "10"]
        pip += ["--disable-pip-version-check", "--constraint", str(constraints)]
        needed = [package for name, package in missing.items() if name in NEEDED]
        groups = [needed] if needed else []
        groups += [[package] for name, package in missing.items() if name in OPTIONAL]
        for group in groups:
            done = subprocess.run([*pip, *group], check=False, capture_output=True, text=True, timeout=seconds)
            if done.returncode and group is needed:  # no network: the others would wait in vain
                break
    except (OSError, subprocess.SubprocessError) as error:
        if not python.exists():
            return sys.executable, [f"{name} is missing ({type(error).__name__} while installing)" for name in missing]
    check = "import importlib.util, sys; sys.exit(importlib.util.find_spec(sys.argv[1]) is None)"
    still = [name for name in missing if subprocess.run([python, "-c", check, name], check=False).returncode]
    return str(python), [f"{name} is missing, and pip could not install it" for name in still]


def _as_it_is() -> str:
    """Constraints that keep every package that is here as it is."""
    found = {
        distribution.metadata["Name"]: distribution.version.partition("+")[0]
        for distribution in importlib.metadata.distributions()
        if distribution.metadata["Name"]
    }
    return "".join(f"{name}=={version}\n" for name, version in sorted(found.items()))


def _see_parent(home: Path) -> None:
    """Lets an environment that was made from another one see that one's packages, and not the system's alone."""
    folders = [path for path in sys.path if path.endswith(("site-packages", "dist-packages")) and Path(path).is_dir()]
    for site in home.glob("lib/python*/site-packages"):
        (site / "parent.pth").write_text("".join(f"{path}\n" for path in folders), encoding="utf-8")
