"""Several sources: weights, replayed text, documents that are split, and an account of every row."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from lamina.chat.template import build_template
from lamina.config import DataConfig, load_config
from lamina.data.dataset import Dataset, build_dataset
from lamina.errors import ConfigError, DataError

Build = Callable[..., Dataset]


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    def write_rows(name: str, rows: list[dict[str, Any]]) -> str:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return str(path)

    return write_rows


@pytest.fixture
def build(tokenizer: PreTrainedTokenizerBase) -> Build:
    """Builds a dataset from settings of the `data:` section."""
    template = build_template(tokenizer)

    def build_from(seed: int = 0, **settings: Any) -> Dataset:
        config = load_config({"data": {"eval": None, "max_length": 256, **settings}})
        return build_dataset(config.data, template, 2, seed)

    return build_from


def pairs(prefix: str, count: int) -> list[dict[str, Any]]:
    return [{"prompt": f"{prefix}{number}", "completion": f"a{number}"} for number in range(count)]


def texts(count: int, length: int) -> list[dict[str, Any]]:
    return [{"text": f"{number:03d} " + "x" * (length - 4)} for number in range(count)]


def seen(dataset: Dataset) -> Counter[tuple[int, int]]:
    return Counter((example.file_index, example.row) for example in dataset.train)


def test_a_list_a_folder_and_a_glob_are_the_same_files(build: Build, write: Callable[..., str], tmp_path: Path) -> None:
    one, two = write("many/one.jsonl", pairs("p", 3)), write("many/two.jsonl", pairs("q", 2))
    wanted = Counter({(0, 1): 1, (0, 2): 1, (0, 3): 1, (1, 1): 1, (1, 2): 1})
    for train in ([one, two], str(tmp_path / "many"), str(tmp_path / "many" / "*.jsonl")):
        dataset = build(train=train)
        assert seen(dataset) == wanted
        assert [file.path for file in dataset.report.files] == [one, two]


@pytest.mark.parametrize(
    ("weight", "times"), [(1.0, {1: 10}), (2.0, {2: 10}), (0.5, {1: 5}), (2.3, {2: 7, 3: 3}), (0.01, {1: 1})]
)
def test_weight_is_how_often_rows_are_seen(
    build: Build, write: Callable[..., str], weight: float, times: dict[int, int]
) -> None:
    plain, weighed = write("plain.jsonl", pairs("p", 4)), write("weighed.jsonl", pairs("q", 10))
    dataset = build(train=[plain, {"path": weighed, "weight": weight}])
    counts = seen(dataset)
    assert Counter(count for (source, _), count in counts.items() if source == 1) == times
    assert sum(count for (source, _), count in counts.items() if source == 0) == 4
    file = dataset.report.files[1]
    used = sum(times.values())
    assert (file.train_rows, file.counts_dropped()) == (used, {"not_drawn": 10 - used} if used < 10 else {})
    assert counts == seen(build(train=[plain, {"path": weighed, "weight": weight}]))
    assert any("mix of training tokens" in line for line in dataset.report.lines())


def test_rows_left_out_by_a_weight_depend_on_the_seed(build: Build, write: Callable[..., str]) -> None:
    source = [{"path": write("w.jsonl", pairs("q", 40)), "weight": 0.5}]
    assert len({tuple(sorted(seen(build(seed, train=source)))) for seed in range(4)}) == 4


def test_sources_may_have_columns_and_formats_of_their_own(build: Build, write: Callable[..., str]) -> None:
    one = write("one.jsonl", [{"question": "q", "answer": "a"}])
    two = write("two.jsonl", [{"instruction": "i", "output": "o"}])
    mapped = {"path": one, "columns": {"prompt": "question", "completion": "answer"}}
    dataset = build(train=[mapped, two])
    assert [file.format for file in dataset.report.files] == ["prompt_completion", "alpaca"]
    with pytest.raises(DataError, match=r"two\.jsonl.*no column 'question'"):
        build(train=[one, two], columns={"prompt": "question", "completion": "answer"})


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_replayed_text_makes_up_its_share_of_the_tokens(build: Build, write: Callable[..., str], share: float) -> None:
    task, general = write("task.jsonl", pairs("p", 50)), write("general.jsonl", texts(100, 60))
    dataset = build(train=task, replay={"path": general, "share": share})
    trained, replayed = dataset.report.files
    assert replayed.train_tokens / (replayed.train_tokens + trained.train_tokens) == pytest.approx(share, abs=0.03)
    assert replayed.counts_dropped() == {"beyond_replay_share": 100 - replayed.train_rows}
    assert any("replayed to reduce forgetting" in line for line in dataset.report.lines())


def test_too_little_text_to_replay_is_said(build: Build, write: Callable[..., str]) -> None:
    task, general = write("task.jsonl", pairs("p", 50)), write("general.jsonl", texts(2, 60))
    dataset = build(train=task, replay={"path": general, "share": 0.5})
    assert any("data.replay has too little text" in note for note in dataset.report.notes)
    assert dataset.report.files[1].train_rows == 2


def test_long_text_is_split_and_every_token_is_there(
    build: Build, write: Callable[..., str], tokenizer: PreTrainedTokenizerBase
) -> None:
    rows = texts(3, 150)
    dataset = build(train=write("t.jsonl", rows), max_length=64)
    assert [len(example) for example in dataset.train] == [64, 64, 23] * 3
    eos = tokenizer.eos_token
    for number, row in enumerate(rows):
        pieces = [dataset.train[3 * number + place].input_ids for place in range(3)]
        assert "".join(str(tokenizer.decode(piece)) for piece in pieces) == f"{row['text']}{eos}"
    assert all(example.supervised.tolist() == [False] + [True] * (len(example) - 1) for example in dataset.train)
    (file,) = dataset.report.files
    assert (file.train_rows, file.split.first, file.rows_dropped) == (3, [1, 2, 3], 0)


@pytest.mark.parametrize(("overlong", "lengths"), [("drop", [20]), ("cut", [64, 20]), ("split", [64, 64, 23, 20])])
def test_long_text_as_asked_for(build: Build, write: Callable[..., str], overlong: str, lengths: list[int]) -> None:
    path = write("t.jsonl", [*texts(1, 150), *texts(1, 19)])
    assert [len(example) for example in build(train=path, max_length=64, overlong=overlong).train] == lengths


def test_long_conversation_can_be_split_too(build: Build, write: Callable[..., str]) -> None:
    path = write("c.jsonl", [{"prompt": "q", "completion": "a" * 100}])
    dataset = build(train=path, max_length=64, overlong="split")
    assert [len(example) for example in dataset.train] == [64, 58]
    whole = build(train=path, max_length=256)
    assert dataset.report.train.supervised_tokens == whole.report.train.supervised_tokens - 1  # a piece's first token


def test_groups_stay_on_one_side(build: Build, write: Callable[..., str]) -> None:
    rows = [{**row, "chat": number // 5} for number, row in enumerate(pairs("q", 100))]
    dataset = build(train=write("g.jsonl", rows), eval=0.2, group_by="chat")
    sides = [{rows[example.row - 1]["chat"] for example in side} for side in (dataset.train, dataset.eval)]
    assert not sides[0] & sides[1]
    assert sides[1]
    with pytest.raises(DataError, match=r"row 1 \(line 1\): it has no column 'talk'"):
        build(train=write("g.jsonl", rows), eval=0.2, group_by="talk")


def test_strata_are_kept_in_proportion(build: Build, write: Callable[..., str]) -> None:
    rows = [{**row, "topic": "rare" if number < 10 else "common"} for number, row in enumerate(pairs("q", 100))]
    dataset = build(train=write("s.jsonl", rows), eval=0.2, stratify_by="topic")
    assert Counter(rows[example.row - 1]["topic"] for example in dataset.eval) == {"rare": 2, "common": 18}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"train": []}, "names no data"),
        ({"train": "x", "stratify_by": "a", "eval": None}, "stratify_by has no effect"),
        ({"train": "x", "group_by_length": True}, "group_by_length has no effect with packing"),
        ({"train": [{"path": "x", "weight": 0.0}]}, "weight"),
        ({"train": [{"path": "x", "wieght": 2.0}]}, "wieght"),
        ({"train": "x", "replay": {"path": "y", "share": 1.5}}, "share"),
        ({"train": [{"path": "x", "columns": {"question": "q"}}]}, "unknown fields: 'question'"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_config({"data": settings})


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"prompt": "q", "chosen": "a", "rejected": "b"}], "format 'preference'.*data.columns"),
        ([{"prompt": "q", "completion": "a", "label": True}], "format 'unpaired_preference'.*label"),
    ],
)
def test_rows_that_training_has_no_loss_for_are_refused(
    build: Build, write: Callable[..., str], rows: list[dict[str, Any]], words: str
) -> None:
    with pytest.raises(DataError, match=words):
        build(train=write("p.jsonl", rows))


def test_what_is_not_read_in_a_folder_is_named(build: Build, write: Callable[..., str], tmp_path: Path) -> None:
    write("many/one.jsonl", pairs("p", 3))
    (tmp_path / "many" / "README.md").write_text("words")
    notes = build(train=str(tmp_path / "many")).report.notes
    assert any("skipped README.md (not data)" in note for note in notes)


def test_turn_weights_and_marked_parts_decide_what_is_in_the_loss(
    build: Build, write: Callable[..., str], tokenizer: PreTrainedTokenizerBase
) -> None:
    def turn(role: str, content: Any, **more: Any) -> dict[str, Any]:
        return {"role": role, "content": content, **more}

    parts = [{"type": "text", "text": "think "}, {"type": "text", "text": "say", "train": True}]
    turns = [
        turn("user", "1"),
        turn("assistant", "no", weight=0),
        turn("user", "2"),
        turn("assistant", "yes", train=True),
        turn("user", "3"),
        turn("assistant", parts),
    ]
    path = write("m.jsonl", [{"messages": turns}])

    def taught(train_on: str) -> str:
        (example,) = build(train=path, train_on=train_on).train
        return str(tokenizer.decode(example.input_ids[example.supervised]))

    assert taught("assistant") == "yes<|im_end|>think say<|im_end|>"
    assert taught("completions") == "think say<|im_end|>"
    assert taught("marked") == "yes<|im_end|>say<|im_end|>"


def test_config_is_the_data_sections_own() -> None:
    config = DataConfig(train=["a", "b"], columns={"prompt": "q", "completion": "a"}, max_rows=3)
    assert [source.columns for source in config.sources] == [config.columns] * 2
    assert [source.max_rows for source in config.sources] == [3, 3]
