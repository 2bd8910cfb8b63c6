"""How well `lamina data check` finds faults: known ones are planted in real rows, and precision and recall counted.

    python benchmarks/data_check.py GSM8K.jsonl [--rows 2000] [--seed 0] [--json]

GSM8K.jsonl: rows with `question` and `answer`, such as OpenAI's GSM8K. Near-duplicates (5% of the rows: a few words
replaced, case and punctuation changed, a sentence added), evaluation prompts that are trained on (2%: word for word,
and edited likewise), empty answers (1%), secrets (1%) and personal data (1%) are planted in distinct rows.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import string
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from lamina.chat.message import Message
from lamina.checks.examine import examine
from lamina.checks.findings import CheckReport
from lamina.checks.row import CheckedRow
from lamina.checks.settings import CheckSettings
from lamina.data.example import Example
from lamina.data.source import ReadRow

NEAR_SHARE, LEAK_SHARE, EMPTY_SHARE, SECRET_SHARE, PERSONAL_SHARE = 0.05, 0.02, 0.01, 0.01, 0.01

_SENTENCES = (
    "Think it through before you answer.",
    "Please show how you got there.",
    "Assume that nothing else changes in the meantime.",
    "Everybody involved agrees on these numbers.",
    "Give the result as a whole number.",
)
_WORDS = ("several", "green", "yesterday", "market", "carefully", "teacher", "usually", "boxes", "together", "morning")


@dataclass
class Row:
    """A question with its answer, and what was planted in it: a finding's code, or nothing."""

    question: str
    answer: str
    planted: str = ""


@dataclass
class Planted:
    """Rows with known faults."""

    train: list[Row]
    evaluation: list[Row]

    def rows(self) -> Iterator[CheckedRow]:
        """As the checks see them."""
        for side, rows in (("train", self.train), ("eval", self.evaluation)):
            for number, row in enumerate(rows, start=1):
                messages = (Message("user", row.question), Message("assistant", row.answer))
                read = ReadRow(
                    number,
                    line=number,
                    value={"question": row.question, "answer": row.answer},
                    example=Example(messages, number),
                    drop_reason="" if row.answer.strip() else "empty_answer",
                )
                yield CheckedRow(f"{side}.jsonl", side, read)


@dataclass
class Figures:
    """How well one kind of fault was found.

    Attributes:
        planted: How many there are.
        found: How many of them were found.
        false: How many rows were found that are none.
        missed: Rows, from 1, that were not found.
        wrong: Rows, from 1, that were found and are none.
    """

    planted: int
    found: int
    false: int
    missed: list[int] = field(default_factory=list)
    wrong: list[int] = field(default_factory=list)

    @property
    def precision(self) -> float:
        """The share of what was found that was planted."""
        return self.found / max(1, self.found + self.false)

    @property
    def recall(self) -> float:
        """The share of what was planted that was found."""
        return self.found / max(1, self.planted)


