"""What the figures of an evaluation mean, in sentences."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Protocol

# Fewer rows than this say little.
FEW_ROWS = 30
# A change of the loss by less than this share is none.
_SAME = 0.01
# How much the loss on general text may rise, in nats a token, before it counts.
_FORGOT_A_LITTLE, _FORGOT = 0.05, 0.3
# A loss that fell by this share is a clear gain.
_CLEAR = 0.1


class Figures(Protocol):
    """The figures of an evaluation that are judged."""

    @property
    def loss(self) -> float: ...
    @property
    def base_loss(self) -> float: ...
    @property
    def perplexity(self) -> float | None: ...
    @property
    def base_perplexity(self) -> float | None: ...
    @property
    def general_loss(self) -> float | None: ...
    @property
    def base_general_loss(self) -> float | None: ...
    @property
    def rows(self) -> int: ...


def explain(
    figures: Figures, scores: Mapping[str, tuple[float, float]], standings: tuple[float, float] | None = None
) -> list[str]:
    """Explains an evaluation: what the loss means, what was forgotten, and a judgement.

    Args:
        figures: The losses.
        scores: By scorer, the mean of the base and of the adapter, where a larger one is better.
        standings: What the loss compares the base and the adapter by (`Loss.standing`); by default the losses.
    """
    before, after = standings or (figures.base_loss, figures.loss)
    meaning = _loss(figures, is_compared=(before, after) == (figures.base_loss, figures.loss))
    forgetting = _forgetting(figures)
    return [meaning, *([forgetting] if forgetting else []), judge(figures, scores, (before, after))]


def judge(
    figures: Figures, scores: Mapping[str, tuple[float, float]], standings: tuple[float, float] | None = None
) -> str:
    """Says in a sentence or two whether the adapter was worth it; the arguments are those of `explain`."""
    change = _change(*(standings or (figures.base_loss, figures.loss)))
    better = sum(after > before for before, after in scores.values())
    worse = sum(after < before for before, after in scores.values())
    forgot = _rise(figures)
    if change <= -_CLEAR and better >= worse:
        said = "The adapter learned the task: it is clearly better than the base model on these rows."
    elif change <= -_CLEAR:
        said = (
            "Mixed: the expected answers became more probable, but the answers that are written are no better. Look at "
            "them; too short an answer limit or too few epochs are common reasons."
        )
    elif change < -_SAME:
        said = "The adapter learned a little. More rows, more epochs or a higher learning rate may help."
    elif change <= _SAME:
        said = "The adapter changes nothing on these rows. Train longer or with a higher learning rate."
    else:
        said = (
            "The adapter is worse than the base model on these rows. Lower the learning rate or the number of epochs, "
            "and check that these rows are like those that it was trained on."
        )
    if forgot is not None and forgot > _FORGOT and change < -_SAME:
        said += " It forgot much of the rest, though."
    if figures.rows < FEW_ROWS:
        rows = "1 row says" if figures.rows == 1 else f"{figures.rows} rows say"
        said += f" {rows} little: evaluate on {FEW_ROWS} or more before you rely on it."
    return said


def _loss(figures: Figures, is_compared: bool) -> str:
    if not is_compared:
        return (
            f"loss: {figures.base_loss:.4f} before, {figures.loss:.4f} with the adapter; its weights follow the model, "
            "so it says little. Compare nll_loss and probability."
        )
    if figures.perplexity is None:
        return f"loss: {figures.base_loss:.4f} before, {figures.loss:.4f} with the adapter; smaller is better."
    return (
        f"loss: how surprised the model is by the expected answers, a token, in nats. With the adapter, it gives each "
        f"of their tokens a probability of {math.exp(-figures.loss):.0%} (geometric mean); the base model "
        f"{math.exp(-figures.base_loss):.0%}."
    )


def _forgetting(figures: Figures) -> str:
    rise = _rise(figures)
    if rise is None:
        return ""
    if rise <= _FORGOT_A_LITTLE:
        return f"forgetting: none to speak of; the loss on general text changed by {rise:+.3f}."
    if rise <= _FORGOT:
        return f"forgetting: a little; the loss on general text rose by {rise:.3f}."
    return (
        f"forgetting: the loss on general text rose by {rise:.3f}. If the model must stay good at other things, lower "
        "the learning rate or the number of epochs, or mix in general text with data.replay."
    )


def _rise(figures: Figures) -> float | None:
    if figures.general_loss is None or figures.base_general_loss is None:
        return None
    return figures.general_loss - figures.base_general_loss


def _change(before: float, after: float) -> float:
    return (after - before) / abs(before) if before else 0.0
