"""Folders with splits: evaluation data is never trained on unless named, and the report says what was skipped."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from transformers import PreTrainedTokenizerBase

from lamina.chat.template import ChatTemplate, build_template
from lamina.checks.rows import Rows
from lamina.checks.target import find_target
from lamina.config import load_config
from lamina.data.dataset import Dataset, build_dataset, build_evaluation
from lamina.data.read import find_files
from lamina.errors import ConfigError, DataError

COUNTS = {"train": 6, "validation": 3, "test": 2}


def rows(split: str) -> list[dict[str, str]]:
    return [{"prompt": f"{split} question {n}", "completion": f"answer {n}"} for n in range(COUNTS[split])]


def write(path: Path, split: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        datasets.Dataset.from_list(rows(split)).to_parquet(path)
    else:
        lines = "".join(json.dumps(row) + "\n" for row in rows(split)).encode()
        path.write_bytes(gzip.compress(lines) if path.suffix == ".gz" else lines)


def named(*patterns: str, **calls: str) -> Callable[[Path], None]:
    """Returns a function that fills a folder with a file per split and pattern; `calls` are other words for splits."""

    def make(folder: Path) -> None:
        for pattern in patterns:
            for split in COUNTS:
                write(folder / pattern.format(calls.get(split, split)), split)

    return make


def dataset_dict(folder: Path) -> None:
    datasets.DatasetDict(**{split: datasets.Dataset.from_list(rows(split)) for split in COUNTS}).save_to_disk(folder)


def dataset_dict_that_was_mapped(folder: Path) -> None:
    """`datasets` leaves the results of `map` and `filter` next to the saved files."""
    dataset_dict(folder)
    loaded = datasets.load_from_disk(folder)
    assert isinstance(loaded, datasets.DatasetDict)
    loaded.map(lambda row: {"prompt": "stale " + row["prompt"]})
    loaded["train"].filter(lambda row: False)
    assert list((folder / "train").glob("cache-*.arrow"))


def declared(folder: Path) -> None:
    """Names without information, or with the wrong one, and a README.md with the right one."""
    places = {"train": "first/test.jsonl", "validation": "b.jsonl", "test": "train.jsonl"}
    files = "\n".join(f"  - split: {split}\n    path: {path}" for split, path in places.items())
    for split, path in places.items():
        write(folder / path, split)
    (folder / "README.md").write_text(
        f"---\nlicense: mit\nconfigs:\n- config_name: x\n  data_files:\n{files}\n---\nHi\n"
    )


def snapshot(folder: Path) -> None:
    """The hub's cache: an old version, the newest version, and blobs that its files are links to."""
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("new")
    write(folder / "snapshots" / "old" / "train.jsonl", "test")
    for split in COUNTS:
        write(folder / "blobs" / split, split)
        (folder / "snapshots" / "new").mkdir(parents=True, exist_ok=True)
        (folder / "snapshots" / "new" / f"{split}.jsonl").symlink_to(folder / "blobs" / split)


def with_descriptions(folder: Path) -> None:
    named("data/{}-00000-of-00001.parquet")(folder)
    for name in ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"):
        (folder / name).write_text('{"citation": "x", "splits": {"train": {"num_examples": 6}}}')
    for name in ("README.md", "LICENSE", "LICENSE.txt", "requirements.txt", "cleaned.jsonl.log.jsonl"):
        (folder / name).write_text('{"action": "removed"}\n')


def link(folder: Path) -> None:
    named("{}.jsonl")(folder.parent / "elsewhere")
    folder.symlink_to(folder.parent / "elsewhere")


