"""`lamina cache`: lists the entries, keeps those in use, and touches no other files."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from filelock import FileLock

import lamina
from lamina.cache import folder as cache_module
from lamina.cache.folder import IdentityCache, hold, writing_cache
from lamina.cache.prune import KINDS, cache_entries, prune
from lamina.cli.cache import Kinds, _size
from lamina.data.store import StoreWriter, cached_store
from lamina.errors import StorageError
from lamina.models.source import find_model
from tests.support.cli import Cli

HEX = "0123456789abcdef" * 2
NAMES = {
    "models": "a.Q4_1-0123456789ab-v1",
    "adapters": HEX,
    "quantized": HEX,
    "tokens": HEX,
    "references": f"{HEX}.npy",
    "kernels": f"{HEX}.so",
    "shapes": "tiny-0-v1",
    "fingerprints": f"{HEX}.json",
    "gguf": f"{HEX}.json",
    "files": f"{HEX}.json",
    "answers": "0123456789abcdef0123456789abcdef.jsonl",
    "judged": "0a",
    "errors": "error-20260101-120000-42.txt",
}
FOLDERS = ("models", "adapters", "quantized", "tokens", "shapes", "judged")
# A process that holds an entry exclusively until its stdin is closed.
HOLDER = """
import sys
from pathlib import Path
from lamina.cache.folder import hold
hold(Path(sys.argv[1]))
print(flush=True)
sys.stdin.read()
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache with one entry of 1,000 bytes of each kind."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("LAMINA_CACHE", str(folder))
    monkeypatch.setattr(cache_module, "_held", {})
    for kind, name in NAMES.items():
        path = folder / kind / name
        if kind in FOLDERS:
            (path / "deep").mkdir(parents=True)
            (path / "deep" / "file").write_bytes(b"x" * 1000)
        else:
            path.parent.mkdir(parents=True)
            path.write_bytes(b"x" * 1000)
    yield folder
    for mark in cache_module._held.values():
        os.close(mark)


def left(folder: Path) -> set[str]:
    return {f"{path.parent.name}/{path.name}" for kind in KINDS for path in (folder / kind).glob("*")}


def age(path: Path, days: float) -> None:
    moment = time.time() - days * 24 * 3600
    os.utime(path, (moment, moment))


def test_every_folder_that_is_cached_in_is_a_kind() -> None:
    source = Path(lamina.__file__).parent
    text = "\n".join(path.read_text(encoding="utf-8") for path in source.rglob("*.py"))
    used = set(re.findall(r'cache_folder\(\) / "(\w+)"', text)) | set(re.findall(r'IdentityCache\("(\w+)"\)', text))
    assert used | {"errors"} == KINDS.keys() == NAMES.keys()
    assert all(kind in Kinds.__metadata__[0].help for kind in KINDS)  # type: ignore[attr-defined]


def test_what_is_there_is_listed(folder: Path, cli: Cli) -> None:
    age(folder / "kernels" / NAMES["kernels"], 40)
    listed = cli("cache", "ls", "--json").json()
    assert (listed["folder"], listed["bytes"]) == (str(folder), 1000 * len(KINDS))
    assert [(entry["kind"], Path(entry["path"]).name) for entry in listed["entries"]] == list(NAMES.items())
    shown = cli("cache", "ls")
    assert all(kind.name in shown.out and kind.what in shown.out for kind in KINDS.values())
    assert "40 days ago" in shown.out
    alone = cli("cache", "ls", "tokens", "models")
    assert NAMES["models"] in alone.out and "kernels" not in alone.out
    assert "'tokens'" in cli("cache", "ls", "token").error()


def test_an_empty_cache_is_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli) -> None:
    monkeypatch.setenv("LAMINA_CACHE", str(tmp_path / "nothing"))
    assert cli("cache", "ls", "--json").json()["entries"] == []
    assert cli("cache", "prune", "--all", "--json").json()["bytes"] == 0
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_is_pruned_alone(kind: str, folder: Path, cli: Cli) -> None:
    tried = cli("cache", "prune", kind, "--dry-run", "--json").json()
    assert (tried["dry_run"], tried["bytes"], len(tried["removed"])) == (True, 1000, 1)
    assert (folder / kind / NAMES[kind]).exists()
    age(folder / kind / NAMES[kind], 3)
    tried = cli("cache", "prune", kind, "--dry-run", "--json").json()  # checking is not using
    done = cli("cache", "prune", kind, "--older-than", "2", "--json").json()
    assert {**done, "dry_run": True} == tried
    gone = {f"{kind}/{NAMES[kind]}"}
    assert {f"{k}/{name}" for k, name in NAMES.items()} - gone <= left(folder)
    assert not gone & left(folder)


