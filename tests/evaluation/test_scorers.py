"""Scorers: what each says of a row, the options that they take, and what ends an evaluation."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest

from lamina import plugins
from lamina.errors import ConfigError, DataError
from lamina.evaluation.scorers import Case, Choice, Likelihood, build_scorer, find_scorers

PERSON = json.dumps({"name": "Ann", "age": 31, "address": {"city": "Rome", "tags": ["a", "b"]}})


def of(given: Any, answer: str, expected: str, **facts: Any) -> float:
    return build_scorer(given).score(Case(answer, expected, **facts))


@pytest.mark.parametrize(
    ("given", "answer", "expected", "value"),
    [
        ("exact_match", " Paris\n", "Paris", 1.0),
        ("exact_match", "paris", "Paris", 0.0),
        ("normalized_match", "PARIS!", "paris", 1.0),
        ("normalized_match", "\uff30aris", "paris", 1.0),
        ("normalized_match", "Paris, France", "Paris", 0.0),
        ("contains", "It is PARIS, of course.", "paris", 1.0),
        ({"type": "contains", "ignore_case": False}, "It is PARIS.", "Paris", 0.0),
        ({"type": "contains", "any_of": ["sorry", "cannot"]}, "I cannot do that.", "whatever", 1.0),
        ({"type": "regex", "pattern": r"answer is (\w+)"}, "The answer is Paris, I think.", "Paris", 1.0),
        ({"type": "regex", "pattern": r"\d+", "take": "last"}, "3 or 4", "4", 1.0),
        ({"type": "regex", "pattern": r"\d+"}, "none", "4", 0.0),
        ({"type": "regex", "pattern": r"(\d+)", "expected": "extract"}, "x 4 y", "so 4.", 1.0),
        ({"type": "regex", "pattern": r"label: (\w+)", "ignore_case": True}, "Label: SPAM", "spam", 1.0),
        ("number", "3 * 4 = 12. The answer is 1,200.50", "#### 1200.5", 1.0),
        ("number", "12 and 13", "12", 0.0),
        ({"type": "number", "take": "first"}, "12 and 13", "12", 1.0),
        ({"type": "number", "relative": 0.01}, "about 101.5", "100", 0.0),
        ({"type": "number", "relative": 0.01}, "about 100.9", "100", 1.0),
        ("number", "none", "12", 0.0),
        ("number", "\u22127 degrees", "-7", 1.0),
        ("number", "5-7", "7", 1.0),
        ("token_f1", "the cat sat", "a cat sat down", 0.8),
        ("token_f1", "", "yes", 0.0),
        ("token_f1", "the", "a", 1.0),
        ("json_valid", "[1, 2]", "", 1.0),
        ("json_valid", "[1, 2", "", 0.0),
        ("json_valid", "NaN", "", 0.0),
        ("json_valid", "```json\n{}\n```", "", 0.0),
        ({"type": "json_valid", "fenced": True}, "```json\n{}\n```", "", 1.0),
        ({"type": "json_valid", "schema": {"type": "object", "required": ["a"]}}, '{"a": 1}', "", 1.0),
        ({"type": "json_valid", "schema": {"type": "object", "required": ["a"]}}, '{"b": 1}', "", 0.0),
        ("json_valid", "[" * 100_000, "", 0.0),
        ("json_fields", PERSON, PERSON, 1.0),
        ("json_fields", '{"name": "Ann", "age": 31.0}', PERSON, 0.4),
        ({"type": "json_fields", "fields": ["address"]}, PERSON, PERSON, 1.0),
        ({"type": "json_fields", "fields": ["age"]}, '{"age": true}', '{"age": 1}', 0.0),
        ({"type": "json_fields", "extra": True}, '{"a": 1, "b": 2}', '{"a": 1}', 0.5),
        ({"type": "json_fields", "ignore_case": True}, '{"a": "X "}', '{"a": "x"}', 1.0),
        ("json_fields", "no JSON", PERSON, 0.0),
        ("length", "one two  three", "", 3.0),
        ({"type": "length", "unit": "characters"}, "one", "", 3.0),
        ("bleu", "the cat sat on the mat", "the cat sat on the mat", 100.0),
        ("bleu", "", "the cat", 0.0),
        ("chrf", "the cat", "the cat", 100.0),
        ("rouge", "the cat sat", "the cat sat", 1.0),
        ({"type": "rouge", "variant": "rouge2"}, "a b c", "a b d", 0.5),
    ],
)
def test_what_each_says(given: Any, answer: str, expected: str, value: float) -> None:
    assert of(given, answer, expected) == pytest.approx(value, abs=1e-9)


def test_the_packages_scores_are_theirs() -> None:
    import sacrebleu

    answer, expected = "a cat sat on a mat today", "the cat sat on the mat"
    assert of("bleu", answer, expected) == sacrebleu.sentence_bleu(answer, [expected]).score
    assert of("chrf", answer, expected) == sacrebleu.sentence_chrf(answer, [expected]).score
    assert of({"type": "chrf", "word_order": 2}, answer, expected) != of("chrf", answer, expected)


@pytest.mark.parametrize("name", sorted(plugins.members("scorers")))
def test_each_keeps_to_its_range_whatever_it_gets(name: str) -> None:
    """Empty and odd answers are scored; a reference that a scorer cannot take is a clear error."""
    scorer = build_scorer({"type": name, **({"pattern": "a"} if name == "regex" else {})})
    references = {"number": "7", "json_fields": '{"a": 1}', "multiple_choice": "b"}
    found = (Likelihood(-3.5, False, 2), tuple(Choice(text, Likelihood(-1.0, True, 1)) for text in "ab"))
    for answer in ("", " ", "a", "7", "é\u0000\U0001f600", "x " * 3000, "{", "9" * 400):
        case = Case(answer, references.get(name, "a"), number=1, likelihood=found[0], choices=found[1])
        value = scorer.score(case)
        assert math.isfinite(value)
        assert (scorer.low is None or value >= scorer.low) and (scorer.high is None or value <= scorer.high)


def test_perplexity_is_of_the_reference() -> None:
    case = Case(expected="x", likelihood=Likelihood(-6.0, False, 3))
    assert build_scorer("perplexity").score(case) == pytest.approx(math.exp(2))
    assert build_scorer({"type": "perplexity", "log": True}).score(case) == 2.0
    assert build_scorer("perplexity").larger_is_better is False and build_scorer("perplexity").needs == "likelihood"


def choices(*pairs: tuple[str, float]) -> tuple[Choice, ...]:
    return tuple(Choice(text, Likelihood(logprob, False, 1)) for text, logprob in pairs)


def test_multiple_choice_is_normalized_as_lm_eval_does() -> None:
    offered = choices(("no", -2.0), ("certainly", -3.0), ("größte", -2.5))
    right = {"none": "no", "characters": "certainly", "bytes": "2"}
    for normalize, expected in right.items():
        if normalize == "bytes":
            offered = choices(("no", -2.0), ("ÄÄÄÄÄ", -3.0), ("certain", -3.0))
            expected = "1"  # 10 bytes, 5 characters
        scorer = build_scorer({"type": "multiple_choice", "normalize": normalize})
        assert scorer.score(Case(expected=expected, choices=offered)) == 1.0
        assert scorer.score(Case(expected="0" if normalize != "none" else "1", choices=offered)) == 0.0
    assert build_scorer("multiple_choice").score(Case(expected="a", choices=choices(("a", -1.0), ("b", -1.0)))) == 1.0
    # A text that is a choice is that choice, also where it is a number.
    assert build_scorer("multiple_choice").score(Case(expected="1", choices=choices(("1", -1.0), ("2", -2.0)))) == 1.0
    with pytest.raises(DataError, match=r"row 4: scorer multiple_choice: the reference 'c' is none of the choices"):
        build_scorer("multiple_choice").score(Case(expected="c", number=4, choices=choices(("a", -1.0))))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("exact_mach", "'exact_mach' is not one of.*Did you mean 'exact_match'"),
        ({"type": "contains", "ignore_cases": True}, "ignore_cases: contains has no such option.*ignore_case"),
        ({"type": "exact_match", "x": 1}, "exact_match has no such option; it has none"),
        ({"type": "regex"}, "pattern: is required by regex"),
        ({"type": "regex", "pattern": "("}, r"pattern: '\(' is no regular expression"),
        ({"type": "rouge", "variant": "rouge9"}, "variant: 'rouge9' is not allowed"),
        ({"type": "number", "absolute": -1}, "absolute: -1 is not allowed"),
        ({"type": "json_valid", "schema": {"type": "objekt"}}, "schema: is no JSON schema"),
        ({"type": "json_valid", "schema": {"$ref": "https://example.org/x"}}, "schema: is no JSON schema"),
        ({"type": "json_valid", "schema": 5}, r"^scorers\[0\]\.schema: 5 is not allowed"),
        ({"type": "json_valid", "schema": "nowhere.json"}, "nowhere.json cannot be read"),
        ({"pattern": "x"}, "type: None is not the type of a scorer"),
        ({"type": "exact_match", "name": ""}, "name: '' is not the name"),
        ("nowhere.py:score", "nowhere.py cannot be read"),
    ],
)
def test_a_wrong_scorer_is_told(given: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build_scorer(given, "scorers[0]")


def test_names_are_told_apart() -> None:
    two = [{"type": "rouge", "variant": "rouge1"}, {"type": "rouge", "variant": "rouge2"}]
    with pytest.raises(ConfigError, match="names two scorers"):
        find_scorers(two)
    found = find_scorers([two[0], {**two[1], "name": "rouge2"}, two[0]])
    assert [scorer.name for scorer in found] == ["rouge", "rouge2"]
    assert found[0].digest != found[1].digest


def test_a_python_function(tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    file.write_text(
        "def first(answer, expected):\n    '''First letters.'''\n    return answer[:1] == expected[:1]\n"
        "def column(answer, expected, row):\n    return row['x']\n"
        "def broken(answer, expected):\n    return 1 / 0\n"
        "def nan(answer, expected):\n    return float('nan')\n"
        "def words(answer, expected):\n    return 'many'\n"
        "def alone(answer):\n    return 1.0\n"
        "other = 3\n"
    )
    first = build_scorer("own.py:first", folder=tmp_path)
    assert (first.name, first.title, first.score(Case("ab", "ac"))) == ("first", "First letters", 1.0)
    assert build_scorer(f"{file}:column").score(Case(row={"x": 0.25})) == 0.25
    for name, words in (("broken", "raised ZeroDivisionError"), ("nan", "gave nan"), ("words", "gave 'many'")):
        with pytest.raises(DataError, match=f"row 7: scorer {name} {words}"):
            build_scorer(f"{file}:{name}").score(Case(number=7))
    for name, words in (("alone", r"takes \(answer\)"), ("other", "no function"), ("missing", "no function")):
        with pytest.raises(ConfigError, match=words):
            build_scorer(f"{file}:{name}")
    with pytest.raises(ConfigError, match="takes no options"):
        build_scorer({"type": f"{file}:first", "x": 1})
    file.write_text(file.read_text().replace("[:1]", "[:2]"))
    assert build_scorer(f"{file}:first").digest != first.digest
    file.write_text("import nothing_of_that_name\n")
    with pytest.raises(ConfigError, match="cannot be run"):
        build_scorer(f"{file}:first")


def test_none_is_taken_for_an_installed_scorer_or_a_judge(tmp_path: Path) -> None:
    """A gate names a metric by its name alone."""
    (tmp_path / "own.py").write_text("def exact_match(answer, expected):\n    return 1.0\njudge = exact_match\n")

    def exact_match(answer: str, expected: str) -> float:
        return 1.0

    for name, theirs in (("exact_match", "an installed scorer"), ("judge", "a judge's grades")):
        given: list[Any] = [f"own.py:{name}", {"type": f"own.py:{name}"}, {"type": "contains", "name": name}]
        for each in given:
            with pytest.raises(ConfigError, match=rf"^s: '{name}' is the name of {theirs}.*type: .*name: my_{name}"):
                build_scorer(each, "s", tmp_path)
    with pytest.raises(ConfigError, match=r"'exact_match' is the name of an installed scorer.*rename the function"):
        build_scorer(exact_match)
    own = build_scorer({"type": "own.py:exact_match", "name": "my_exact_match"}, folder=tmp_path)
    assert (own.name, own.kind) == ("my_exact_match", "own.py:exact_match")
    assert build_scorer({"type": "exact_match", "name": "exact_match"}).name == "exact_match"


def test_a_number_out_of_range_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    from lamina.evaluation.scorers import exact_match

    monkeypatch.setattr(exact_match, "score", lambda answer, expected: 2.0)
    with pytest.raises(DataError, match=r"exact_match gave 2\.0, which is not a number from 0 to 1"):
        of("exact_match", "a", "a")


@pytest.mark.parametrize(
    ("package", "given"),
    [
        ("sacrebleu", "bleu"),
        ("sacrebleu", "chrf"),
        ("rouge_score", "rouge"),
        ("jsonschema_rs", {"type": "json_valid", "schema": {}}),
    ],
)
def test_a_missing_package_names_the_extra(package: str, given: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=r"not installed\. Fix: pip install 'lamina\[metrics\]'"):
        build_scorer(given)
