"""The cache of encoded rows: used if everything is the same, encoded again otherwise, and never incomplete."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lamina.cache.folder import cache_folder
from lamina.chat.template import build_template
from lamina.config import DataConfig
from lamina.data import encoded_file
from lamina.data.dataset import Dataset, build_dataset
from lamina.errors import DataError, StorageError
from tests.support.models_zoo import build_tokenizer


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAMINA_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def fills(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Returns the files that were encoded rather than read from the cache."""
    names: list[str] = []
    real = encoded_file._fill

    def counted(writer: Any, reader: Any, *rest: Any) -> None:
        names.append(Path(reader.file.name).name)
        real(writer, reader, *rest)

    monkeypatch.setattr(encoded_file, "_fill", counted)
    return names


def write(path: Path, count: int = 20) -> str:
    rows = [{"prompt": f"q{number}", "completion": "a" * (number + 1), "k": number % 3} for number in range(count)]
    rows.append({"prompt": "empty", "completion": "", "k": 0})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def build(path: str, seed: int = 0, **settings: Any) -> Dataset:
    config = DataConfig(train=path, **{"eval": 0.2, **settings})
    template = build_template(build_tokenizer(), config.chat_template, config.thinking)
    return build_dataset(config, template, 2, seed)


def content(dataset: Dataset) -> list[tuple[list[int], list[bool], int]]:
    return [
        (e.input_ids.tolist(), e.supervised.tolist(), e.row) for side in (dataset.train, dataset.eval) for e in side
    ]


def test_second_start_reads_the_cache_and_gives_the_same(tmp_path: Path, fills: list[str]) -> None:
    path = write(tmp_path / "rows.jsonl")
    first, second = build(path), build(path)
    assert fills == ["rows.jsonl"]
    assert content(first) == content(second)
    assert first.report.as_json() == second.report.as_json()


@pytest.mark.parametrize(
    "settings", [{"max_length": 64}, {"overlong": "cut"}, {"packing": False}, {"eval": None}, {"seed": 3}]
)
def test_what_does_not_change_the_tokens_needs_no_second_encoding(
    tmp_path: Path, fills: list[str], settings: dict[str, Any]
) -> None:
    path = write(tmp_path / "rows.jsonl")
    build(path)
    build(path, **settings)
    assert fills == ["rows.jsonl"]


@pytest.mark.parametrize(
    "settings",
    [
        {"train_on": "all"},
        {"max_rows": 5},
        {"chat_template": "plain"},
        {"columns": {"prompt": "completion", "completion": "prompt"}},
        {"stratify_by": "k"},
        {"group_by": "k"},
        {"format": "prompt_completion"},
        {"thinking": "strip"},
    ],
)
def test_what_changes_the_tokens_is_another_entry(tmp_path: Path, fills: list[str], settings: dict[str, Any]) -> None:
    path = write(tmp_path / "rows.jsonl")
    build(path)
    build(path, **settings)
    assert fills == ["rows.jsonl"] * 2


def test_changed_content_is_another_entry_and_a_moved_file_is_not(tmp_path: Path, fills: list[str]) -> None:
    path = write(tmp_path / "rows.jsonl")
    build(path)
    moved = str((tmp_path / "rows.jsonl").rename(tmp_path / "moved.jsonl"))
    assert build(moved).report.files[0].path == moved
    assert fills == ["rows.jsonl"]
    write(tmp_path / "moved.jsonl", count=21)
    assert build(moved).report.files[0].rows == 22
    assert fills == ["rows.jsonl", "moved.jsonl"]


def test_another_tokenizer_is_another_entry(tmp_path: Path, fills: list[str]) -> None:
    path = write(tmp_path / "rows.jsonl")
    build(path)
    tokenizer = build_tokenizer()
    tokenizer.add_tokens(["aaa"])
    build_dataset(DataConfig(train=path, eval=0.2), build_template(tokenizer), 2, 0)
    assert len(fills) == 2


def test_a_bad_row_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write(path)
    path.write_text(path.read_text() + "not json\n")
    with pytest.raises(DataError, match="row 22"):
        build(str(path))
    assert [entry.suffix for entry in (cache_folder() / "tokens").iterdir()] == [".lock"]


def test_a_full_disk_is_an_error_that_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "rows.jsonl")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(StorageError, match="the disk is full"):
        build(path)
    assert [entry.suffix for entry in (cache_folder() / "tokens").iterdir()] == [".lock"]


def test_without_a_cache_folder_rows_are_encoded_for_this_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fills: list[str]
) -> None:
    path = write(tmp_path / "rows.jsonl")
    wanted = content(build(path))
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LAMINA_CACHE", str(tmp_path / "file"))  # a file cannot contain folders
    assert content(build(path)) == wanted
    assert len(fills) == 2


def _encode(path: str, cache: str, out: str) -> None:
    import os

    os.environ["LAMINA_CACHE"] = cache
    Path(out).write_text(json.dumps(content(build(path))))


def test_two_processes_at_once_get_the_same(tmp_path: Path) -> None:
    path, cache = write(tmp_path / "rows.jsonl", count=300), str(tmp_path / "shared")
    outs = [str(tmp_path / f"out{number}.json") for number in range(2)]
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_encode, args=(path, cache, out)) for out in outs]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert Path(outs[0]).read_text() == Path(outs[1]).read_text()
    folders = [entry for entry in (tmp_path / "shared" / "tokens").iterdir() if entry.is_dir()]
    assert len(folders) == 1