def test_only_what_is_old_is_pruned(folder: Path, cli: Cli) -> None:
    for kind in ("tokens", "files", "models"):
        age(folder / kind / NAMES[kind], 31)
    hold(folder / "models" / NAMES["models"])  # which uses it
    removed = cli("cache", "prune", "--older-than", "30", "--json").json()["removed"]
    assert [entry["kind"] for entry in removed] == ["tokens", "files"]


def test_a_digest_that_is_read_is_used(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    digests = IdentityCache("files")
    digests.put(file, "digest")
    (entry,) = [path for path in (folder / "files").iterdir() if path.name != NAMES["files"]]
    age(entry, 31)
    assert digests.get(file) == "digest"
    assert entry.stat().st_mtime > time.time() - 60


@pytest.mark.parametrize("options", [[], ["--all", "--older-than", "3"], ["tokens", "--all"]])
def test_it_has_to_be_said_what_to_prune(options: list[str], folder: Path, cli: Cli) -> None:
    result = cli("cache", "prune", *options)
    assert (result.code, result.out) == (2, "")
    assert "--all" in result.error()
    assert len(cache_entries()) == len(KINDS)


@pytest.mark.parametrize("kind", ["models", "quantized", "shapes"])
@pytest.mark.parametrize("dry_run", [True, False])
def test_what_another_process_uses_stays(kind: str, dry_run: bool, folder: Path, cli: Cli) -> None:
    path = folder / kind / NAMES[kind]
    command = [sys.executable, "-c", HOLDER, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        pruned = prune(dry_run=dry_run)
        assert [entry.path for entry in pruned.in_use] == [path]
        assert (path / "deep" / "file").exists()
        process.communicate()
    assert [entry.path for entry in prune([kind]).removed] == [path]
    assert not path.exists()


@pytest.mark.parametrize("kind", FOLDERS)
def test_what_is_being_made_stays(kind: str, folder: Path) -> None:
    path = folder / kind / NAMES[kind]
    with FileLock(f"{path}.lock"):
        assert [entry.path for entry in prune([kind]).in_use] == [path]
    assert path.exists()


def test_a_held_entry_is_held_anew_once_it_was_pruned(folder: Path) -> None:
    path = folder / "models" / NAMES["models"]
    prune(["models"])
    hold(path)
    path.mkdir()
    assert [entry.path for entry in prune(["models"]).in_use] == [path]


def test_nothing_that_lamina_did_not_write_is_touched(folder: Path) -> None:
    others = [folder / "mine", folder / "models" / "my model", folder / "tokens" / "notes.txt", folder / "errors" / "x"]
    for path in others:
        path.mkdir(parents=True)
    prune()
    assert all(path.is_dir() for path in others)


def test_leftovers_go_once_they_are_old(folder: Path) -> None:
    new, old = (folder / "models" / f".writing-a-{name}" for name in ("new", "old"))
    for path in (new, old):
        path.mkdir()
    age(old, 2)
    assert old in [entry.path for entry in prune(["models"]).removed]
    assert new.exists() and not old.exists()


def test_rows_that_are_mapped_outlive_their_pruning(folder: Path, row_store: Callable[[], object]) -> None:
    store = row_store()
    assert [entry.kind for entry in prune(["tokens"]).in_use] == []
    assert store.example(0).input_ids.tolist() == [1, 2, 3]  # type: ignore[attr-defined]


@pytest.fixture
def row_store() -> Callable[[], object]:
    import numpy as np

    from lamina.data.example import EncodedExample
    from lamina.data.store import StoredRow

    def build(writer: StoreWriter) -> None:
        ids = np.array([1, 2, 3], dtype=np.int32)
        writer.add(StoredRow(EncodedExample(ids, np.ones(3, dtype=bool), 1, 0), 0, 0, 0, True))

    return lambda: cached_store({"a": 1}, build)


def test_errors_in_the_cache_name_the_setting(folder: Path) -> None:
    with pytest.raises(StorageError) as raised, writing_cache(folder / "models" / "x", "converting the model"):
        raise OSError(30, "Read-only file system")
    for words in (
        "models/x: converting the model failed: the file system is read-only.",
        "Fix: set LAMINA_CACHE",
        str(folder),
    ):
        assert words in str(raised.value)


def test_a_cache_in_the_place_of_which_there_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LAMINA_CACHE", str(tmp_path / "file"))
    gguf = tmp_path / "a.gguf"
    gguf.write_bytes(b"GGUF")
    with pytest.raises(StorageError, match="LAMINA_CACHE"):
        find_model(str(gguf))


def test_sizes() -> None:
    assert [_size(count) for count in (0, 1000, 2500, 3 * 2**20, 5 * 2**30)] == [
        "0 B",
        "1,000 B",
        "2.4 KiB",
        "3.0 MiB",
        "5.0 GiB",
    ]
