"""What ends a run, since nothing good can come of it: numbers that are not finite, gradients that reach no tensor.

An adapter that holds what is not finite is of no use, and nothing counts as better than its loss.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from lamina.errors import TrainingError
from lamina.optim import BlockAdamW, Layerwise

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


def check_gradients(optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor]) -> None:
    """The first step's self-check, with its gradients there: every tensor that it trains has one, and some are not 0.

    Raises:
        TrainingError: It is not so.
    """
    if isinstance(optimizer, BlockAdamW):  # the other layers have their turns later
        tensors = {name: tensor for name, tensor in tensors.items() if tensor.requires_grad}
    if isinstance(optimizer, Layerwise):  # which has let go of the gradients by now
        norms = optimizer.gradient_norms
    else:
        norms = {p: p.grad.norm() for p in tensors.values() if p.grad is not None}
    without = [name for name, tensor in tensors.items() if tensor not in norms]
    if without:
        raise TrainingError(
            f"{len(without)} of {len(tensors)} adapter tensors get no gradient (first: {without[0]}), so their modules "
            "take no part in the model's output. Fix: choose other method.target_modules."
        )
    if not any(bool(norm) for norm in norms.values()):
        raise TrainingError("every gradient of the first step is zero: the adapter has no effect on the loss.")
