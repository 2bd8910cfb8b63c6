"""A model as judge: which of two answers is better, or how good one is by a rubric.

`ask` is what judges, `pairwise` and `rubric` are what it is asked, `length` is the win rate without the pull of longer
answers. A judge writes one of the letters it is offered. A generator of lamina's is kept to them by a grammar, so that
none of its verdicts is lost; a model behind a URL is asked for the letter alone, and what is none is counted. Comparing
the log-probabilities of the letters would decide each row by some small preference among them, ties could not be said,
and no URL gives them for sure.
"""

from __future__ import annotations

from lamina.evaluation.judge.ask import Judge, generator_judge, remote_judge
from lamina.evaluation.judge.pairwise import Pairing, PairwiseResult, judge_pairs
from lamina.evaluation.judge.rubric import RubricResult, judge_rubric

__all__ = [
    "Judge",
    "Pairing",
    "PairwiseResult",
    "RubricResult",
    "generator_judge",
    "judge_pairs",
    "judge_rubric",
    "remote_judge",
]
