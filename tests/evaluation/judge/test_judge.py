"""Judges of known character: what is made of their verdicts, and what they are asked twice or not at all."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lamina.chat.message import Message
from lamina.chat.template import build_template
from lamina.engine.local import LocalGenerator
from lamina.errors import ConfigError, DataError, LaminaError
from lamina.evaluation.judge import Judge, Pairing, generator_judge, judge_pairs, judge_rubric
from lamina.evaluation.judge.ask import Keep, ask_all, read_letter
from lamina.evaluation.judge.length import length_controlled
from lamina.evaluation.judge.pairwise import filled
from tests.support.models_zoo import build_model, build_tokenizer


def judge_of(verdict: Callable[[str, str], str], asked: list[str] | None = None) -> Judge:
    """A judge that decides from both answers, as they are shown."""

    def ask(conversations: Sequence[Sequence[Message]], letters: Sequence[str], keep: Keep) -> list[str]:
        said = []
        for (turn,) in conversations:
            first = turn.content.partition("[Answer A]\n")[2].partition("\n\n[Answer B]")[0]
            second = turn.content.partition("[Answer B]\n")[2].partition("\n\nWhich")[0]
            said.append(verdict(first, second))
            if asked is not None:
                asked.append(turn.content)
        return said

    return Judge("a test", "sha256:0", ask)


def pairs(count: int = 60, seed: int = 0) -> list[Pairing]:
    rng = random.Random(seed)
    word = lambda: "".join(rng.choice("abcdefg ") for _ in range(rng.randrange(3, 40)))  # noqa: E731
    return [Pairing(f"request {n}", f"{word()} {n % 9}", f"{word()} {n % 4}") for n in range(count)]


def more_digits(first: str, second: str) -> str:
    one, other = first[-1:], second[-1:]
    return "A" if one > other else "B" if one < other else "C"


def test_a_judge_that_always_prefers_the_first_answer_decides_nothing() -> None:
    found = judge_pairs(judge_of(lambda first, second: "A"), pairs())
    assert set(found.scores) == {0.5} and found.win_rate.value == 0.5
    assert found.comparison.verdict == "not_enough_rows" and found.comparison.p == 1.0
    assert found.bias == "prefers_first" and found.first is not None and found.first.value == 1.0
    assert found.consistent.value == 0.0 and found.length_controlled is None
    assert any("prefers the first answer" in note for note in found.notes)
    assert any("decides nothing" in note for note in found.notes)
    second = judge_pairs(judge_of(lambda first, second: "B"), pairs())
    assert second.bias == "prefers_second" and second.comparison.verdict == "not_enough_rows"


def test_swapped_labels_change_nothing() -> None:
    given = pairs()
    swapped = [Pairing(pair.prompt, pair.b, pair.a) for pair in given]
    for verdict in (more_digits, lambda first, second: "A" if len(first) % 3 else more_digits(first, second)):
        asked: list[str] = []
        one = judge_pairs(judge_of(verdict, asked), given, again=0)
        count = len(asked)
        other = judge_pairs(judge_of(verdict, asked), swapped, again=0)
        assert set(asked[:count]) == set(asked[count:])
        assert other.scores == tuple(1 - score for score in one.scores)
        assert (one.comparison.wins, one.comparison.losses) == (other.comparison.losses, other.comparison.wins)
        assert one.comparison.p == other.comparison.p and one.digest == other.digest
        assert one.first == other.first and one.consistent == other.consistent and one.bias == other.bias
        assert one.win_rate.value == pytest.approx(1 - other.win_rate.value)
        if one.length_controlled and other.length_controlled:
            assert one.length_controlled.value == pytest.approx(1 - other.length_controlled.value)
            assert one.length_controlled.slope == pytest.approx(other.length_controlled.slope)


def test_a_fair_judge_decides() -> None:
    found = judge_pairs(judge_of(more_digits), pairs())
    wanted = [more_digits(pair.a, pair.b) for pair in pairs()]
    assert [{"A": 1.0, "B": 0.0, "C": 0.5}[letter] for letter in wanted] == list(found.scores)
    assert found.comparison.verdict == "better" and found.bias == "none" and found.consistent.value == 1.0
    assert found.self_agreement is not None and found.self_agreement.value == 1.0
    assert found.unparsable == 0 and found.notes == ()
    json.dumps(found.as_json())


def test_coins_win_nothing_and_do_not_agree_with_themselves() -> None:
    rng = random.Random(1)
    found = judge_pairs(judge_of(lambda first, second: rng.choice("AB")), pairs(200), again=200)
    assert found.comparison.verdict == "not_enough_rows" and found.bias == "none"
    assert found.self_agreement is not None and 0.4 < found.self_agreement.value < 0.6
    assert 0.4 < found.consistent.value < 0.6


def test_what_cannot_be_read_is_counted_and_a_tie() -> None:
    found = judge_pairs(judge_of(lambda first, second: "Well, both." if first < second else "A"), pairs(20))
    assert found.unparsable == 20 and set(found.scores) == {0.5}
    assert any("20 of 40 verdicts could not be read" in note for note in found.notes)


def test_a_judge_of_length_is_seen_through() -> None:
    """Longer answers win; a's are longer most of the time, and no better."""
    rng = np.random.default_rng(0)
    given = [Pairing(f"p{n}", "x" * int(60 + rng.integers(-30, 60)), "y" * 60) for n in range(300)]

    def longer(first: str, second: str) -> str:
        seed = int(hashlib.sha256(min(first, second).encode() + max(first, second).encode()).hexdigest(), 16)
        fair = (seed % 100) / 100
        one = first if len(first) >= len(second) else second
        pick = one if fair < 0.8 else (second if one is first else first)
        return "A" if pick is first else "B"

    found = judge_pairs(judge_of(longer), given, again=0)
    controlled = found.length_controlled
    assert found.win_rate.value > 0.58 and controlled is not None and controlled.slope > 0.5
    assert controlled.low < 0.5 < controlled.high and abs(controlled.value - 0.5) < found.win_rate.value - 0.5


