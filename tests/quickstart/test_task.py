"""The quickstart task: its rows are reproducible, balanced and correctly labeled, and the evaluation wording is new."""

from __future__ import annotations

import itertools
import json
import os
import re
import string
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from lamina.quickstart import task as task_module
from lamina.quickstart.task import (
    INTENTS,
    KEYS,
    ORDER_PATTERN,
    PRIORITIES,
    PRODUCTS,
    QUEUE_OF_INTENT,
    QUEUES,
    SYSTEM,
    TRAIN_PRODUCTS,
    UNSEEN_PRODUCTS,
    Request,
    Task,
    build_task,
    is_valid_record,
)
from lamina.quickstart.wording import EVAL, TRAIN, Wording

GRAM = 6
SOURCE_ROOT = Path(task_module.__file__).parents[2]
ACCOUNT_INTENTS = [intent for intent in INTENTS if QUEUE_OF_INTENT[intent] == "account"]
# Only the high and low pools may use these words.
URGENCY_WORDS = re.compile(
    r"urgen|today|tonight|tomorrow|immediate|asap|emergency|priority|hurry|\brush|fast|quick|deadline"
    r"|right now|pressing|\bwaits?\b|leisure|whenever|pressure|soon"
)
GOOD = {
    "intent": "refund",
    "queue": "billing",
    "product": "desk lamp",
    "order": "KT-48213",
    "priority": "high",
}


@pytest.fixture(scope="module")
def task() -> Task:
    return build_task()


def words_of(text: str) -> list[str]:
    """Returns lower-case words without punctuation; `-` is dropped too, so `mix-up` is one word."""
    return text.lower().translate(str.maketrans("", "", string.punctuation)).split()


def grams_of(words: list[str]) -> set[tuple[str, ...]]:
    return {tuple(words[i : i + GRAM]) for i in range(len(words) - GRAM + 1)}


def request_grams(rows: Iterable[Request]) -> set[tuple[str, ...]]:
    """Returns all 6-grams of the requests, with product and order id replaced by placeholders."""
    grams: set[tuple[str, ...]] = set()
    for row in rows:
        text = row.text
        for key in ("product", "order"):
            if row.record[key] is not None:
                text = text.replace(str(row.record[key]), f"{key}slot")
        grams |= grams_of(words_of(text))
    return grams


def pools(wording: Wording) -> Iterator[tuple[str, tuple[str, ...]]]:
    yield from wording.core.items()
    for name in ("order", "high", "low", "greeting", "small_talk", "sign_off"):
        yield name, getattr(wording, name)


def all_possible_grams(wording: Wording) -> set[tuple[str, ...]]:
    """Returns all 6-grams that any seed can produce: inside a sentence, and across sentence boundaries."""
    groups: dict[str, set[tuple[str, ...]]] = {}
    inline = ["", *(f" {phrase}" for phrase in wording.order if phrase.startswith("("))]
    for name, pool in pools(wording):
        group = groups.setdefault("core" if name in INTENTS else name, set())
        for phrase in pool:
            if phrase.startswith("("):
                continue
            for extra in inline if "{product}" in phrase else [""]:
                filled = phrase.replace("{product}", "productslot" + extra).replace("{order}", "orderslot")
                group.add(tuple(words_of(filled)))
    grams = set().union(*(grams_of(list(s)) for sentences in groups.values() for s in sentences))
    # Sentences between two others have at least three words, so no 6-gram spans more than three sentences.
    assert min(len(s) for n in ("order", "high", "low", "small_talk") for s in groups[n]) >= GRAM // 2
    for names in itertools.chain(itertools.permutations(groups, 2), itertools.permutations(groups, 3)):
        if "greeting" in names[1:] or "sign_off" in names[:-1] or {"high", "low"} <= set(names):
            continue
        first, *between, last = (groups[name] for name in names)
        for middle in between[0] if between else [()]:
            room = GRAM - len(middle)
            for left in range(1, room):
                tails = {s[-left:] for s in first if len(s) >= left}
                heads = {s[: room - left] for s in last if len(s) >= room - left}
                grams |= {tail + middle + head for tail in tails for head in heads}
    return grams


def test_same_seed_gives_same_rows_and_other_seed_gives_others(task: Task) -> None:
    assert build_task() == task
    other = build_task(seed=1)
    assert not {row.text for row in task.train} & {row.text for row in other.train if row.record["order"]}
    assert [row.text for row in other.eval] != [row.text for row in task.eval]


def test_rows_do_not_depend_on_the_process() -> None:
    code = "from lamina.quickstart.task import build_task as b; print(b(5, 90, 30))"
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(SOURCE_ROOT)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    }
    assert outputs == {f"{build_task(5, 90, 30)}\n"}


def test_eval_rows_do_not_depend_on_the_number_of_train_rows(task: Task) -> None:
    assert build_task(train_rows=20).eval == task.eval