FOLDERS: dict[str, Callable[[Path], None]] = {
    "files": named("{}.jsonl"),
    "compressed": named("{}.jsonl.gz", "{}.json"),
    "short words": named("{}.jsonl", validation="dev", test="eval"),
    "other words": named("{}_set.jsonl", train="training", validation="Val", test="Testing"),
    "words in names": named("gsm8k_{}_v2.jsonl", "my-{}.jsonl"),
    "shards": named("data/{}-00000-of-00002.jsonl", "data/{}-00001-of-00002.jsonl"),
    "named shards": named("data/{}_sft-00000-of-00001.parquet"),
    "folders": named("{}/one.jsonl", "{}/two.parquet"),
    "folders with other words in names": named("{}/test_of_tools.jsonl", "{}/chat-dev.jsonl"),
    "folders with words": named("part-{}/0001.jsonl"),
    "folders of folders": named("en/{}/rows.jsonl", "de/{}/rows.jsonl"),
    "builder cache": named("default/0.0.0/abc/gsm8k-{}.jsonl"),
    "DatasetDict": dataset_dict,
    "DatasetDict that was mapped": dataset_dict_that_was_mapped,
    "README": declared,
    "snapshot": snapshot,
    "descriptions": with_descriptions,
    "link": link,
}


@pytest.fixture(scope="module")
def template(tokenizer: PreTrainedTokenizerBase) -> ChatTemplate:
    return build_template(tokenizer)


@pytest.fixture
def build(template: ChatTemplate) -> Callable[..., Dataset]:
    def build_from(train: str | list[str], **settings: Any) -> Dataset:
        return build_dataset(load_config({"data": {"train": train, "eval": None, **settings}}).data, template, 2, 0)

    return build_from


def text_of(template: ChatTemplate, dataset: Dataset, side: str = "train") -> set[str]:
    """Returns the splits that a side's rows come from, judging by their text."""
    found = set()
    for example in getattr(dataset, side):
        match = re.search(r"(\w+) question", str(template.tokenizer.decode(example.input_ids.tolist())))
        assert match
        found.add(match[1])
    return found


@pytest.mark.parametrize("layout", FOLDERS)
def test_a_folder_trains_on_its_train_split_alone_and_says_so(
    layout: str, build: Callable[..., Dataset], template: ChatTemplate, tmp_path: Path
) -> None:
    folder = tmp_path / "ds"
    FOLDERS[layout](folder)
    dataset = build(str(folder))
    assert text_of(template, dataset) == {"train"}
    assert len(dataset.train) % COUNTS["train"] == 0
    (note,) = [note for note in dataset.report.notes if "skipped" in note]
    assert "read the split train" in note and re.search(r"the split test", note)
    assert note in [line.removeprefix("note: ") for line in dataset.report.lines()]

    for split in COUNTS:  # each can be named
        chosen = build(f"{folder}:{split}")
        assert text_of(template, chosen) == {split} and len(chosen.train) % COUNTS[split] == 0
    assert text_of(template, build(f"{folder}:all")) == set(COUNTS)

    both = build(str(folder), eval=str(folder))
    assert text_of(template, both, "eval") == {"validation"}
    data = load_config({"data": {"train": "unused"}}).data
    tested = build_evaluation(data, str(folder), "--data", None, template)
    assert text_of(template, tested, "eval") == {"test"}


@pytest.mark.parametrize("layout", FOLDERS)
def test_check_reads_what_training_reads(layout: str, build: Callable[..., Dataset], tmp_path: Path) -> None:
    folder = tmp_path / "ds"
    FOLDERS[layout](folder)
    trained = build(str(folder), eval=str(folder))
    checked = Rows(find_target(str(folder), evaluation=str(folder), model="none"), None)
    assert {(row.side, row.read.example is not None) for row in checked} == {("train", True), ("eval", True)}
    assert [(file.path, file.side) for file in checked.files] == [
        (file.path, file.role) for file in trained.report.files
    ]
    assert [note for file in checked.files for note in file.notes] == [
        note for note in trained.report.notes if "read the split" in note
    ]


@pytest.mark.parametrize("pattern", ["*.jsonl", "**/*", "*"])
def test_a_glob_leaves_out_what_is_kept_for_evaluation(
    pattern: str, build: Callable[..., Dataset], template: ChatTemplate, tmp_path: Path
) -> None:
    named("{}.jsonl")(tmp_path / "ds")
    (tmp_path / "ds" / "dataset_info.json").write_text('{"citation": "x"}')
    dataset = build(str(tmp_path / "ds" / pattern))
    assert text_of(template, dataset) == {"train"}
    assert any("skipped the split test (test.jsonl), the split validation" in note for note in dataset.report.notes)


