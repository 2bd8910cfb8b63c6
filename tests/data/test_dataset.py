"""`build_dataset`: every row is trained on, evaluated on, or dropped with a reason, and the report says which."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase

from lamina.chat.template import ChatTemplate, build_template, template_of
from lamina.config import DataConfig
from lamina.data.dataset import Dataset, build_dataset
from lamina.data.report import DROP_REASONS, FileReport
from lamina.errors import ConfigError, DataError
from tests.support.chat_families import TOOL
from tests.support.datasets import OVERHEAD, Build, Row, chat, pair, report_of
from tests.support.reasoning_families import reasoning_tokenizer


def dropped(file: FileReport) -> dict[str, list[int]]:
    """Returns the dropped rows, by reason, if all of them are listed."""
    assert all(rows.count == len(rows.first) for rows in file.dropped.values())
    return {reason: rows.first for reason, rows in file.dropped.items()}


@pytest.mark.parametrize(
    ("row", "settings", "reason"),
    [
        (chat(("user", "q")), {}, "no_assistant_turn"),
        (chat(), {}, "no_assistant_turn"),
        (chat(("user", "q"), ("assistant", " \n")), {}, "empty_answer"),
        ({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": None}]}, {}, "empty_answer"),
        (chat(("user", "q" * 60), ("assistant", "a")), {}, "longer_than_max_length"),
        (chat(("user", "q" * 60), ("assistant", "a")), {"overlong": "cut"}, "no_supervised_tokens"),
    ],
)
def test_row_that_cannot_be_used_is_dropped_by_number_and_reason(
    build: Build, row: Row, settings: dict[str, Any], reason: str
) -> None:
    good = chat(("user", "q"), ("assistant", "a"))
    dataset = build([good, row, good, row], max_length=60, **settings)
    file = report_of(dataset)
    assert dropped(file) == {reason: [2, 4]}
    assert [example.row for example in dataset.train] == [1, 3]
    (line,) = [line for line in dataset.report.lines() if "  dropped" in line]
    assert DROP_REASONS[reason] in line
    assert line.endswith("(rows 2, 4)")


def test_rows_after_max_rows_are_counted(build: Build) -> None:
    dataset = build([pair(f"q{i}", "a") for i in range(5)], max_rows=3)
    assert dropped(report_of(dataset)) == {"after_max_rows": [4, 5]}
    assert [example.row for example in dataset.train] == [1, 2, 3]
    assert report_of(build([pair("q", "a")], max_rows=3)).dropped == {}


def test_every_reason_at_once_accounts_for_every_row(build: Build) -> None:
    rows = [
        chat(("user", "q1"), ("assistant", "a")),
        chat(("user", "q2")),
        chat(("user", "q3"), ("assistant", "")),
        chat(("user", "q4" * 40), ("assistant", "a")),
        chat(("user", "q5"), ("assistant", "a"), ("user", "thanks")),
        chat(("user", "q6"), ("assistant", "a")),
        chat(("user", "q7"), ("assistant", "a")),
    ]
    dataset = build(rows, max_length=80, max_rows=6, eval=0.3)
    file = report_of(dataset)
    assert dropped(file) == {
        "no_assistant_turn": [2],
        "empty_answer": [3],
        "after_max_rows": [7],
        "longer_than_max_length": [4],
    }
    assert sorted(e.row for side in (dataset.train, dataset.eval) for e in side) == [1, 5, 6]
    assert file.trimmed.first == [5]


@pytest.mark.parametrize("length", [OVERHEAD + 2, OVERHEAD + 3])
def test_max_length_counts_the_tokens_of_the_whole_rendering(build: Build, length: int) -> None:
    dataset = build([pair("q", "a"), pair("q", "ab")], max_length=length)
    assert [len(example) for example in dataset.train] == list(range(OVERHEAD + 2, length + 1))


def test_cut_rows_lose_their_end_and_are_named(build: Build, tokenizer: PreTrainedTokenizerBase) -> None:
    dataset = build([pair("q", "abcdefgh"), pair("q", "ab")], max_length=OVERHEAD + 3, overlong="cut")
    file = report_of(dataset)
    assert (file.cut.first, file.dropped) == ([1], {})
    cut, whole = dataset.train
    assert len(cut) == OVERHEAD + 3
    assert tokenizer.decode(cut.input_ids[cut.supervised]) == "abcd"
    assert tokenizer.decode(whole.input_ids[whole.supervised]) == "ab<|im_end|>"
    assert "  truncated 1 to max_length (rows 1)" in dataset.report.lines()
    assert any(
        "1 of 2 training examples do not have the stop token in the loss" in note for note in dataset.report.notes
    )


def test_turns_after_the_last_answer_are_trimmed_and_named(build: Build, tokenizer: PreTrainedTokenizerBase) -> None:
    dataset = build([chat(("user", "q"), ("assistant", "a"), ("user", "thanks"), ("system", "x"))])
    assert report_of(dataset).trimmed.first == [1]
    assert "thanks" not in str(tokenizer.decode(dataset.train[0].input_ids))
    assert any("removed turns after the last answer of 1 (rows 1)" in line for line in dataset.report.lines())


def test_bare_tool_call_is_taught_as_a_call(build: Build, tokenizer: PreTrainedTokenizerBase) -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "weather", "arguments": {}}]}
    row = chat(("user", "weather?"), ("tool", "sunny"), ("assistant", "It is sunny."))
    row["messages"].insert(1, call)
    dataset = build([row, chat(("user", "q"), ("assistant", "a"))])
    taught = [str(tokenizer.decode(e.input_ids[e.supervised])) for e in dataset.train]
    call_text = '<tool_call>\n{"name": "weather", "arguments": {}}\n</tool_call><|im_end|>'
    assert taught == [f"{call_text}It is sunny.<|im_end|>", "a<|im_end|>"]
    assert any("Hermes" in note for note in dataset.report.notes)


def test_ignored_columns_are_named(build: Build) -> None:
    dataset = build([{**pair("q", "a"), "id": 1, "topic": True}])
    assert report_of(dataset).ignored_columns == ["id", "topic"]
    assert "  columns not used: id, topic" in dataset.report.lines()


def test_report_names_file_digest_and_format(build: Build, tmp_path: Path) -> None:
    file = report_of(build([pair("q", "a")]))
    path = tmp_path / "rows.jsonl"
    assert (file.path, file.format, file.rows) == (str(path), "prompt_completion", 1)
    assert file.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_token_figures_are_those_of_the_examples(build: Build) -> None:
    report = build([pair("q", "a"), pair("q", "abc"), pair("q", "abcdef")]).report
    train = report.train
    lengths = [OVERHEAD + 1 + answer for answer in (1, 3, 6)]
    assert (train.examples, train.tokens, train.supervised_tokens) == (3, sum(lengths), 10 + 3)
    assert (train.shortest, train.median, train.longest) == tuple(lengths)
    assert report.eval is None
    assert report.stop_token == "<|im_end|>"
    assert json.loads(json.dumps(report.as_json()))["train"]["tokens"] == sum(lengths)


def test_packing_figures(build: Build) -> None:
    rows = [pair("q", "a") for _ in range(7)]
    length = OVERHEAD + 2
    packed = build(rows, max_length=length).report
    assert (packed.micro_batches, packed.packing_efficiency) == (4, 7 / 8)
    assert "packing: 4 micro-batches, 87.5% full" in packed.lines()
    counted = build(rows, batch_size=3, packing=False).report
    assert (counted.micro_batches, counted.packing_efficiency) == (3, None)


def test_share_for_evaluation_is_split_off_by_seed(build: Build, template: ChatTemplate) -> None:
    rows = [pair(f"q{i}", "a") for i in range(20)]
    held_out = [[example.row for example in build(rows, seed, eval=0.25).eval] for seed in (0, 0, 1)]
    assert [len(side) for side in held_out] == [5, 5, 5]
    assert held_out[0] == held_out[1] != held_out[2]
    dataset = build(rows, eval=0.25)
    examples = dataset.eval_examples(template)
    assert [example.row for example in examples] == [example.row for example in dataset.eval]
    assert [example.prompt[-1].content for example in examples] == [f"q{row - 1}" for row in held_out[0]]
    assert dataset.report.eval is not None and dataset.report.eval.examples == 5


def test_a_number_of_rows_for_evaluation_is_split_off(build: Build) -> None:
    rows = [pair(f"q{i}", "a") for i in range(20)]
    assert len(build(rows, eval=7).eval) == 7
    assert len(build(rows, eval=1).eval) == 1
    assert len(build(rows, eval=19).train) == 1
    with pytest.raises(ConfigError, match=r"data\.eval: asks for 20 of the 20 rows"):
        build(rows, eval=20)


def test_one_prompt_for_all_rows_leaves_no_evaluation_side_and_says_so(build: Build) -> None:
    dataset = build([pair("q", str(i)) for i in range(5)], eval=0.5)
    assert (len(dataset.eval), dataset.report.eval) == (0, None)
    assert report_of(dataset).train_rows == 5
    assert any("same prompt" in note for note in dataset.report.notes)


def test_evaluation_side_that_is_dropped_whole_is_noted(build: Build) -> None:
    rows = [pair("q", "a"), pair("q" * 99, "a")]
    seed = next(seed for seed in range(20) if [e.row for e in build(rows, seed, eval=0.5, max_length=500).eval] == [2])
    dataset = build(rows, seed, eval=0.5, max_length=50)
    assert len(dataset.eval) == 0
    assert any("evaluation" in note for note in dataset.report.notes)


def test_evaluation_file_is_read_whole_and_reported_apart(
    build: Build, write: Callable[..., str], template: ChatTemplate
) -> None:
    path = write([pair("new", "a"), pair("empty", ""), pair("new too", "b"), pair("long", "b" * 99)], "eval.jsonl")
    dataset = build([pair("q", "a"), pair("r", "a")], eval=path, max_rows=1, max_length=60)
    train, held_out = dataset.report.files
    assert (train.train_rows, train.eval_rows, dropped(train)) == (1, 0, {"after_max_rows": [2]})
    assert (held_out.path, held_out.train_rows, held_out.eval_rows) == (path, 0, 2)
    assert dropped(held_out) == {"empty_answer": [2], "longer_than_max_length": [4]}
    assert [example.row for example in dataset.eval_examples(template)] == [1, 3]
    assert dataset.report.notes == []


def test_evaluation_file_with_prompts_that_are_trained_on_is_noted(build: Build, write: Callable[..., str]) -> None:
    path = write([pair("new", "a"), pair(" q ", "other answer"), pair("r", "a")], "eval.jsonl")
    dataset = build([pair("q", "a"), pair("r", "a")], eval=path)
    (note,) = dataset.report.notes
    assert note == "2 evaluation rows have a prompt that is also in the training data (first: row 2)"
    assert len(dataset.eval) == 3


def test_prompt_of_a_dropped_training_row_is_not_trained_on(build: Build, write: Callable[..., str]) -> None:
    path = write([pair("q", "a")], "eval.jsonl")
    dataset = build([pair("q", "a" * 99), pair("r", "a")], eval=path, max_length=60)
    assert dropped(dataset.report.files[0]) == {"longer_than_max_length": [1]}
    assert dataset.report.notes == []


def test_nothing_left_to_train_on_gives_file_and_every_reason(build: Build, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        build([pair("q", ""), pair("q" * 99, "a"), pair("r", " ")], max_length=50)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'rows.jsonl'}: there is no usable row")
    assert f"2 rows: {DROP_REASONS['empty_answer']}" in message
    assert f"1 rows: {DROP_REASONS['longer_than_max_length']}" in message
    assert "data.max_length" in message


def test_nothing_left_to_evaluate_on_names_the_evaluation_file(build: Build, write: Callable[..., str]) -> None:
    path = write([pair("q", "")], "eval.jsonl")
    with pytest.raises(DataError, match="there is no usable row") as caught:
        build([pair("q", "a")], eval=path)
    assert str(caught.value).startswith(path)


def test_missing_evaluation_file_is_an_error_of_its_field(build: Build) -> None:
    with pytest.raises(ConfigError) as caught:
        build([pair("q", "a")], eval="nope.jsonl")
    assert [problem.field for problem in caught.value.problems] == ["data.eval"]


def test_evaluation_file_may_have_another_format(build: Build, write: Callable[..., str]) -> None:
    path = write([chat(("user", "new"), ("assistant", "a"))], "eval.jsonl")
    dataset = build([pair("q", "a")], eval=path)
    assert [file.format for file in dataset.report.files] == ["prompt_completion", "messages"]


def test_template_notes_are_in_the_report(write: Callable[..., str], tokenizer: PreTrainedTokenizerBase) -> None:
    config = DataConfig(train=write([pair("q", "a")]), eval=None)
    report = build_dataset(config, build_template(tokenizer, "plain"), 1, 0).report
    assert report.chat_template == "plain"
    assert any("'plain'" in note for note in report.notes)
    assert any(line.startswith("note: ") for line in report.lines())


def test_wrapped_packing_cuts_where_a_micro_batch_is_full(build: Build) -> None:
    rows = [{"text": "word " * (1 + number % 40)} for number in range(50)]
    dataset = build(rows, max_length=256, packing_strategy="wrapped")
    assert dataset.train_blocks is not None
    tokens = np.bincount(dataset.train_blocks, dataset.train.lengths)
    assert dataset.report.micro_batches == len(tokens)
    assert (tokens[:-1] == 512).all()
    assert dataset.report.packing_efficiency == tokens.sum() / (512 * len(tokens))
    assert len(dataset.train) > 50
    assert not any(example.supervised[0] for example in dataset.train)
    assert dataset.report.files[0].train_rows == 50
    again = build(rows, max_length=256, packing_strategy="wrapped")
    assert [example.input_ids.tolist() for example in again.train] == [e.input_ids.tolist() for e in dataset.train]


def test_wrapped_packing_names_rows_of_which_nothing_is_left(build: Build) -> None:
    texts = [("some w", False), ("o", True), ("rd", False)]
    marked = [{"type": "text", "text": text, "train": train} for text, train in texts]
    row = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": marked}]}
    length = int(build([row], train_on="marked").train.lengths[0])
    dataset = build([row] * 3 * length, 0, 1, max_length=length + 1, packing_strategy="wrapped", train_on="marked")
    (report,) = dataset.report.files
    gone = report.dropped["no_supervised_tokens"].count  # rows that are truncated right before the marked token
    assert gone and report.train_rows + gone == 3 * length
    assert all(example.supervised.any() for example in dataset.train)


def test_wrapped_without_packing_is_refused(build: Build) -> None:
    with pytest.raises(ValueError, match="has no effect without packing"):
        build([pair("q", "a")], packing=False, packing_strategy="wrapped")


THOUGHT = {"role": "assistant", "content": "a", "reasoning_content": "hm"}
ASKED = {"role": "user", "content": "q"}


def of_qwen3(write: Callable[..., str], rows: list[Row], **settings: Any) -> Dataset:
    config = DataConfig(train=write(rows), **{"eval": None, **settings})
    return build_dataset(config, template_of(reasoning_tokenizer("qwen3"), config), 2, 0)


def test_the_report_says_what_the_template_does_to_answers(write: Callable[..., str]) -> None:
    rows: list[Row] = [pair("q", "a"), pair("r", "b")]
    (note,) = of_qwen3(write, [{"messages": [ASKED, {"role": "assistant", "content": "a"}]}] * 2).report.notes
    assert "'<think>\\n\\n</think>\\n\\n' before 2 answers" in note
    assert "data.enable_thinking: false puts it into the prompt" in note
    assert of_qwen3(write, rows, enable_thinking=False).report.notes == []
    (given,) = of_qwen3(write, [{"messages": [ASKED, THOUGHT]}], thinking="unsupervised").report.notes
    assert "1 rows have answers after their own reasoning" in given
    (unread,) = of_qwen3(write, [{**rows[0], "chat_template_kwargs": {"enable_thinking": False, "x": 1}}]).report.notes
    assert unread == "chat_template_kwargs of 1 rows set 'x', which the chat template does not read"


def test_the_report_names_rows_with_answers_that_are_not_learned(write: Callable[..., str]) -> None:
    rows = [{"messages": [ASKED, THOUGHT]}, {"messages": [ASKED, THOUGHT, {"role": "user", "content": "r"}, THOUGHT]}]
    for _ in range(2):  # from the cache, the second time
        report = of_qwen3(write, rows).report
        (file,) = report.files
        assert (file.not_asked.count, file.not_asked.first) == (1, [2])
        (line,) = [line for line in report.lines() if "not in the loss" in line]
        assert "1 have earlier answers" in line and "(rows 2)" in line
    assert not of_qwen3(write, rows, thinking="strip").report.files[0].not_asked.count


def test_what_the_template_is_told_decides_the_cached_tokens(write: Callable[..., str]) -> None:
    rows = [pair("q", "a")]
    texts = [len(of_qwen3(write, rows, enable_thinking=value).train[0]) for value in (None, False, None)]
    learned = [of_qwen3(write, rows, enable_thinking=value).train[0].supervised_tokens for value in (None, False, None)]
    assert texts[0] == texts[1] == texts[2]
    assert learned[0] == learned[2] > learned[1] == len("a") + 1


def test_rows_that_only_call_teach_the_token_that_ends_a_call(write: Callable[..., str]) -> None:
    call = {"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Z"}}}
    rows = [{"messages": [ASKED, {"role": "assistant", "content": "", "tool_calls": [call]}], "tools": [TOOL]}]
    for name in ("gpt-oss", "glm4.5"):
        config = DataConfig(train=write(rows), eval=None)
        dataset = build_dataset(config, template_of(reasoning_tokenizer(name), config), 2, 0)
        assert dataset.train.pieces.teaches_stop.all()
        assert not [note for note in dataset.report.notes if "do not have the stop token" in note]


def test_a_column_without_a_name_is_called_that(build: Build) -> None:
    """`DataFrame.to_csv` writes the index under an empty name."""
    lines = build([{"": str(i), **pair(f"q{i}", "a")} for i in range(3)]).report.lines()
    assert any(line.endswith("columns not used: (a column without a name)") for line in lines)
