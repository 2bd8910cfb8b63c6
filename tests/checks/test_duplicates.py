"""Rows that repeat others: exact and near-duplicates, leaks into the evaluation data, and the signatures."""

from __future__ import annotations

import numpy as np
import pytest
from datasketch import MinHash

from lamina.chat.message import Message
from lamina.checks.findings import Severity
from lamina.checks.minhash import COMMON_SHARE, LEARN_AT_LEAST, Signatures, normal, shingles, similarity
from lamina.data.example import Kind
from tests.support.checks import chat, check, found, row, text

PASSAGE = (
    "The lighthouse on the northern cape was built in 1871 by a company of masons from the mainland, who carried the "
    "granite up the cliff by hand. Its lamp burnt whale oil at first, then paraffin, and since 1934 electric light."
)
QUESTION = "Which material did the masons carry up the cliff, and what did the lamp of the lighthouse burn at first?"
ANSWER = "They carried granite up the cliff by hand, and in the beginning the lamp burnt whale oil."


def other(number: int) -> str:
    """Words that occur in no other text."""
    letters = np.random.default_rng(number).choice(list("abcdefghijklmnopqrstuvwxyz"), (30, 7))
    return " ".join("".join(word) for word in letters)


def estimate(left: str, right: str) -> float:
    signatures = Signatures(prompts=False)
    signatures.add(left, "")
    signatures.add(right, "")
    signatures.finish()
    return float(similarity(signatures.rows[:1], signatures.rows[1:])[0])


def true_likeness(left: str, right: str) -> float:
    sets = [{said[at : at + 5] for at in range(len(said) - 4)} for said in (left, right)]
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def test_the_signature_is_datasketchs() -> None:
    signatures = Signatures(prompts=True)
    signatures.add(QUESTION, ANSWER)
    signatures.finish()
    reference = MinHash(128, hashfunc=int)
    reference.update_batch(shingles(normal(QUESTION)))
    assert (signatures.prompts[0] == reference.hashvalues.astype(np.uint8)).all()
    reference.update_batch(shingles(normal(ANSWER)))
    assert (signatures.rows[0] == reference.hashvalues.astype(np.uint8)).all()


@pytest.mark.parametrize("changed", ["granite", "company", "PASSAGE"])
def test_likeness_is_estimated(changed: str) -> None:
    words = " ".join(
        f"{PASSAGE} {QUESTION} {ANSWER}".lower().replace(",", "").replace(".", "").replace("?", "").split()
    )
    edited = words.replace(changed, "something else") if changed != "PASSAGE" else words[len(PASSAGE) :]
    assert estimate(words, edited) == pytest.approx(true_likeness(words, edited), abs=0.13)


def test_case_punctuation_and_white_space_do_not_count() -> None:
    assert estimate(PASSAGE, PASSAGE.upper().replace(",", " -").replace(" ", "\n ")) == 1.0
    assert normal("Ça va?  Très-bien!").tolist() == [ord(letter) for letter in "ça va très bien "]
    assert normal("ok, go").tolist() == [ord(letter) for letter in "ok go"]


def test_texts_without_words_are_like_nothing() -> None:
    assert estimate("", "") < 1 or not any(normal(""))
    report = check([row("?!", "..."), row("!?", "---"), row("a", "b"), row("c", "b")])
    assert report.find("near_duplicate") is None


def test_exact_duplicates() -> None:
    report = check([row("a b", "c"), row("x", "c"), row(" a  b\n", "c"), row("a b", "d"), row("a b", "c")])
    finding = report.find("exact_duplicate")
    assert finding and finding.severity is Severity.WARNING and found(report, "exact_duplicate") == [3, 5]
    assert [offender.detail for offender in finding.examples] == ["same as train.jsonl:1"] * 2


def test_rows_that_differ_in_role_label_or_side_are_no_duplicates() -> None:
    def feedback(label: bool):
        return chat(
            (Message("user", "a"), Message("assistant", "b")),
            example={"kind": Kind.UNPAIRED_PREFERENCE, "label": label},
        )

    assert check([feedback(True), feedback(False)]).find("exact_duplicate") is None
    assert check([row("a", "b"), row("a", "b", side="eval")]).find("exact_duplicate") is None
    swapped = chat((Message("system", "a"), Message("user", "b"), Message("assistant", "c")))
    assert check([swapped, chat((Message("user", "a b"), Message("assistant", "c")))]).find("exact_duplicate") is None


def test_near_duplicates() -> None:
    edited = QUESTION.replace("material", "stuff").upper()
    rows = [row(other(1), other(2)), row(f"{PASSAGE} {QUESTION}", ANSWER), row(f"{PASSAGE} {edited}", f"{ANSWER} Yes.")]
    report = check(rows)
    assert found(report, "near_duplicate") == [3] and report.find("exact_duplicate") is None
    assert report.find("near_duplicate").examples[0].detail == "nearly the same as train.jsonl:2"


def test_texts_that_share_a_half_are_no_near_duplicates() -> None:
    rows = [row(f"{PASSAGE} {other(n)[: len(PASSAGE)]}", ANSWER) for n in range(40)]
    assert check(rows).find("near_duplicate") is None


