"""What is not finite ends a run: an adapter that holds it is of no use, and nothing counts as better than its loss."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from lamina.errors import TrainingError

_FIX = "Fix: lower train.learning_rate, or go on from a checkpoint before it with a lower one."


def check_evaluation(loss: float, what: str, step: int) -> float:
    """Gives an evaluation's loss back.

    Raises:
        TrainingError: It is not finite.
    """
    if math.isfinite(loss):
        return loss
    fix = _FIX if step else "Fix: check that the base model itself is sound, and the rows of data.eval."
    raise TrainingError(f"step {step}: the evaluation loss of the {what} is {loss}, which is not finite. {fix}")


def check_adapter(tensors: Mapping[str, torch.Tensor], step: int) -> None:
    """To be called before an adapter is saved for good.

    Raises:
        TrainingError: One of its tensors holds something that is not finite.
    """
    bad = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if bad:
        raise TrainingError(
            f"step {step}: {len(bad)} of {len(tensors)} adapter tensors are not finite (first: {bad[0]}), so there is "
            f"nothing to save. {_FIX}"
        )