def test_row_counts_and_distinct_texts(task: Task) -> None:
    assert (len(task.train), len(task.eval)) == (560, 100)
    texts = [row.text for row in task.train + task.eval]
    assert len(set(texts)) == len(texts)


def test_asking_for_more_rows_than_the_wording_gives_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    for share in ("_GREETING_SHARE", "_SMALL_TALK_SHARE", "_SIGN_OFF_SHARE"):
        monkeypatch.setattr(task_module, share, 0.0)
    monkeypatch.setattr(task_module, "_MIN_WORDS", 0)
    with pytest.raises(ValueError, match="no new wording left for intent"):
        build_task(train_rows=3000, eval_rows=0)


@pytest.mark.parametrize("seed", range(3))
def test_no_eval_wording_occurs_in_training(seed: int) -> None:
    task = build_task(seed)
    train, evaluation = request_grams(task.train), request_grams(task.eval)
    assert len(train) > 3000 and len(evaluation) > 1000  # Empty sets must not pass the check below.
    assert train & evaluation == set()


def test_no_seed_can_put_eval_wording_into_training(task: Task) -> None:
    possible = {"train": all_possible_grams(TRAIN), "eval": all_possible_grams(EVAL)}
    assert request_grams(task.train) <= possible["train"]
    assert request_grams(task.eval) <= possible["eval"]
    assert possible["train"] & possible["eval"] == set()


def test_no_phrase_is_in_both_splits_or_twice_in_one() -> None:
    phrases = [phrase.lower() for wording in (TRAIN, EVAL) for _, pool in pools(wording) for phrase in pool]
    assert [phrase for phrase, count in Counter(phrases).items() if count > 1] == []


@pytest.mark.parametrize(("wording", "cores"), [(TRAIN, 12), (EVAL, 6)])
def test_pools_are_large_enough_and_hold_their_slots(wording: Wording, cores: int) -> None:
    assert tuple(wording.core) == INTENTS
    for name, pool in pools(wording):
        if name in INTENTS:
            assert len(pool) == cores
        product_slots = int(name in INTENTS and name not in ACCOUNT_INTENTS)
        for phrase in pool:
            assert phrase.count("{product}") == product_slots, phrase
            assert phrase.count("{order}") == int(name == "order"), phrase


@pytest.mark.parametrize("wording", [TRAIN, EVAL])
def test_only_the_priority_pools_speak_of_urgency(wording: Wording) -> None:
    for name, pool in pools(wording):
        for phrase in pool:
            if name in ("high", "low"):
                assert "{" not in phrase
            else:
                assert not URGENCY_WORDS.search(phrase.lower()), phrase


def test_the_label_follows_the_phrases_in_the_text(task: Task) -> None:
    for rows, wording in ((task.train, TRAIN), (task.eval, EVAL)):
        for row in rows:
            present = {p: any(s in row.text for s in getattr(wording, p)) for p in ("high", "low")}
            assert present == {p: row.record["priority"] == p for p in ("high", "low")}, row
            found = [
                intent
                for intent, pool in wording.core.items()
                for phrase in pool
                if all(part in row.text for part in re.split(r"\{product\}", phrase))
            ]
            assert found == [row.record["intent"]], row


def test_every_record_is_valid_and_follows_the_house_rules(task: Task) -> None:
    for row in task.train + task.eval:
        assert is_valid_record(row.answer()), row
        assert tuple(row.record) == KEYS
        assert row.record["queue"] == QUEUE_OF_INTENT[str(row.record["intent"])]
        is_account = row.record["queue"] == "account"
        assert (row.record["product"] is None) == is_account
        assert not (is_account and row.record["order"])


def test_product_and_order_are_stated_literally_and_alone(task: Task) -> None:
    for row in task.train + task.eval:
        assert "{" not in row.text and "None" not in row.text
        stated = [name for name in PRODUCTS if re.search(rf"\b{name}\b", row.text)]
        assert stated == ([] if row.record["product"] is None else [row.record["product"]]), row
        ids = ORDER_PATTERN.findall(row.text)
        assert ids == ([] if row.record["order"] is None else [row.record["order"]]), row


def test_products_are_lower_case_and_none_is_part_of_another() -> None:
    assert len(TRAIN_PRODUCTS) >= 40 and len(UNSEEN_PRODUCTS) >= 20
    for name in PRODUCTS:
        assert re.fullmatch(r"[b-df-hj-np-tv-z][a-z]*( [a-z]+)*", name), name
        assert [other for other in PRODUCTS if name in other] == [name]


