"""Builds the wheel, installs it where nothing of this checkout is, and runs it. Used by `make wheel-check`.

    python tools/wheel_check.py

The new environment has only the wheel. Its dependencies are those of the environment that runs this script, put on its
path, since installing torch again would take minutes and show nothing of the wheel. That the dependencies that it
declares can be installed is what `make lowest` shows.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
import zipfile
from collections.abc import Sequence
from email.parser import Parser
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "src/lamina"

# A model that trains in a second, with the tokenizer of the tests.
MODEL = """
import sys
from tests.support.models_zoo import build_model, build_tokenizer
build_model("llama", vocab_size=len(build_tokenizer())).save_pretrained(sys.argv[1])
build_tokenizer().save_pretrained(sys.argv[1])
"""


def main() -> None:
    """Runs the checks; the first that fails ends the script."""
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="lamina-wheel-") as name:
        folder = Path(name)
        wheel = build_wheel(folder / "dist")
        check_content(wheel)
        lamina = install(wheel, folder / "venv")
        check_commands(lamina, folder)
    say(f"wheel-check: all is well, in {time.monotonic() - begun:.0f} s")


def build_wheel(folder: Path) -> Path:
    """Builds it from this checkout."""
    run([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, ROOT])
    (wheel,) = folder.glob("*.whl")
    return wheel


def check_content(wheel: Path) -> None:
    """Every file of the package that git knows is in the wheel, the C++ sources among them, and nothing else is."""
    listed = subprocess.run(["git", "ls-files", PACKAGE], cwd=ROOT, capture_output=True, text=True, check=True)
    wanted = {str(Path(path).relative_to("src")) for path in listed.stdout.splitlines()}
    with zipfile.ZipFile(wheel) as content:
        names = content.namelist()
        metadata = Parser().parsestr(content.read(next(n for n in names if n.endswith(".dist-info/METADATA"))).decode())
    found = {name for name in names if ".dist-info/" not in name}
    assert found == wanted, (
        f"missing in the wheel: {sorted(wanted - found)}; in it for no reason: {sorted(found - wanted)}"
    )
    assert any(name.endswith(".cpp") for name in found) and any(name.endswith(".jinja") for name in found)
    assert any(name.endswith("LICENSE") for name in names), "the licence is missing"
    assert metadata["License-Expression"] == "Apache-2.0"
    say(f"wheel-check: {wheel.name} has the {len(found)} files of the package")


def install(wheel: Path, folder: Path) -> Path:
    """A new environment with the wheel; the path of its `lamina`."""
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index"]
    run([*pip, "--no-warn-script-location", wheel])
    paths = sysconfig.get_paths(vars={"base": str(folder), "platbase": str(folder)})
    # A line of a .pth file adds a folder, without the .pth files in there: this checkout's own stays out.
    (Path(paths["purelib"]) / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n", encoding="utf-8")
    return folder / "bin" / "lamina"


def check_commands(lamina: Path, folder: Path) -> None:
    """Runs the installed command in another folder: help, doctor, a training run, an answer and a merge."""
    work = folder / "work"
    work.mkdir()
    rows = [{"prompt": f"say {number}", "completion": f"{number}!"} for number in range(20)]
    (work / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    (work / "run.yaml").write_text(
        "model: base\ndata: {train: rows.jsonl, max_length: 64}\ntrain: {max_steps: 2}\noutput_dir: run\n",
        encoding="utf-8",
    )
    run([sys.executable, "-c", MODEL, work / "base"], cwd=ROOT)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    # A cache of its own: the kernels are compiled anew, from the sources in the wheel.
    environment |= {"LAMINA_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}

    def call(*arguments: str) -> dict[str, object]:
        return json.loads(run([lamina, *arguments, "--json"], cwd=work, env=environment))

    where = run([lamina.parent / "python", "-c", "import lamina; print(lamina.__file__)"], cwd=work, env=environment)
    assert Path(where.strip()).is_relative_to(folder), f"this is not the wheel's: {where}"
    assert "train" in run([lamina, "--help"], cwd=work, env=environment)
    has_compiler = any(line["name"] == "kernels" and line["level"] == "ok" for line in findings(call("doctor")))
    assert call("train", "run.yaml")["steps"] == 2
    assert call("generate", "run", "-p", "say 3", "--max-new-tokens", "4")["answers"]
    assert call("merge", "run", "--out", "merged")["path"] == "merged"
    assert not has_compiler or list((folder / "cache" / "kernels").iterdir())
    say("wheel-check: help, doctor, train, generate and merge run from another folder")


def findings(doctor: dict[str, object]) -> list[dict[str, str]]:
    """The lines of `lamina doctor --json`."""
    lines = doctor["findings"]
    assert isinstance(lines, list)
    return lines


def run(command: Sequence[str | Path], cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
    """Runs a command and gives what it printed; its errors are shown."""
    return subprocess.run(
        [str(part) for part in command], cwd=cwd, env=env, check=True, text=True, stdout=subprocess.PIPE
    ).stdout


def say(text: str) -> None:
    """Prints a line at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