def test_a_glob_names_the_folders_that_it_does_not_go_into(build: Callable[..., Dataset], tmp_path: Path) -> None:
    write(tmp_path / "ds" / "a.jsonl", "train")
    write(tmp_path / "ds" / "more" / "b.jsonl", "train")
    dataset = build(str(tmp_path / "ds" / "*"))
    assert len(dataset.report.files) == 1 and any("skipped the folders more;" in n for n in dataset.report.notes)
    dataset = build(str(tmp_path / "ds" / "**"))
    assert len(dataset.report.files) == 2 and not dataset.report.notes


def test_a_file_that_is_there_twice_is_warned_of(build: Callable[..., Dataset], tmp_path: Path) -> None:
    folder = tmp_path / "ds"
    write(folder / "a.jsonl", "train")
    write(folder / "b.jsonl", "test")
    assert build(str(folder)).report.warnings == []
    assert build([{"path": str(folder), "weight": 2.0}]).report.warnings == []
    (warning,) = build([str(folder / "a.jsonl"), str(folder)]).report.warnings
    assert warning.startswith(f"{folder / 'a.jsonl'} is read twice")
    (folder / "c.jsonl").symlink_to(folder / "b.jsonl")
    (warning,) = build(str(folder)).report.warnings
    assert warning.startswith(f"{folder / 'c.jsonl'} is identical to {folder / 'b.jsonl'}")


@pytest.mark.parametrize("named_as", ["ds/test.jsonl", "ds/te*.jsonl", "ds:test", "ds/test", "ds/{}"])
def test_what_is_named_itself_is_read(
    named_as: str, build: Callable[..., Dataset], template: ChatTemplate, tmp_path: Path
) -> None:
    named("{}.jsonl", "{}/rows.jsonl")(tmp_path / "ds")
    named_as = named_as.format("t[e]st.jsonl")
    assert text_of(template, build(str(tmp_path / named_as))) == {"test"}


@pytest.mark.parametrize(
    ("present", "role", "field"),
    [
        (("test",), "train", "data.train"),
        (("test", "validation"), "train", "data.train"),
        (("train",), "eval", "data.eval"),
    ],
)
def test_a_folder_without_the_split_is_an_error_whose_fix_works(
    present: tuple[str, ...], role: str, field: str, tmp_path: Path
) -> None:
    for split in present:
        write(tmp_path / "ds" / f"{split}.jsonl", split)
    with pytest.raises(ConfigError, match="has no split to") as caught:
        find_files(str(tmp_path / "ds"), field, role)
    (problem,) = caught.value.problems
    assert problem.field == field
    (file,) = find_files(problem.fix.rpartition(" ")[2], field, role)
    assert Path(file.name).stem in present


@pytest.mark.parametrize("wanted", ["ds:nothing", "ds:train[:10%]", "ds/train.jsonl:train", "ds:"])
def test_a_split_that_is_not_there(wanted: str, tmp_path: Path) -> None:
    named("{}.jsonl")(tmp_path / "ds")
    with pytest.raises(ConfigError, match=r"has no split|which has no splits|does not exist"):
        find_files(str(tmp_path / wanted))


def test_files_of_no_split_are_trained_on_unless_others_say_that_they_are_for_it(
    build: Callable[..., Dataset], tmp_path: Path
) -> None:
    def trained(*names: str) -> list[str]:
        folder = tmp_path / "+".join(names)
        for name in names:
            write(folder / name, "train")
        return [Path(file.path).name for file in build(str(folder)).report.files]

    assert trained("a.jsonl", "b.jsonl") == ["a.jsonl", "b.jsonl"]
    assert trained("a.jsonl", "train.jsonl") == ["a.jsonl", "train.jsonl"]
    assert trained("a.jsonl", "test.jsonl") == ["a.jsonl"]
    assert trained("a.jsonl", "test.jsonl", "train.jsonl") == ["train.jsonl"]
    assert trained("latest.jsonl", "contest.jsonl", "evaluated.jsonl") == [
        "contest.jsonl",
        "evaluated.jsonl",
        "latest.jsonl",
    ]