def test_half_of_eval_products_and_all_eval_ids_are_unseen(task: Task) -> None:
    trained = {row.record["product"] for row in task.train} - {None}
    assert trained == set(TRAIN_PRODUCTS)
    asked = [row.record["product"] for row in task.eval if row.record["product"]]
    assert sum(product not in trained for product in asked) == len(asked) // 2 == 40
    # A rule separates order numbers, so that no seed can put an evaluation id into training.
    by_seven = [
        {int(str(row.record["order"])[3:]) % 7 == 0 for row in rows if row.record["order"]}
        for rows in (task.train, task.eval)
    ]
    assert by_seven == [{False}, {True}]


@pytest.mark.parametrize("split", ["train", "eval"])
def test_balance(task: Task, split: str) -> None:
    rows: list[Request] = getattr(task, split)
    count = len(rows)
    assert Counter(row.record["intent"] for row in rows) == dict.fromkeys(INTENTS, count // 10)
    shares = {p: sum(row.record["priority"] == p for row in rows) / count for p in PRIORITIES}
    assert shares == pytest.approx({"high": 0.35, "normal": 0.40, "low": 0.25})
    assert sum(row.record["order"] is not None for row in rows) / count == pytest.approx(0.6)
    # No intent reveals the priority.
    if split == "train":
        pairs = Counter((row.record["intent"], row.record["priority"]) for row in rows)
        assert min(pairs[pair] for pair in itertools.product(INTENTS, PRIORITIES)) >= 6


@pytest.mark.parametrize("split", ["train", "eval"])
def test_requests_are_short_single_lines_that_vary(task: Task, split: str) -> None:
    rows: list[Request] = getattr(task, split)
    lengths = [len(row.text.split()) for row in rows]
    assert min(lengths) >= 12 and max(lengths) <= 55
    assert 24 <= sum(lengths) / len(lengths) <= 34
    assert all("\n" not in row.text and "  " not in row.text for row in rows)
    wording = TRAIN if split == "train" else EVAL
    texts = "\n".join(row.text for row in rows)
    for name, pool in pools(wording):
        for phrase in pool:
            parts = re.split(r"\{\w+\}", phrase)
            assert all(part in texts for part in parts), f"never used: {name}: {phrase}"


def test_request_renders_as_json_and_as_chat() -> None:
    request = Request("Hello!", dict(GOOD))
    line = '{"intent": "refund", "queue": "billing", "product": "desk lamp", "order": "KT-48213", "priority": "high"}'
    assert request.answer() == line
    assert request.messages() == [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": "Hello!"},
        {"role": "assistant", "content": line},
    ]


def test_system_prompt_is_short_and_names_no_value() -> None:
    assert len(SYSTEM.split()) <= 20
    for value in (*QUEUES, *INTENTS, *PRIORITIES, "null"):
        assert not re.search(rf"\b{value}\b", SYSTEM)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"order": None},
        {"product": "hedge trimmer"},
        {"queue": "account", "intent": "close_account", "product": None, "order": None},
    ],
)
def test_valid_records(changes: dict[str, str | None]) -> None:
    assert is_valid_record(json.dumps(GOOD | changes))
    assert is_valid_record(f" {json.dumps(GOOD | changes)}\n")


@pytest.mark.parametrize(
    "changes",
    [
        {"queue": "shipping"},  # of another intent
        {"queue": "Billing"},
        {"queue": None},
        {"intent": "refunds"},
        {"intent": ["refund"]},
        {"intent": {"refund": 1}},
        {"product": None},  # only account intents have none
        {"product": "Desk lamp"},
        {"product": "desk"},
        {"product": "null"},
        {"queue": "account", "intent": "close_account"},  # with a product
        {"order": "KT-4821"},
        {"order": "KT-482133"},
        {"order": "kt-48213"},
        {"order": "KT-48213\n"},
        {"order": "KT48213"},
        {"order": "KT-\u0664\u0668\u0662\u0661\u0663"},
        {"order": 48213},
        {"order": ""},
        {"priority": "urgent"},
        {"priority": None},
        {"extra": "x"},
    ],
)
def test_near_misses_are_rejected(changes: dict[str, object]) -> None:
    assert not is_valid_record(json.dumps(GOOD | changes))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        "{}",
        "[" * 100_000,
        json.dumps([GOOD]),
        json.dumps(json.dumps(GOOD)),
        json.dumps(GOOD)[:-1],
        json.dumps(GOOD) + ".",
        "Here it is: " + json.dumps(GOOD),
        "```json\n" + json.dumps(GOOD) + "\n```",
        json.dumps(GOOD).replace('"', "'"),
        json.dumps(GOOD).replace('"high"}', '"high",}'),
        json.dumps(GOOD).replace('"priority"', '"priority": "high", "priority"'),
        json.dumps({key: GOOD[key] for key in KEYS if key != "order"}),
        json.dumps({key: GOOD[key] for key in reversed(KEYS)}),
    ],
)
def test_other_texts_are_rejected(text: str) -> None:
    assert not is_valid_record(text)