def test_length_control_stays_finite() -> None:
    names = list(range(40))
    perfect = length_controlled([1.0] * 20 + [0.0] * 20, [5.0] * 20 + [-5.0] * 20, names)
    assert perfect is not None and 0.0 < perfect.low < perfect.value < perfect.high < 1.0
    always = length_controlled([1.0] * 40, list(range(-20, 20)), names)
    assert always is not None and 0.8 < always.value <= always.high <= 1.0
    assert length_controlled([1.0] * 40, [0.0] * 40, names) is None
    assert length_controlled([0.5] * 40, list(range(40)), names) is None


def test_verdicts_are_kept_and_asked_once(tmp_path: Path) -> None:
    asked: list[str] = []
    judge = judge_of(more_digits, asked)
    one = judge_pairs(judge, pairs(10), cache=tmp_path, again=2)
    assert len(asked) == len(set(asked)) + 4 == 24
    assert judge_pairs(judge, pairs(10), cache=tmp_path, again=2) == one and len(asked) == 24
    judge_pairs(replace(judge, digest="sha256:1"), pairs(10), cache=tmp_path, again=0)
    judge_pairs(replace(judge, settings={"temperature": 1}), pairs(10), cache=tmp_path, again=0)
    judge_pairs(judge, pairs(10), cache=tmp_path, prompt="other {first} {second}", again=0)
    assert len(asked) == 24 + 60
    for damaged in tmp_path.rglob("*.json"):
        damaged.write_text("{")
    assert judge_pairs(judge, pairs(10), cache=tmp_path, again=2) == one and len(asked) == 84 + 24
    assert judge_pairs(judge, pairs(10)).digest != judge_pairs(judge, pairs(10), prompt="{first}{second}").digest


def test_what_was_answered_before_a_failure_stays(tmp_path: Path) -> None:
    asked: list[str] = []

    def ask(conversations: Sequence[Sequence[Message]], letters: Sequence[str], keep: Keep) -> list[str]:
        for number, (turn,) in enumerate(conversations):
            if len(asked) == 7:
                raise LaminaError("it is down")
            asked.append(turn.content)
            keep(number, "A")
        return ["A"] * len(conversations)

    with pytest.raises(LaminaError, match="it is down"):
        judge_pairs(Judge("x", "d", ask), pairs(10), cache=tmp_path, again=0)
    assert len(list(tmp_path.rglob("*.json"))) == 7
    again: list[str] = []
    judge_pairs(replace(judge_of(lambda first, second: "A", again), digest="d"), pairs(10), cache=tmp_path, again=0)
    assert len(again) == 13


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("A", "A"),
        (" b. ", None),
        ("**B**", "B"),
        ("[[C]]", "C"),
        ("A is worse, so [[B]]", "B"),
        ("[[A]] or [[B]]", None),
        ("The verdict is: C", "C"),
        ("Answer: B.", "B"),
        ("Answer A is better", None),
        ("", None),
        ("ABC", None),
    ],
)
def test_letters_are_read_or_not(text: str, letter: str | None) -> None:
    assert read_letter(text, "ABC") == letter


def test_braces_in_answers_stay() -> None:
    assert filled("{a} and {b}", a="{b}", b="{a} \0b\0") == "{b} and {a} \0b\0"
    seen: list[str] = []
    judge_pairs(judge_of(lambda first, second: "C", seen), [Pairing("{first}", "{second}", "{prompt}", "{x}")], again=0)
    assert all("[Request]\n{first}\n" in text and "\n{x}\n" in text for text in seen)


def test_a_rubric(tmp_path: Path) -> None:
    def ask(conversations: Sequence[Sequence[Message]], letters: Sequence[str], keep: Keep) -> list[str]:
        assert tuple(letters) == ("1", "2", "3", "4", "5")
        return ["5" if "good" in turn.content.partition("[Answer]")[2] else "none" for (turn,) in conversations]

    judge = Judge("x", "d", ask)
    found = judge_rubric(judge, [("q", "good"), ("r", "bad"), ("s", "good")], "be good", cache=tmp_path)
    assert found.scores == (5.0, None, 5.0) and found.unparsable == 1
    assert found.mean is not None and found.mean.value == 5.0
    assert judge_rubric(judge, [("q", "good")], "be kind").digest != found.digest
    with pytest.raises(ConfigError, match="rubric: is empty"):
        judge_rubric(judge, [("q", "a")], " ")
    with pytest.raises(DataError, match="no answers"):
        judge_rubric(judge, [], "x")
    with pytest.raises(DataError, match="no answers"):
        judge_pairs(judge, [])


def test_a_generator_is_kept_to_the_letters() -> None:
    """A random model, which would write anything, says one of the letters each time."""
    pytest.importorskip("llguidance")
    tokenizer = build_tokenizer()
    generator = LocalGenerator(build_model("llama", vocab_size=len(tokenizer)), build_template(tokenizer))
    judge = generator_judge(generator, "tiny", "sha256:tiny")
    found = judge_pairs(judge, pairs(4), again=2)
    assert found.unparsable == 0 and found.self_agreement is not None and found.self_agreement.value == 1.0
    letters = ask_all(judge, ["one", "two", "one"], ("1", "2"), None)
    assert set(letters) <= {"1", "2"} and letters[0] == letters[2]
