"""Keeps a run's adapter as it is at some step: in a checkpoint, with all that training goes on from, or as the best."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from lamina.adapters.adapter import write_adapter
from lamina.adapters.lock import Lock, build_lock
from lamina.methods.shared.score import score_head
from lamina.training.checkpoint import TrainState, save_best, save_checkpoint
from lamina.training.record import data_digests
from lamina.training.session import Session
from lamina.training.setup import is_only_text


def keep_checkpoint(session: Session, state: TrainState, moments: Mapping[str, torch.Tensor]) -> Path:
    """Saves a checkpoint; only the first process of the run may do so. See `save_checkpoint`."""
    return save_checkpoint(
        session.run.checkpoints,
        state,
        session.tensors,
        moments,
        session.hooks,
        session.base.model.device,
        session.config.train.save_total_limit,
        lambda folder, stored: _write_as_it_is(session, folder, stored),
    )


def keep_best(session: Session, state: TrainState) -> Path:
    """Saves the adapter of the best evaluation so far, from one process of the run."""

    def save() -> Path:
        write = lambda folder, stored: _write_as_it_is(session, folder, stored)  # noqa: E731
        return save_best(session.run.checkpoints, state, session.tensors, write)

    return session.world.once(save, "saving the best adapter")


def lock_of(session: Session) -> Lock:
    """What the run's adapter is bound to."""
    dataset, head = session.dataset, score_head(session.base.model)
    classes = () if head is None else head.classes
    return build_lock(session.base, session.template, data_digests(dataset), is_only_text(dataset), classes)


def _write_as_it_is(session: Session, folder: Path, stored: Path) -> None:
    """Writes the adapter as it is now into a folder that is there, without probes.

    Args:
        session: The run's parts.
        folder: The folder.
        stored: The file there of the tensors that are trained.
    """
    write_adapter(folder, session.injection, session.base, lock_of(session), [], stored)