def load(path: Path) -> list[Row]:
    """The file's rows, each question once."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return list({row["question"]: Row(row["question"], row["answer"]) for row in rows}.values())


def plant(rows: list[Row], count: int, seed: int) -> Planted:
    """Takes `count` rows to train on and a tenth as many to evaluate on, and plants faults in them.

    Args:
        rows: Real rows, no two alike.
        count: Training rows before anything is added.
        seed: Decides which rows get which fault.
    """
    rng = random.Random(seed)
    chosen = rng.sample(rows, count + count // 10)
    train = [Row(row.question, row.answer) for row in chosen[:count]]
    evaluation = chosen[count:]
    spoilt = iter(rng.sample(range(count), count))
    for _ in range(round(EMPTY_SHARE * count)):
        row = train[next(spoilt)]
        row.answer, row.planted = rng.choice(("", " ", "\n")), "empty_answer"
    for share, code, make in (
        (SECRET_SHARE, "secret", some_secret),
        (PERSONAL_SHARE, "personal_data", some_personal_data),
    ):
        for number in range(round(share * count)):
            row = train[next(spoilt)]
            row.question, row.planted = f"{row.question} {make(number, rng)}", code
    added: list[tuple[float, Row]] = []
    edits: tuple[Callable[[str, random.Random], str], ...] = (replace_words, change_marks, add_sentence)
    for number in range(round(NEAR_SHARE * count)):
        place = next(spoilt)
        edit = edits[number % len(edits)]
        near = Row(edit(train[place].question, rng), edit(train[place].answer, rng), "near_duplicate")
        added.append((rng.uniform(place + 0.5, count), near))  # somewhere after the row that it repeats
    for number, leak in enumerate(rng.sample(evaluation, round(LEAK_SHARE * count))):
        edit = edits[number // 2 % len(edits)]
        if number % 2:
            row = Row(edit(leak.question, rng), leak.answer, "near_leak")
        else:
            row = Row(leak.question, leak.answer, "exact_leak")
        added.append((rng.uniform(0, count), row))
    placed = sorted([*enumerate(train), *added], key=lambda pair: pair[0])
    return Planted([row for _, row in placed], evaluation)


def replace_words(text: str, rng: random.Random) -> str:
    """One word in thirty replaced by another one, but at least one."""
    words = text.split(" ")
    for place in rng.sample(range(len(words)), max(1, len(words) // 30)):
        words[place] = rng.choice(_WORDS)
    return " ".join(words)


def change_marks(text: str, rng: random.Random) -> str:
    """Other case, other white space, and no commas and full stops."""
    text = text.upper() if rng.random() < 0.3 else text.lower()
    return re.sub(r"[,.;!?]+(?=\s|$)", "", text).replace(" ", "  ", 3)


def add_sentence(text: str, rng: random.Random) -> str:
    """A sentence before or after the text."""
    sentence = rng.choice(_SENTENCES)
    return f"{text} {sentence}" if rng.random() < 0.5 else f"{sentence} {text}"


def some_secret(number: int, rng: random.Random) -> str:
    """A made-up secret of one of the known shapes."""
    letters = string.ascii_letters + string.digits

    def some(count: int, of: str = letters) -> str:
        return "".join(rng.choices(of, k=count))

    kinds = (
        f"export AWS_ACCESS_KEY_ID=AKIA{some(16, string.ascii_uppercase + '234567')}",
        f"My token is ghp_{some(36)}.",
        f"OPENAI_API_KEY=sk-proj-1{some(47)}",
        f"key: sk-ant-api03-{some(40)}",
        f"login with hf_{some(34)}",
        f"xoxb-{some(12, string.digits)}-{some(24)}",
        f"https://maps.google.com/?key=AIza{some(35)}",
        f"stripe: sk_live_{some(24)}",
        f"Authorization: Bearer eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiIx{some(12)}.{some(43)}",
        f"-----BEGIN RSA PRIVATE KEY-----\n{some(64)}\n{some(64)}\n-----END RSA PRIVATE KEY-----",
        f'password = "{some(5)}7{some(4)}x!"',
    )
    return kinds[number % len(kinds)]


def some_personal_data(number: int, rng: random.Random) -> str:
    """Made-up personal data of one of the known shapes."""

    def digits(count: int) -> str:
        return "".join(rng.choices(string.digits, k=count))

    kinds = (
        f"Write to {rng.choice(_WORDS)}.{rng.choice(_WORDS)}{digits(2)}@mail-{rng.choice(_WORDS)}.net for more.",
        f"Call +44 20 7{digits(3)} {digits(4)} tomorrow.",
        f"Her number is ({rng.randint(201, 989)}) {rng.randint(556, 989)}-{digits(4)}.",
        f"The card is {_with_luhn('4' + digits(14))}.",
        "Pay to DE89 3704 0044 0532 0130 00, please.",
        f"His SSN is {rng.randint(100, 665)}-{rng.randint(10, 99)}-{rng.randint(1000, 9999)}.",
        f"It came from 81.{rng.randint(100, 250)}.{rng.randint(10, 250)}.{rng.randint(10, 250)} at night.",
    )
    return kinds[number % len(kinds)]


def _with_luhn(digits: str) -> str:
    total = sum(sum(divmod(int(digit) * (2 - place % 2), 10)) for place, digit in enumerate(reversed(digits)))
    return f"{digits}{-total % 10}"


def measure(planted: Planted) -> dict[str, Figures]:
    """Checks the rows and counts what was found, by the code of what was planted."""
    settings = CheckSettings(
        max_length=1024,
        overlong="drop",
        tokenizer=None,
        batch_size=4,
        packing=True,
        seed=0,
        progress=lambda rows: None,
        examples=len(planted.train) + len(planted.evaluation),
    )
    report = examine(planted.rows(), settings)
    codes = dict.fromkeys(row.planted for row in planted.train if row.planted)
    return {code: _figures(code, planted, report) for code in sorted(codes)}


def _figures(code: str, planted: Planted, report: CheckReport) -> Figures:
    truth = {number for number, row in enumerate(planted.train, start=1) if row.planted == code}
    finding = report.find(code)
    found = {offender.place.row for offender in finding.examples} if finding else set()
    return Figures(len(truth), len(truth & found), len(found - truth), sorted(truth - found), sorted(found - truth))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    figures = measure(plant(load(args.file), args.rows, args.seed))
    if args.json:
        print(json.dumps({c: asdict(f) | {"precision": f.precision, "recall": f.recall} for c, f in figures.items()}))
        return
    table = Table("fault", "planted", "found", "false", "precision", "recall")
    for code, f in figures.items():
        table.add_row(code, str(f.planted), str(f.found), str(f.false), f"{f.precision:.3f}", f"{f.recall:.3f}")
    Console().print(table)


if __name__ == "__main__":
    main()
