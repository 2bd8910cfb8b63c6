"""TRL's own losses as oracles, on given log-probabilities: its trainers without their `__init__`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch


def per_token(sums: torch.Tensor, lengths: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Spreads log-probabilities of answers over their tokens, as TRL's model returns them.

    Args:
        sums: log p of each answer, (S,).
        lengths: Tokens of each.

    Returns:
        Log-probabilities (S, T - 1), 0 where there is no token; and the completion mask (S, T).
    """
    longest = max(lengths)
    mask = torch.zeros(len(lengths), longest + 2, dtype=torch.long)
    log_probs = torch.zeros(len(lengths), longest + 1, dtype=sums.dtype)
    for row, length in enumerate(lengths):
        mask[row, 2 : 2 + length] = 1
        shares = torch.linspace(1, 2, length, dtype=sums.dtype)
        log_probs = log_probs.index_put(
            (torch.full((length,), row), torch.arange(1, 1 + length)), sums[row] * shares / shares.sum()
        )
    return log_probs, mask


def stub(trainer: type, **attributes: Any) -> Any:
    """A trainer without its `__init__`, in a single process."""
    made = trainer.__new__(trainer)
    identity = lambda tensor: tensor  # noqa: E731
    made.accelerator = SimpleNamespace(
        device=torch.device("cpu"), gather=identity, gather_for_metrics=identity, reduce=identity
    )
    made.model = SimpleNamespace(training=True)
    made._metrics = {"train": defaultdict(list), "eval": defaultdict(list)}
    made._total_train_tokens, made._tp_size = 0, 1
    made.aux_loss_enabled = False
    for name, value in attributes.items():
        setattr(made, name, value)
    return made


def outputs_of(log_probs: torch.Tensor) -> Any:
    """What TRL's models return, with statistics that only its metrics read."""
    zeros = torch.zeros_like(log_probs)
    return SimpleNamespace(
        log_probs=log_probs,
        entropy=zeros,
        mean_logits=zeros,
        is_top1=zeros.bool(),
        log_sum_sq_probs=zeros,
        loss=None,
        aux_loss=None,
    )


def dpo_loss(
    chosen: torch.Tensor,
    rejected: torch.Tensor,
    lengths: Sequence[tuple[int, int]],
    reference: Sequence[tuple[float, float]],
    **settings: Any,
) -> tuple[torch.Tensor, dict[str, float]]:
    """TRL's DPO loss of some pairs, and its metrics."""
    from trl.trainer.dpo_trainer import DPOTrainer

    own = {
        "beta": 0.1,
        "loss_types": ["sigmoid"],
        "loss_weights": None,
        "label_smoothing": 0.0,
        "f_divergence_type": "reverse_kl",
        "f_alpha_divergence_coef": 0.5,
        "ld_alpha": None,
        "use_weighting": False,
        "precompute_ref_logps": True,
        "args": SimpleNamespace(discopop_tau=0.05),
    } | settings
    own["loss_weights"] = own["loss_weights"] or [1.0] * len(own["loss_types"])
    trainer = stub(DPOTrainer, **own)
    flat = [length for pair in zip(*lengths, strict=True) for length in pair]  # all chosen, then all rejected
    log_probs, mask = per_token(torch.cat([chosen, rejected]), flat)
    references = torch.tensor(reference, dtype=chosen.dtype)
    inputs = {
        "input_ids": torch.ones_like(mask),
        "attention_mask": torch.ones_like(mask),
        "completion_mask": mask,
        "ref_chosen_logps": references[:, 0],
        "ref_rejected_logps": references[:, 1],
    }
    loss = trainer._compute_loss(lambda **_: outputs_of(log_probs), inputs, return_outputs=False)
    return loss, {name: values[-1] for name, values in trainer._metrics["train"].items() if values}


def kto_loss(
    log_probs: torch.Tensor,
    labels: Sequence[bool],
    lengths: Sequence[int],
    reference: Sequence[float],
    mismatched: torch.Tensor,
    mismatched_reference: Sequence[float],
    **settings: Any,
) -> tuple[torch.Tensor, dict[str, float]]:
    """TRL's KTO loss of some labeled answers, and its metrics."""
    from trl.trainer.kto_trainer import KTOTrainer

    own = {
        "beta": 0.1,
        "loss_type": "kto",
        "desirable_weight": 1.0,
        "undesirable_weight": 1.0,
        "precompute_ref_logps": True,
    } | settings
    trainer = stub(KTOTrainer, calculate_KL=own["loss_type"] == "kto", **own)
    trainer._compute_kl_logps = lambda model, batch: mismatched
    each, mask = per_token(log_probs, lengths)
    inputs = {
        "input_ids": torch.ones_like(mask),
        "attention_mask": torch.ones_like(mask),
        "completion_mask": mask,
        "label": torch.tensor(labels),
        "ref_logps": torch.tensor(reference, dtype=log_probs.dtype),
        "ref_KL_logps": torch.tensor(mismatched_reference, dtype=log_probs.dtype),
    }
    loss = trainer._compute_loss(lambda **_: outputs_of(each), inputs, return_outputs=False)
    return loss, {name: values[-1] for name, values in trainer._metrics["train"].items() if values}


def orpo_ratio(chosen: torch.Tensor, rejected: torch.Tensor, beta: float) -> tuple[torch.Tensor, ...]:
    """TRL's odds ratio term of each pair, from averages; its loss is the likelihood minus their mean."""
    from trl.experimental.orpo.orpo_trainer import ORPOTrainer

    return ORPOTrainer.odds_ratio_loss(stub(ORPOTrainer, beta=beta), chosen, rejected)


def cpo_losses(chosen: torch.Tensor, rejected: torch.Tensor, **settings: Any) -> tuple[torch.Tensor, ...]:
    """TRL's CPO or SimPO loss of each pair, with the rewards of both answers."""
    from trl.experimental.cpo.cpo_trainer import CPOTrainer

    own = {"loss_type": "sigmoid", "beta": 0.1, "simpo_gamma": 0.5, "label_smoothing": 0.0, "alpha": 0.0} | settings
    return CPOTrainer.cpo_loss(stub(CPOTrainer, **own), chosen, rejected)


def reward_loss(
    chosen: torch.Tensor, rejected: torch.Tensor, margins: torch.Tensor, center: float | None
) -> tuple[torch.Tensor, dict[str, float]]:
    """TRL's loss of a reward model from scores, and its metrics."""
    from trl.trainer.reward_trainer import RewardTrainer

    trainer = stub(RewardTrainer, args=SimpleNamespace(center_rewards_coefficient=center))
    inputs = {"attention_mask": torch.ones(2 * len(chosen), 1), "margin": margins}
    logits = torch.cat([chosen, rejected])[:, None]
    loss = trainer.compute_loss(lambda **_: SimpleNamespace(logits=logits), inputs)
    return loss, {name: values[-1] for name, values in trainer._metrics["train"].items() if values}