def test_several_training_splits_or_configurations_have_to_be_told_apart(
    build: Callable[..., Dataset], template: ChatTemplate, tmp_path: Path
) -> None:
    for name in ("train_sft", "train_gen", "test_sft"):
        write(tmp_path / "chat" / "data" / f"{name}-00000-of-00001.jsonl", name.partition("_")[0])
    with pytest.raises(ConfigError, match="several splits to train on: train_gen, train_sft") as caught:
        build(str(tmp_path / "chat"))
    assert text_of(template, build(caught.value.problems[0].fix.rpartition(" ")[2])) == {"train"}

    for name in ("main", "other"):
        named(f"{name}/{{}}-00000-of-00001.jsonl")(tmp_path / "many")
        write(tmp_path / "many" / "elsewhere" / f"{name}.jsonl", "train")
    head = "".join(
        f"- config_name: {name}\n  data_files:\n"
        f"  - {{split: train, path: {path}}}\n  - {{split: test, path: main/test-*}}\n"
        for name, path in (("main", "main/train-*"), ("apart", "elsewhere/other.jsonl"))
    )
    (tmp_path / "many" / "README.md").write_text(f"---\nconfigs:\n{head}---\n")
    with pytest.raises(ConfigError, match="several configurations: main, apart") as caught:
        build(str(tmp_path / "many"))
    assert text_of(template, build(caught.value.problems[0].fix.rpartition(" ")[2])) == {"train"}
    apart = build(str(tmp_path / "many" / "apart"), eval=str(tmp_path / "many" / "apart:test"))
    assert [Path(file.path).name for file in apart.report.files] == ["other.jsonl", "test-00000-of-00001.jsonl"]


def test_a_share_is_split_off_the_train_split_and_the_folders_own_is_named(
    build: Callable[..., Dataset], template: ChatTemplate, tmp_path: Path
) -> None:
    named("{}.jsonl")(tmp_path / "ds")
    dataset = build(str(tmp_path / "ds"), eval=0.4)
    assert text_of(template, dataset) == text_of(template, dataset, "eval") == {"train"}
    (note,) = [note for note in dataset.report.notes if "has a validation split" in note]
    named_there = re.search(r"data\.eval=(\S+)", note)
    assert named_there
    assert text_of(template, build(str(tmp_path / "ds"), eval=named_there[1]), "eval") == {"validation"}


def test_a_folder_that_was_saved_from_a_test_split_says_so(build: Callable[..., Dataset], tmp_path: Path) -> None:
    part = datasets.Dataset.from_list(rows("test"), split=datasets.Split.TEST)
    part.save_to_disk(tmp_path / "saved")
    assert any("saved from the split 'test'" in note for note in build(str(tmp_path / "saved")).report.notes)


def test_a_file_of_a_folder_that_holds_no_rows_is_told_from_the_others(
    build: Callable[..., Dataset], tmp_path: Path
) -> None:
    write(tmp_path / "ds" / "rows.jsonl", "train")
    (tmp_path / "ds" / "figures.json").write_text('{"figures": [1, 2]}')
    with pytest.raises(DataError, match=r"figures\.json.* the files in \S*ds that are"):
        build(str(tmp_path / "ds"))
    assert len(build(str(tmp_path / "ds" / "*.jsonl")).train) == COUNTS["train"]


def test_a_pointer_of_git_lfs_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "ds").mkdir()
    (tmp_path / "ds" / "train.parquet").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    for wanted in ("ds", "ds/train.parquet", "ds/*"):
        with pytest.raises(ConfigError, match="git lfs pull"):
            find_files(str(tmp_path / wanted))


def test_the_split_to_evaluate_on_of_a_data_set_of_the_hub_has_to_be_named() -> None:
    for role in ("eval", "test"):
        with pytest.raises(ConfigError, match=r"user/name:validation"):
            find_files("user/name", "data.eval", role)
        (file,) = find_files("user/name:validation", "data.eval", role)
        assert file.split == "validation"
    (file,) = find_files("user/name")
    assert file.split == "train"