def test_another_question_on_the_same_passage_is_no_near_duplicate() -> None:
    other_answer = "The tower has been lit by electricity since the year 1934."
    rows = [row(f"{PASSAGE} {QUESTION}", ANSWER), row(f"{PASSAGE} Since when is the light electric?", other_answer)]
    assert check(rows).find("near_duplicate") is None
    labels = [row(f"{PASSAGE} {QUESTION}", "Granite."), row(f"{PASSAGE} {QUESTION} Think.", "Paraffin.")]
    assert check(labels).find("near_duplicate") is None
    labels = [row(f"{PASSAGE} {QUESTION}", "Granite."), row(f"{PASSAGE} {QUESTION} Think.", "granite")]
    assert found(check(labels), "near_duplicate") == [2]


def test_an_instruction_that_all_rows_share_does_not_make_them_alike() -> None:
    few = [row(f"{PASSAGE} {PASSAGE.upper()} {other(n)[:40]}", "Yes.") for n in range(LEARN_AT_LEAST // 4)]
    assert len(found(check(few, examples=1000), "near_duplicate")) > 0  # too few rows to determine what is common
    many = [row(f"{PASSAGE} {PASSAGE.upper()} {other(n)[:40]}", "Yes.") for n in range(LEARN_AT_LEAST)]
    assert check(many).find("near_duplicate") is None
    system = [
        chat((Message("system", PASSAGE), Message("user", other(n)[:40]), Message("assistant", "Yes.")))
        for n in range(20)
    ]
    assert check(system).find("near_duplicate") is None


def test_a_row_that_is_repeated_often_is_not_taken_for_an_instruction() -> None:
    rows = [row(other(n), other(1000 + n)) for n in range(LEARN_AT_LEAST)]
    for n in range(round(COMMON_SHARE * LEARN_AT_LEAST) - 10):
        rows[3 * n] = row(f"{PASSAGE} {other(n)[:10]}", ANSWER)
    report = check(rows, examples=1000)
    assert found(report, "near_duplicate") == [3 * n + 1 for n in range(1, round(COMMON_SHARE * LEARN_AT_LEAST) - 10)]


def test_near_duplicates_of_near_duplicates_point_at_a_row_that_stays() -> None:
    words = other(5).split()
    drifting = [" ".join([*other(50 + step).split()[: 2 * step], *words[2 * step :]]) for step in range(6)]
    report = check([row(item, "y") for item in drifting], examples=100)
    removed = set(found(report, "near_duplicate"))
    assert removed and 1 not in removed
    for offender in report.find("near_duplicate").examples:
        assert int(offender.detail.rsplit(":", 1)[1]) not in removed


def test_plain_text_duplicates() -> None:
    report = check([text(PASSAGE), text(f" {PASSAGE}"), text(f"{PASSAGE} Indeed."), text(other(1))])
    assert found(report, "exact_duplicate") == [2] and found(report, "near_duplicate") == [3]


def test_exact_leaks() -> None:
    report = check([row("a b", "c"), row("x", "y"), row("a  b", "d"), row("a b", "e", side="eval")])
    finding = report.find("exact_leak")
    assert finding and finding.severity is Severity.WARNING and found(report, "exact_leak") == [1, 3]
    assert finding.examples[0].detail == "evaluated in eval.jsonl:1" and finding.share == pytest.approx(2 / 3)
    assert report.find("near_leak") is None


def test_near_leaks() -> None:
    train = [row(other(n), "y") for n in range(20)] + [row(f"{PASSAGE} {QUESTION}", "Granite.")]
    evaluation = [row(other(100), "z", side="eval"), row(f"{PASSAGE} {QUESTION} Really?", "Oil.", side="eval")]
    report = check([*train, *evaluation])
    assert found(report, "near_leak") == [21] and report.find("exact_leak") is None
    assert report.find("near_leak").examples[0].detail == "evaluated in eval.jsonl:2"
    assert check(train + evaluation[:1]).find("near_leak") is None


def test_without_an_evaluation_side_prompts_are_not_signed() -> None:
    report = check([row(PASSAGE, "a"), row(PASSAGE, "b")], has_eval=False)
    assert report.find("exact_leak") is None and report.ledger.signatures.prompts.shape == (0, 128)


def test_rows_that_training_leaves_out_for_emptiness_are_no_duplicates() -> None:
    empty = row(PASSAGE, "", drop_reason="empty_answer")
    report = check([empty, empty, row(other(1), "y", side="eval")])
    assert report.find("exact_duplicate") is None and report.find("near_duplicate") is None


def test_a_row_costs_a_few_hundred_bytes() -> None:
    ledger = check([row(other(n), other(1000 + n)) for n in range(50)]).ledger
    arrays = [value for value in vars(ledger).values() if hasattr(value, "itemsize")]
    held = sum(len(item) * item.itemsize for item in arrays) + len(ledger._excerpts)
    signed = ledger.signatures
    held += signed.rows.nbytes + signed.prompts.nbytes + signed.answers.nbytes
    assert len(arrays) >= 7 and held <= 410 * 50
