"""Lost rows: a warning if there are many, an error if most are lost, and every suggested fix works."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from lamina.chat.template import ChatTemplate, build_template
from lamina.checks.check import check_data
from lamina.checks.findings import CheckReport, Severity
from lamina.checks.target import Target
from lamina.config import load_config
from lamina.data.dataset import Dataset, build_dataset, build_evaluation, load_examples
from lamina.data.example import Example, Kind
from lamina.data.read import find_files
from lamina.data.source import SourceReader
from lamina.errors import DataError

Row = dict[str, Any]
GOOD = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
# Rows that are lost, one per reason.
LOST = {
    "no_assistant_turn": {"messages": GOOD["messages"][:1]},
    "empty_answer": {"messages": [GOOD["messages"][0], {"role": "assistant", "content": " "}]},
    "nothing_before_the_answer": {"messages": GOOD["messages"][1:]},
    "longer_than_max_length": {"messages": [{"role": "user", "content": "q" * 90}, GOOD["messages"][1]]},
    "no_supervised_tokens": {"messages": [GOOD["messages"][0], GOOD["messages"][1] | {"train": False}]},
}


@pytest.fixture(scope="module")
def template(tokenizer: PreTrainedTokenizerBase) -> ChatTemplate:
    return build_template(tokenizer)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    def write_rows(rows: list[Row], name: str = "rows.jsonl") -> str:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return str(path)

    return write_rows


@pytest.fixture
def build(template: ChatTemplate) -> Callable[..., Dataset]:
    def build_from(train: Any, *overrides: str, **settings: Any) -> Dataset:
        data = {"train": train, "eval": None, "max_length": 64, **settings}
        return build_dataset(load_config({"data": data}, list(overrides)).data, template, 2, 0)

    return build_from


def mixed(good: int, lost: int, reason: str) -> list[Row]:
    """Mixes lost rows among good ones."""
    rows = [LOST[reason]] * lost + [GOOD] * good
    return rows[::2] + rows[1::2]


@pytest.mark.parametrize("reason", LOST)
@pytest.mark.parametrize(("good", "lost"), [(9, 1), (19, 3), (10, 10), (9, 10), (4, 296)])
def test_a_tenth_is_a_warning_and_a_half_an_error(
    build: Callable[..., Dataset], write: Callable[..., str], reason: str, good: int, lost: int
) -> None:
    path = write(mixed(good, lost, reason))
    if lost > good:
        with pytest.raises(DataError) as caught:
            build(path)
        assert f"{path}: {lost} of {good + lost} rows ({lost / (good + lost):.0%}) are dropped" in str(caught.value)
        allowed = re.search(r"data\.max_dropped=0\.\d+ accepts", str(caught.value))
        assert allowed
        dataset = build(path, allowed[0].split()[0])
    else:
        dataset = build(path)
    assert len(dataset.train) == good
    first = dataset.report.lines()[0]
    assert first.startswith("warning: ") == (lost > 0.1 * (good + lost))
    assert first.removeprefix("warning: ") in [*dataset.report.warnings, first]
    assert dataset.report.as_json()["warnings"] == dataset.report.warnings


@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
def test_the_share_that_may_be_lost_is_set(
    build: Callable[..., Dataset], write: Callable[..., str], share: float
) -> None:
    path = write(mixed(7, 3, "empty_answer"))
    if share < 0.3:
        with pytest.raises(DataError, match=rf"data\.max_dropped={share:g} allows no more than {share:.0%}"):
            build(path, max_dropped=share)
    else:
        assert len(build(path, max_dropped=share).train) == 7


def test_a_length_that_is_named_is_long_enough(build: Callable[..., Dataset], write: Callable[..., str]) -> None:
    rows = [{"prompt": "q" * length, "completion": "a"} for length in range(0, 400, 4)]
    path = write(rows)
    with pytest.raises(DataError) as caught:
        build(path)
    named = re.search(r"data\.max_length=\d+", str(caught.value))
    assert named
    assert build(path, named[0]).report.warnings == []
    assert build(path, "data.overlong=split").report.warnings == []


def test_what_the_configuration_leaves_out_is_not_lost(
    build: Callable[..., Dataset], write: Callable[..., str]
) -> None:
    path = write([{"prompt": f"q{n}", "completion": "a"} for n in range(40)])
    assert build(path, max_rows=3).report.warnings == []
    assert build([{"path": path, "weight": 0.1}]).report.warnings == []
    assert build(path, replay={"path": path, "share": 0.01}).report.warnings == []
    with pytest.raises(DataError, match="2 of 3 rows"):
        build(write(mixed(1, 2, "empty_answer") + [GOOD] * 97, "begin.jsonl"), max_rows=3)


def test_each_source_is_looked_at_by_itself(build: Callable[..., Dataset], write: Callable[..., str]) -> None:
    good, bad = write([GOOD] * 100, "good.jsonl"), write(mixed(4, 6, "empty_answer"), "bad.jsonl")
    with pytest.raises(DataError, match=r"bad\.jsonl: 6 of 10 rows"):
        build([good, bad])
    with pytest.raises(DataError, match=r"bad\.jsonl: 6 of 10 rows"):
        build(good, eval=bad)
    with pytest.raises(DataError, match=r"bad\.jsonl: 6 of 10 rows"):
        build(good, replay={"path": bad, "share": 0.5})
    # The files of a folder are one source.
    folder = Path(write([GOOD] * 20, "folder/a.jsonl")).parent
    write([LOST["empty_answer"]] * 2, "folder/b.jsonl")
    assert build(str(folder)).report.warnings == []
    write([LOST["empty_answer"]] * 20, "folder/b.jsonl")
    with pytest.raises(DataError, match=r"folder: 20 of 40 rows|folder: 20 of 40"):
        build(str(folder), max_dropped=0.4)


@pytest.mark.parametrize("reason", LOST)
def test_check_finds_what_training_stops_on(
    build: Callable[..., Dataset],
    write: Callable[..., str],
    reason: str,
    model_folder: Path,
) -> None:
    def found(path: str, **settings: Any) -> CheckReport:
        data = load_config({"data": {"train": path, "eval": None, "max_length": 64, **settings}}).data
        return check_data(Target(data, str(model_folder), is_run=True), lambda said: None, lambda rows: None)[0]

    most = write(mixed(4, 6, reason))
    finding = found(most).find("rows_lost")
    assert finding is not None and finding.severity is Severity.ERROR and (finding.count, finding.share) == (6, 0.6)
    with pytest.raises(DataError) as caught:
        build(most)
    assert finding.title in str(caught.value)

    finding = found(most, max_dropped=0.6).find("rows_lost")
    assert finding is not None and finding.severity is Severity.WARNING
    (warning,) = build(most, max_dropped=0.6).report.warnings
    assert finding.title in warning
    assert found(write(mixed(9, 1, reason), "few.jsonl")).find("rows_lost") is None


def test_nothing_left_names_a_way_for_its_reason(build: Callable[..., Dataset], write: Callable[..., str]) -> None:
    long = write([LOST["longer_than_max_length"]] * 3)
    with pytest.raises(DataError, match="there is no usable row") as caught:
        build(long)
    named = re.search(r"data\.max_length=\d+", str(caught.value))
    assert named and len(build(long, named[0]).train) == 3
    with pytest.raises(DataError, match=r"there is no usable row.* Fix: `lamina data check") as caught:
        build(write([LOST["empty_answer"]] * 3))
    assert "max_length" not in str(caught.value).partition("Fix:")[2]


# Rows that evaluation drops.


def test_evaluation_tells_of_all_of_its_own_rows(
    build: Callable[..., Dataset], write: Callable[..., str], template: ChatTemplate
) -> None:
    folder = Path(write(mixed(8, 2, "empty_answer"), "tested/a.jsonl")).parent
    write(mixed(9, 1, "no_assistant_turn"), "tested/b.jsonl")
    data = load_config({"data": {"train": "unused", "max_length": 64}}).data
    dataset = build_evaluation(data, str(folder), "--data", None, template)
    assert dataset.eval_dropped == {"empty_answer": 2, "no_assistant_turn": 1} and len(dataset.eval) == 17
    (warning,) = dataset.report.warnings
    assert "3 of 20 rows" in warning
    # Most rows are lost: evaluation continues, and says so.
    most = build_evaluation(data, write(mixed(1, 9, "empty_answer"), "most.jsonl"), "--data", None, template)
    assert most.eval_dropped == {"empty_answer": 9} and "9 of 10 rows (90%)" in most.report.warnings[0]


def test_a_runs_evaluation_tells_of_no_other_side(build: Callable[..., Dataset], write: Callable[..., str]) -> None:
    train = write(mixed(9, 3, "empty_answer"), "train.jsonl")
    replay = {"path": write([{"text": f"text {n}"} for n in range(50)], "replay.jsonl"), "share": 0.1}
    held_out = write(mixed(9, 1, "no_assistant_turn"), "held_out.jsonl")
    assert build(train, eval=held_out, replay=replay).eval_dropped == {"no_assistant_turn": 1}
    rows = [{"prompt": f"q{n}" + "q" * 90 * (n % 4 == 0), "completion": "a"} for n in range(40)]
    dataset = build(write(rows, "long.jsonl"), eval=0.5, replay=replay)
    ((reason, count),) = dataset.eval_dropped.items()
    assert reason == "longer_than_max_length" and 0 < count < 10
    assert len(dataset.eval) + count == 20


def test_examples_to_score_are_not_most_of_them_lost(write: Callable[..., str]) -> None:
    data = load_config({"data": {"train": "unused"}}).data
    assert len(load_examples(data, write(mixed(6, 4, "empty_answer")), "--test", None)) == 6
    with pytest.raises(DataError, match="6 of 10 rows"):
        load_examples(data, write(mixed(4, 6, "empty_answer")), "--test", None)


# Rows without a loss.

ASK, CHOSEN, REJECTED = (
    {"role": r, "content": c} for r, c in (("user", "q"), ("assistant", "yes"), ("assistant", "no"))
)
PREFERENCES: dict[str, Row] = {
    "texts": {"prompt": "q", "chosen": "yes", "rejected": "no"},
    "turns": {"prompt": [ASK], "chosen": [CHOSEN], "rejected": [REJECTED]},
    "whole conversations": {"chosen": [ASK, CHOSEN], "rejected": [ASK, REJECTED]},
    "whole conversations beside the prompt": {"prompt": "q", "chosen": [ASK, CHOSEN], "rejected": [ASK, REJECTED]},
    "conversations": {
        "conversations": [{"from": "human", "value": "q"}],
        "chosen": {"from": "gpt", "value": "yes"},
        "rejected": {"from": "gpt", "value": "no"},
    },
    "with a system turn": {"system": "be kind", "prompt": "q", "chosen": "yes", "rejected": "no"},
    "several turns": {"prompt": [ASK, REJECTED, ASK], "chosen": [CHOSEN], "rejected": [REJECTED]},
    "alpaca": {"instruction": "q", "input": "more", "chosen": "yes", "rejected": "no"},
}


def said(example: Example) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in example.messages]


def follow(error: DataError) -> list[str]:
    """Returns the settings that an error names as its fix."""
    return re.findall(r"data\.columns=\{.*?\}|data\.format=\w+", str(error).partition("Fix:")[2])


@pytest.mark.parametrize("shape", PREFERENCES)
@pytest.mark.parametrize("form", ["auto", "preference"])
def test_the_fix_for_preferences_learns_the_chosen_answers(
    build: Callable[..., Dataset], write: Callable[..., str], template: ChatTemplate, shape: str, form: str
) -> None:
    path = write([PREFERENCES[shape]] * 3)
    with pytest.raises(DataError, match="does not learn from") as caught:
        build(path, format=form, max_length=256)
    fix = follow(caught.value)
    dataset = build(path, *fix, format=form, max_length=256)
    (file,) = find_files(path)
    wanted = [row.example for row in SourceReader(file, load_config({"data": {"train": path}}).data.sources[0])]
    for example, preference in zip(dataset.train, wanted, strict=True):
        assert preference is not None and preference.kind is Kind.PREFERENCE
        assert template.tokenizer.decode(example.input_ids.tolist()) == template.render(preference.messages)


def test_the_fix_keeps_a_mapping_and_is_not_made_up(build: Callable[..., Dataset], write: Callable[..., str]) -> None:
    rows = [{"question": "q", "good": "yes", "bad": "no"}] * 3
    path = write(rows)
    with pytest.raises(DataError) as caught:
        build(path, columns={"prompt": "question", "chosen": "good", "rejected": "bad"})
    assert len(build(path, *follow(caught.value)).train) == 3
    # If the rows have different forms, no mapping fits all of them.
    with pytest.raises(DataError, match="write each row as `messages`") as caught:
        build(write([PREFERENCES["texts"], PREFERENCES["conversations"]]))
    assert not follow(caught.value)


def test_the_fix_for_judged_answers_says_how_many_are_wanted(
    build: Callable[..., Dataset], write: Callable[..., str]
) -> None:
    rows = [{"prompt": "q", "completion": "a", "label": n % 5 == 0} for n in range(20)]
    with pytest.raises(DataError, match=r"whose label is true \(4 of 20\)"):
        build(write(rows))


@pytest.mark.parametrize("name", ["kto_en_demo.json", "dpo_en_demo.json", "glaive_toolcall_en_demo.json"])
@pytest.mark.parametrize("max_length", [128, 512, 4096, 32768])
def test_what_is_printed_for_real_files_trains_on_most_of_their_rows(
    build: Callable[..., Dataset], shared_data: Path, name: str, max_length: int
) -> None:
    """Applying a printed fix literally never loses more than is allowed."""
    path, overrides = str(shared_data / name), [f"data.max_length={max_length}"]
    for _ in range(3):
        try:
            dataset = build(path, *overrides)
        except DataError as error:
            fix = str(error).partition("Fix:")[2]
            named = [*follow(error), *re.findall(r"data\.max_length=\d+", fix)]
            if "whose label is true (150 of 300)" in fix:
                return
            assert named, error
            overrides += named
            continue
        (file,) = dataset.report.files
        assert file.rows == 300 and file.train_rows >= 150
        assert bool(dataset.report.warnings) == (file.rows_dropped > 30)
        return
    raise AssertionError("the fixes lead nowhere")
