"""Atomic writes: killed at every step, with every umask, on old and new file systems."""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from lamina import files
from lamina.errors import StorageError

# Replaces a folder in a child process that is killed at its k-th system call, for every k.
KILLED = """
import json, os, sys
from pathlib import Path
from lamina import files

root, exchange = Path(sys.argv[1]), sys.argv[2] == "exchange"
STEPS = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.chmod", "shutil.rmtree", "lamina.step"}
before, after = {"a": "old", "sub/b": "old"}, {"a": "new", "sub/b": "new", "sub/c": "new"}

def fill(folder, content):
    for name, text in content.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)

def content(folder):
    return {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.is_file()}

def replace(path, last):
    steps = 0
    def step(event, arguments):
        nonlocal steps
        if event in STEPS:
            steps += 1
            if steps > last:
                os._exit(9)
    plain, sync = files._exchange, os.fsync
    def exchanged(one, other):
        done = exchange and plain(one, other)
        sys.audit("lamina.step")
        return done
    files._exchange = exchanged
    os.fsync = lambda descriptor: (sys.audit("lamina.step"), sync(descriptor))
    sys.addaudithook(step)
    with files.new_folder(path) as folder:
        fill(folder, after)
    os._exit(0)

found, last = [], 0
while True:
    parent = root / str(last)
    path = parent / "name-0123456789ab"  # which looks like a mark itself
    path.mkdir(parents=True)
    fill(path, before)
    child = os.fork()
    if child == 0:
        replace(path, last)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    missing = not path.exists()
    files.recover(path)
    seen = content(path)
    files.remove_leftovers(parent)
    state = "old" if seen == before else "new" if seen == after else "neither"
    found.append([state, missing, content(path) == seen, sorted(p.name for p in parent.iterdir()) == [path.name]])
    if code == 0:
        break
    last += 1
print(json.dumps(found))
"""


@pytest.mark.parametrize("way", ["exchange", "two renames"])
def test_a_folder_replaced_by_a_process_that_is_killed_is_the_old_one_or_the_new_one(way: str, tmp_path: Path) -> None:
    (tmp_path / "killed.py").write_text(KILLED)
    command = [sys.executable, str(tmp_path / "killed.py"), str(tmp_path / "work"), way]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    states = [state for state, *_ in found]
    assert len(found) > 15
    assert states == sorted(states, reverse=True), "old, up to a moment, and new from then on"
    assert set(states) == {"old", "new"}
    assert all(kept and clean for _, _, kept, clean in found)
    # Swapping in one step leaves no moment without a folder; two renames do, and `recover` fixes that.
    assert any(missing for _, missing, _, _ in found) == (way == "two renames")


def test_this_system_exchanges_folders_in_one_step(tmp_path: Path) -> None:
    if sys.platform != "linux":
        pytest.skip("only Linux has renameat2")
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    assert files._exchange(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "a" / "b").exists() and (tmp_path / "b" / "a").exists()


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EINVAL])
def test_a_file_system_that_cannot_exchange_renames_twice(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any) -> int:
        files.ctypes.set_errno(code)
        return -1

    monkeypatch.setattr(files, "_renameat2", lambda: refused)
    for text in ("old", "new"):
        with files.new_folder(tmp_path / "out") as folder:
            (folder / "a").write_text(text)
    assert (tmp_path / "out" / "a").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_failing_rename_leaves_the_old_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_renameat2", lambda: None)
    with files.new_folder(tmp_path / "out") as folder:
        (folder / "a").write_text("old")
    plain = Path.rename

    def rename(self: Path, target: Path) -> Path:
        if self.name.startswith(files.READY_PREFIX):
            raise OSError(errno.EIO, "broken")
        return plain(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(StorageError, match="broken"), files.new_folder(tmp_path / "out") as folder:
        (folder / "a").write_text("new")
    assert (tmp_path / "out" / "a").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_another_folder_is_not_recovered_in_the_place_of_this_one(tmp_path: Path) -> None:
    for name in ("other", "run-1", "run-1-0123456789ab"):
        (tmp_path / f"{files.OLD_PREFIX}{name}-0123456789ab").mkdir()
    files.recover(tmp_path / "run")
    assert not (tmp_path / "run").exists()
    files.recover(tmp_path / "run-1")
    assert (tmp_path / "run-1").is_dir()
    files.recover(tmp_path / "nowhere" / "run")  # nothing to recover, and no error


@pytest.fixture(params=[0o022, 0o027, 0o002, 0o077])
def umask(request: pytest.FixtureRequest) -> Any:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def modes(folder: Path, umask: int) -> dict[str, str]:
    """Returns what has permissions other than the umask asks for."""
    wrong = {}
    for path in [folder, *folder.rglob("*")]:
        mode = stat.S_IMODE(path.lstat().st_mode)
        if not path.is_symlink() and mode != (0o777 if path.is_dir() else 0o666) & ~umask:
            wrong[str(path.relative_to(folder))] = oct(mode)
    return wrong


def test_a_new_folder_has_the_modes_of_the_umask(umask: int, tmp_path: Path) -> None:
    """Whoever wrote into it: safetensors writes files that only their owner can read, and so does tempfile."""
    outside = tmp_path / "outside"
    outside.touch(mode=0o600)
    with files.new_folder(tmp_path / "made" / "out") as folder:
        save_file({"a": torch.zeros(2)}, folder / "a.safetensors")
        (folder / "private").mkdir(mode=0o700)
        (folder / "private" / "b").touch(mode=0o400)
        (folder / "link").symlink_to(outside)
    files.write_json(tmp_path / "made" / "c.json", {})
    with files.new_text_file(tmp_path / "made" / "d.txt") as file:
        file.write("d")
    assert modes(tmp_path / "made", umask) == {}
    assert stat.S_IMODE(outside.stat().st_mode) == 0o600


def test_json_by_lines_is_the_same_json(tmp_path: Path) -> None:
    value = {"a": [1.5, None, "ü\n"], "b ": {"c": []}}
    files.write_json_by_lines(tmp_path / "a.json", value)
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads(text) == value and len(text.splitlines()) == 4
    files.write_json_by_lines(tmp_path / "a.json", {})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {}
