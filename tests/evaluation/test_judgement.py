"""What the figures of an evaluation mean, in sentences."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest

from lamina.evaluation.judgement import explain, judge


@dataclass(frozen=True)
class Some:
    loss: float
    base_loss: float
    rows: int = 100
    general_loss: float | None = None
    base_general_loss: float | None = None
    is_likelihood: bool = True

    @property
    def perplexity(self) -> float | None:
        return math.exp(self.loss) if self.is_likelihood else None

    @property
    def base_perplexity(self) -> float | None:
        return math.exp(self.base_loss) if self.is_likelihood else None


BETTER, WORSE = {"f1": (0.1, 0.6)}, {"f1": (0.6, 0.1)}


@pytest.mark.parametrize(
    ("figures", "scores", "says"),
    [
        (Some(1.0, 3.0), BETTER, "learned the task"),
        (Some(1.0, 3.0), {}, "learned the task"),
        (Some(1.0, 3.0), WORSE, "Mixed"),
        (Some(2.9, 3.0), BETTER, "learned a little"),
        (Some(3.0, 3.0), {}, "changes nothing"),
        (Some(3.5, 3.0), BETTER, "worse than the base"),
        (Some(0.0, 0.0), {}, "changes nothing"),
        (Some(-2.0, -1.0), {}, "learned the task"),
    ],
)
def test_the_judgement(figures: Some, scores: dict[str, tuple[float, float]], says: str) -> None:
    assert says in judge(figures, scores)


def test_few_rows_are_few() -> None:
    assert "5 rows say little" in judge(Some(1.0, 3.0, rows=5), {})
    assert "1 row says little" in judge(Some(1.0, 3.0, rows=1), {})
    assert "little" not in judge(Some(1.0, 3.0, rows=30), {})


@pytest.mark.parametrize(("rise", "says"), [(-0.1, "none to speak of"), (0.1, "a little"), (0.6, "rose by 0.600")])
def test_forgetting(rise: float, says: str) -> None:
    lines = explain(Some(1.0, 3.0, general_loss=3.0 + rise, base_general_loss=3.0), {})
    assert says in lines[1] and len(lines) == 3
    assert ("forgot much" in lines[2]) == (rise > 0.3)
    assert len(explain(Some(1.0, 3.0), {})) == 2


def test_the_loss_is_explained_as_a_probability() -> None:
    assert "probability of 50%" in explain(Some(math.log(2), math.log(10)), {})[0]
    assert "10%" in explain(Some(math.log(2), math.log(10)), {})[0]
    assert "smaller is better" in explain(Some(1.0, 2.0, is_likelihood=False), {})[0]


def test_a_loss_that_compares_something_else_is_judged_by_that() -> None:
    meaning, said = explain(Some(0.02, 0.01, is_likelihood=False), {}, (0.4, 0.2))
    assert "says little" in meaning and "smaller is better" not in meaning
    assert "learned the task" in said
