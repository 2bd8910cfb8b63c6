"""`data.max_length`: an error beyond the model's positions; the default follows the model and the rows."""

from __future__ import annotations

import pytest

from lamina.errors import ConfigError
from tests.support.datasets import OVERHEAD, Build, pair, report_of

SHORT = [pair(f"q{i}", "a") for i in range(10)]


def long(tokens: int, number: int = 0) -> dict[str, str]:
    prompt = f"{number:04}"
    return pair(prompt, "a" * (tokens - OVERHEAD - len(prompt)))


def test_more_than_the_positions_is_an_error_that_says_how_many_there_are(build: Build) -> None:
    with pytest.raises(
        ConfigError, match=r"data\.max_length: 65 is more than the model's 64 positions.*use 64 at most"
    ):
        build(SHORT, max_length=65, positions=64)
    assert build(SHORT, max_length=64, positions=64).max_length == 64
    assert build(SHORT, max_length=5000).max_length == 5000


@pytest.mark.parametrize(
    ("lengths", "positions", "expected"),
    [
        ([100], None, 1024),
        ([100], 2048, 1024),
        ([100], 256, 256),
        ([1024], None, 1024),
        ([1025], None, 1088),
        ([1500], 2048, 1536),
        ([1500], 1200, 1200),
        ([9000, 100], None, 4096),
    ],
)
def test_the_default_follows_model_and_rows(
    build: Build, lengths: list[int], positions: int | None, expected: int
) -> None:
    rows = [*SHORT, *(long(tokens, number) for number, tokens in enumerate(lengths))]
    dataset = build(rows, positions=positions)
    assert dataset.max_length == expected
    assert any(f"max_length is {expected}" in note for note in dataset.report.notes) is (expected != 1024)
    dropped = sum(tokens > expected for tokens in lengths)
    assert report_of(dataset).rows_dropped == dropped


def test_one_long_row_in_many_does_not_raise_it(build: Build) -> None:
    rows = [pair(f"q{i}", "a") for i in range(150)] + [long(3000)]
    dataset = build(rows)
    assert (dataset.max_length, report_of(dataset).rows_dropped) == (1024, 1)


def test_text_is_split_and_does_not_raise_it(build: Build) -> None:
    dataset = build([{"text": "a" * 3000}])
    assert (dataset.max_length, len(dataset.train)) == (1024, 3)
